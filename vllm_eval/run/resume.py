"""Whether a run of an earlier session can continue here, and what of it is pending again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from vllm_eval.config.layers import Layers
from vllm_eval.config.settings import LAYER, Config, whole
from vllm_eval.errors import InputError
from vllm_eval.inputs.plan import Plan
from vllm_eval.preflight.engine_release import other_engine
from vllm_eval.records import TOO_LONG
from vllm_eval.store.folder import COMPARISON, CONFIG, find_run
from vllm_eval.store.journal import Journal
from vllm_eval.tasks import refuse_file

AUTO: Final = "auto"
"""Instead of a run's folder: the newest run like this one, or a new one if there is none."""


def load_resumed(
    layers: Layers, resume: str | Path | None
) -> tuple[Config, Path | Literal["auto"] | None]:
    """The configuration of a run and what it continues: the layers over the stored one.

    `resume` is the folder or name of a run, `AUTO`, or None for a new one.

    Raises:
        ConfigError: an option cannot be used.
        InputError: there is no such run, or its task is a file and was not named again.
    """
    if resume is None or resume == AUTO:
        return layers.load(), AUTO if resume else None
    given = layers.load(LAYER)
    folder = find_run(str(resume), given.output_dir)
    config = replace(layers, files=[str(folder / CONFIG), *layers.files]).load()
    if "task" not in given.model_fields_set:
        refuse_file(config.task, folder)
    return config, folder


def refuse_other_engine(plan: Plan, folder: Path, recorded: Mapping[str, Any]) -> None:
    """InputError if `other_engine` finds a reason."""
    if why := other_engine(plan, recorded.get("engine", {})):
        raise InputError(f"{folder}: {why}; start a new run, without --resume")


def requeue_refused(plan: Plan, folder: Path, recorded: Mapping[str, Any], journal: Journal) -> int:
    """Make prompts refused as too long pending again if the run is resumed with a longer limit.

    No engine has seen them, and raising the limit is our own advice. The files of a finished run
    count them as errors, so they are no longer valid. Returns how many are pending again.
    """
    before = recorded.get("engine", {}).get("max_model_len")
    if plan.config.engine == "openai" or not isinstance(before, int):
        return 0  # a server has its own limit
    longest = plan.base.architecture.max_len if plan.base and plan.base.architecture else None
    if whole(plan.config.engine_args.get("max_model_len"), longest or 0) <= before:
        return 0
    dropped = journal.drop(lambda a: a.status == "error" and a.reason == TOO_LONG)
    if dropped:
        (folder / COMPARISON).unlink(missing_ok=True)
    return dropped
