"""Folders of training runs as a trainer leaves them, with what it logged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.model_folders import write_adapter
from tests.report_runs import WEAK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import Answers

Entry = dict[str, Any]


def history(last: int, every: int = 10, evaluated: int = 50) -> list[Entry]:
    """A log as transformers writes it: losses, evaluations, and the totals at the end."""
    found: list[Entry] = []
    for step in range(every, last + 1, every):
        loss = round(2.5 / (1 + step / 100), 4)
        shared = {"epoch": step / 100, "step": step}
        found.append({**shared, "grad_norm": 0.31, "learning_rate": 2e-4, "loss": loss})
        if step % evaluated == 0:
            found.append({**shared, "eval_loss": loss + 0.25, "eval_runtime": 1.5})
    return [*found, {"epoch": last / 100, "step": last, "train_loss": 1.5, "total_flos": 7e12}]


def trainer_state(folder: Path, log: Sequence[object], step: int | None = None) -> Path:
    """`trainer_state.json` with the keys that transformers writes, by default at the log's end."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = [entry["step"] for entry in log if isinstance(entry, dict) and "step" in entry]
    state = {
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": 1.0,
        "eval_steps": 50,
        "global_step": step or (steps[-1] if steps else 0),
        "is_world_process_zero": True,
        "log_history": list(log),
        "logging_steps": 10,
        "stateful_callbacks": {"TrainerControl": {"args": {"should_log": False}}},
        "train_batch_size": 8,
    }
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(state), encoding="utf-8")  # NaN as Python writes it
    return path


def train(
    folder: Path, *steps: int, log: Sequence[object] | None = None, final: bool = False
) -> Path:
    """A training run's folder with a checkpoint at each step, and perhaps an adapter at its end.

    The last checkpoint holds the trainer's `log`, by default none does.
    """
    for step in steps:
        write_adapter(folder / f"checkpoint-{step}", lora_alpha=step + sum(str(folder).encode()))
    if final:
        write_adapter(folder, lora_alpha=7)
    if log is not None:
        trainer_state(folder / f"checkpoint-{steps[-1]}", log, steps[-1])
    return folder


def improving(answers: Answers, *arms: str) -> list[dict[str, object]]:
    """A script in which each arm breaks the contract in one case less than the one before."""
    script: list[dict[str, object]] = [{"text": answers.text()}, {"arm": "baseline", "text": WEAK}]
    for place, arm in enumerate(arms):
        bad = range(1, len(arms) - place)
        script += [{"concept_id": f"K{n}", "arm": arm, "text": answers.bad()} for n in bad]
    return script
