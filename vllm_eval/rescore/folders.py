"""Which files of a run folder hold its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.store import COMPARISON, JOURNAL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of answers behind `paths`, each of which is a file or a run folder.

    The result files of a run that did not end lack what its journal may hold.

    Raises:
        InputError: there is no such file, or a folder without answers.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [*sorted(path.glob(f"{BASELINE}*.json")), *sorted(path.glob("student*.json"))]
        if (path / JOURNAL).is_file() and not (inside and is_whole(path)):
            inside = [path / JOURNAL]
        if not inside:
            msg = f"{path}: holds no {BASELINE}_*.json, student_*.json or {JOURNAL}"
            raise InputError(msg)
        found += inside
    return list(dict.fromkeys(found))


def is_whole(folder: Path) -> bool:
    """Whether the run in a folder came to its end."""
    try:
        return not orjson.loads((folder / COMPARISON).read_bytes())["partial"]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False
