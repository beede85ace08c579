"""`evidence.json`: what a complete run is evidence of, and on which cases it was gathered."""

from __future__ import annotations

import functools
import math
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen
from pydantic import TypeAdapter, ValidationError

from vllm_eval.compare.betting import SURE
from vllm_eval.compare.verdict import Rule
from vllm_eval.errors import InputError
from vllm_eval.store.folder import write_json

FILE = "evidence.json"
MOST_BYTES = 2**25
"""Larger files are not read; one of a million cases is smaller."""
NO_FOLLOWING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link is refused, and a pipe does not block."""


@dataclass(frozen=True, slots=True)
class Look:
    """How often a student had been graded on the cases of a run when it was concluded."""

    number: Annotated[int, Ge(1)]
    """1 plus the earlier runs with the case that had been in most of them."""
    shared: Annotated[int, Ge(0)]
    """Cases that had been in any."""
    cases: Annotated[int, Ge(0)]
    """Cases of the run."""


@dataclass(frozen=True, slots=True)
class StudentEvidence:
    """What a run says of one student."""

    arm: str
    adapter: str
    """Hash of its files; without files its name, with the hash of the script that answered."""
    rules: Annotated[tuple[Rule, ...], MinLen(1)]
    look: Look


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """What a complete run says of its students."""

    schema_version: Literal[1]
    started_at: str
    identity: dict[str, Any]
    """From its manifest."""
    cases: Annotated[tuple[str, ...], MinLen(1)]
    """Hash of the content of each case that was answered."""
    students: Annotated[tuple[StudentEvidence, ...], MinLen(1)]

    def same_question(self, other: RunEvidence) -> bool:
        """Whether both runs graded adapters of the same base by the same task."""
        return all(self.identity.get(k) == other.identity.get(k) for k in ("base_model", "task"))


def write(folder: Path, evidence: RunEvidence) -> Path:
    """Store the evidence of a run, whole or not at all."""
    return write_json(folder / FILE, asdict(evidence))


def read(folder: Path) -> RunEvidence | None:
    """The evidence of a run; None if it has none.

    Raises:
        InputError: the file cannot be used.
    """
    path = folder / FILE
    try:
        found = _reader().validate_json(_read_small(path), strict=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise InputError(f"{path}: cannot be used: {what}") from error
    if not all(map(_is_sound, (rule for one in found.students for rule in one.rules))):
        raise InputError(f"{path}: cannot be used: a number is out of range")
    return found


def read_beside(folder: Path, unread: list[str]) -> Iterator[tuple[Path, RunEvidence]]:
    """The evidence of the runs in the folders beside `folder`, by name, but for links.

    Yields nothing where the folders cannot be listed; adds to `unread` why evidence cannot be used.
    """
    folder, names = folder.resolve(), list[str]()
    with suppress(OSError), os.scandir(folder.parent) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for path in (folder.parent / name for name in names if name != folder.name):
        try:
            found = read(path)
        except InputError as error:
            unread.append(str(error))
        else:
            if found is not None:
                yield path, found


def _read_small(path: Path) -> bytes:
    file = os.open(path, NO_FOLLOWING)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
            raise OSError(f"not a file of at most {MOST_BYTES:,} bytes")
        with open(file, "rb", closefd=False) as data:
            return data.read(MOST_BYTES)
    finally:
        os.close(file)


def _is_sound(rule: Rule) -> bool:
    numbers = [] if rule.value is None else [abs(rule.value)]
    if (found := rule.evidence) is not None:
        numbers += [found.e_shown, found.e_refuted, abs(found.mean), found.cases]
    return all(0 <= number <= math.exp(SURE) for number in (*numbers, abs(rule.threshold)))


@functools.cache
def _reader() -> TypeAdapter[RunEvidence]:
    return TypeAdapter(RunEvidence)
