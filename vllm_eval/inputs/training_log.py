"""The losses that a trainer left beside its checkpoints, in `trainer_state.json`.

The file comes with the adapters, so from anywhere: a wrong one costs the losses, never the run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from vllm_eval.errors import InputError
from vllm_eval.inputs.checkpoints import MAX_STEP, STATE_FILE, load_state
from vllm_eval.records import Adapter

MOST = 100
"""Training losses kept, and as many evaluation losses, beside those at the steps compared."""
MOST_LOSS = 1e6
"""A loss beyond it has no meaning and is unknown, like NaN."""

_Number = Annotated[float, Ge(-MOST_LOSS), Le(MOST_LOSS)]
_Step = Annotated[int, Ge(0), Le(MAX_STEP)]


@dataclass(frozen=True, slots=True)
class Loss:
    """What the trainer logged at one step; None where it logged nothing, or no number."""

    step: _Step
    loss: _Number | None
    """Training loss, averaged since the trainer's entry before."""
    eval_loss: _Number | None


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The losses of one training run, by step."""

    file: str | None
    """Where they were read; None if there is no file, or none that can be used."""
    losses: tuple[Loss, ...]
    note: str
    """Why the trainer's file cannot be used; otherwise empty."""


EMPTY = TrainingLog(None, (), "")


def read_logs(adapters: Iterable[Adapter]) -> dict[str, TrainingLog]:
    """By folder, the losses of each training run of which two steps or more are compared."""
    runs: dict[Path, list[Adapter]] = {}
    for adapter in adapters:
        if adapter.training is not None and adapter.step is not None:
            runs.setdefault(adapter.training, []).append(adapter)
    found = {}
    for training, saved in runs.items():
        saved.sort(key=lambda adapter: adapter.step or 0, reverse=True)
        steps = [adapter.step or 0 for adapter in saved]
        if len(set(steps)) > 1:
            log = _read_log([training], list(_inside(training, saved)))
            found[str(training)] = TrainingLog(log.file, _thin(log.losses, steps), log.note)
    return found


def _inside(training: Path, saved: Iterable[Adapter]) -> Iterator[Path]:
    """Each adapter's folder and those above it, up to its checkpoint's."""
    for adapter in saved:
        for folder in (adapter.path, *adapter.path.parents):
            if folder == training or not folder.is_relative_to(training):
                break
            yield folder


def from_json(data: object) -> dict[str, TrainingLog]:
    """The logs that a manifest holds.

    Raises:
        InputError: they are not as `read_logs` makes them.
    """
    try:
        return TypeAdapter(dict[str, TrainingLog]).validate_python(data, strict=False)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"][1:]))
        msg = f"manifest.json: training is damaged ({where}); restore it, or evaluate again"
        raise InputError(msg) from error


def _read_log(*places: Sequence[Path]) -> TrainingLog:
    """Of the first usable file in each of `places`, the one that reaches the furthest step.

    A checkpoint holds the history up to its own step. The folder of the run may hold more, or be
    left from an earlier training.
    """
    logs, bad = [], []
    for folders in places:
        for folder in folders:
            log = _read_file(folder / STATE_FILE)
            if log.losses:
                logs.append(log)
                break
            bad.append(log)
    if logs:
        return max(logs, key=lambda log: log.losses[-1].step)
    return next((log for log in bad if log.note), EMPTY)


def _read_file(path: Path) -> TrainingLog:
    try:
        if not path.is_file():
            return EMPTY
        state = load_state(path)
    except (InputError, OSError) as error:
        return TrainingLog(None, (), str(error))
    history = state.get("log_history") if isinstance(state, dict) else None
    losses = _losses(history if isinstance(history, list) else ())
    if losses:
        return TrainingLog(str(path), losses, "")
    return TrainingLog(None, (), f"{path}: holds no losses")


def _losses(history: Iterable[object]) -> tuple[Loss, ...]:
    """One entry a step; the trainer logs the two losses of a step apart."""
    found: dict[int, dict[str, float]] = {}
    for entry in history:
        if isinstance(entry, dict) and (step := _step(entry)) is not None:
            for key in ("loss", "eval_loss"):
                if (value := _number(entry.get(key))) is not None:
                    found.setdefault(step, {})[key] = value
    return tuple(Loss(n, one.get("loss"), one.get("eval_loss")) for n, one in sorted(found.items()))


def _step(entry: Mapping[str, Any]) -> int | None:
    step = entry.get("step")
    return step if type(step) is int and 0 <= step <= MAX_STEP else None


def _number(value: object) -> float | None:
    """The value as a float, if it is a number of any use."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -MOST_LOSS <= value <= MOST_LOSS else None  # not so for NaN


def _thin(losses: Sequence[Loss], steps: Iterable[int]) -> tuple[Loss, ...]:
    """Evenly spaced ones of each kind, with the last of each up to every one of `steps`."""
    wanted, kept = list(steps), set()
    for key in ("loss", "eval_loss"):
        there = [one.step for one in losses if getattr(one, key) is not None]
        last, most = len(there) - 1, min(MOST, len(there))
        kept |= {there[round(n * last / max(1, most - 1))] for n in range(most)}
        kept |= {there[at - 1] for step in wanted if (at := bisect_right(there, step))}
    return tuple(one for one in losses if one.step in kept)
