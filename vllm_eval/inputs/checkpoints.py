"""The folders of checkpoints, as trainers call and fill them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.errors import InputError
from vllm_eval.inputs.adapters import CONFIG_FILE

STATE_FILE = "trainer_state.json"
"""What the trainers of transformers and TRL leave in each checkpoint, and at the end beside it."""
UNFINISHED = "tmp-"
"""How transformers calls a checkpoint that it has not finished writing."""
MAX_STEP = 10**12
MAX_STATE_BYTES = 20 * 2**20
_CHECKPOINT = re.compile(
    r"(?:.*[-_.])?(?:checkpoint|ckpt|(?:global[-_]?)?steps?|epoch|iter|iteration)[-_=]?(\d{1,12})",
    re.IGNORECASE,
)
BELOW = ("*", "*/*")
"""Where a checkpoint may hold its adapter, if not in its own folder."""


def step_in_name(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None if it is not called as one."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint's folder, by its trainer's state or else its name."""
    named = step_in_name(checkpoint.name)
    return None if named is None else read_state(checkpoint).get("global_step", named)


def read_state(folder: Path) -> dict[str, int]:
    """`global_step` and `max_steps` of a trainer's state, where they are there and plausible."""
    path = folder / STATE_FILE
    if not path.is_file():
        return {}
    try:
        fields = load_state(path)
    except InputError:  # the name of the folder may tell too
        return {}
    kept = ("global_step", "max_steps") if isinstance(fields, dict) else ()
    numbers = {key: fields.get(key) for key in kept}
    return {
        key: number
        for key, number in numbers.items()
        if type(number) is int and 0 <= number <= MAX_STEP
    }


def load_state(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """The content of a trainer's state, with numbers that JSON does not have as None.

    Raises:
        InputError: it cannot be read, is too large, or is not JSON.
    """
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise InputError(f"{path}: over {MAX_STATE_BYTES:,} bytes, so not read")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass  # trainers write NaN, which Python's own parser knows
    try:
        return json.loads(raw, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not readable as JSON") from error


def holds_checkpoints(place: Path) -> bool:
    """Whether it is the folder of a training run; not, where it cannot be read."""
    try:
        return any(step_in_name(child.name) is not None for child in subfolders(place))
    except OSError:
        return False


def is_adapter(place: Path) -> bool:
    """Whether it is the folder of an adapter; not, where it cannot be read."""
    try:
        return (place / CONFIG_FILE).is_file()
    except OSError:
        return False


def held_in(checkpoint: Path) -> list[Path]:
    """Where a checkpoint holds adapters: itself; else folders in it, as PEFT and verl make them."""
    if (checkpoint / CONFIG_FILE).is_file():
        return [checkpoint]
    return sorted(
        path.parent for below in BELOW for path in checkpoint.glob(f"{below}/{CONFIG_FILE}")
    )


def called(place: Path) -> Path:
    """The folder by a name that tells what it is: `.` and `..` do not."""
    return place.resolve() if place.name in ("", "..") else place


def subfolders(place: Path) -> list[Path]:
    """The folders in it that are not hidden, by name."""
    with os.scandir(place) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]
    return [place / name for name in sorted(names)]
