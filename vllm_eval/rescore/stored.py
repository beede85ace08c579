"""Stored answers, read one by one: our result files and journals, and the predecessor's files.

A file is a JSON object with a list `results`, a bare list of results, or results one a line (JSON
lines); which of them is seen from what it holds. JSON lines are read line by line, so a journal may
have any length. Any other file is read whole, which took 3 times its size of memory with English
answers, and up to 11 times with very short answers, emoji, or words that only Python writes (NaN).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE, Key
from vllm_eval.rescore.answers import STATUSES, StoredAnswer, read_answer, text_of
from vllm_eval.store.folder import JOURNAL
from vllm_eval.store.journal import refuse_parts

MAX_BYTES = 2**30
"""Of a file that is read whole."""
MAX_FIRST_LINE = 2**26
"""Bytes looked at to tell JSON lines from other files."""
MAX_WORDS = 5
"""Different unknown words for a status that are told apart."""
_TIMESTAMP = re.compile(r"[_.-]*(?<!\d)20\d\d-?\d\d-?\d\d.*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of stored answers, checked from end to end."""

    path: Path
    config: Mapping[str, Any]
    """The configuration stored with it; empty where there is none."""
    count: int
    """Answers in it."""
    arms: tuple[str, ...]
    ids: Mapping[str, str]
    """Each concept id with the place of its first answer."""
    keys: Mapping[Key, str]
    """Every arm, case and sample with the place of its outcome; empty where that is missing."""
    partial: bool
    """Whether the file says that its run did not end."""
    stated: int | None
    """How many outcomes the file says it holds."""
    notes: tuple[str, ...]
    """What was met in it that its reader should know."""

    @property
    def outcomes(self) -> int:
        """Outcomes in it: its answers without the failed attempts of a journal."""
        return sum(1 for place in self.keys.values() if place)


@dataclass(slots=True)
class _Reading:
    """What is met beside the answers while a file is read."""

    head: dict[str, Any] = field(default_factory=dict)
    """The other keys of the file."""
    torn: str = ""
    """Place of a last line that was cut off."""
    counted: int = 0
    """Answers that repeat a case and do not say which sample they are."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Unknown words for a status, with counts."""
    keys: dict[Key, str] = field(default_factory=dict)

    def meet(self, answer: StoredAnswer) -> None:
        """Take note of an answer.

        Raises:
            InputError: its case and sample had an outcome before.
        """
        key = (answer.arm, answer.concept_id, answer.sample)
        if answer.final and self.keys.get(key):
            msg = (
                f"{answer.path}, {answer.place}: a case and sample of {answer.arm} is there twice, "
                f"concept_id {answer.concept_id!r}, sample {answer.sample}, first at "
                f"{self.keys[key]}; remove one of them"
            )
            raise InputError(msg)
        self.keys[key] = answer.place if answer.final else self.keys.get(key, "")
        self.counted += answer.counted_sample and answer.sample > 0 and answer.final
        if answer.unknown_status:
            name = answer.unknown_status
            name = name if name in self.statuses or len(self.statuses) < MAX_WORDS else "others"
            self.statuses[name] = self.statuses.get(name, 0) + 1

    def notes(self, path: Path) -> tuple[str, ...]:
        """What a reader of the numbers should know."""
        found = []
        if self.torn:
            found.append(f"{path}, {self.torn}: is truncated and was skipped")
        if self.counted:
            words = "repeat a concept_id without a `sample`, and count as its further samples"
            found.append(f"{path}: {self.counted} answers {words}")
        if self.statuses:
            words = ", ".join(f"{name} ({count})" for name, count in self.statuses.items())
            known = ", ".join(STATUSES)
            found.append(f"{path}: unknown status {words}, not compared; known: {known}")
        return tuple(found)


def open_file(path: Path) -> StoredFile:
    """Check every answer of the file at `path`.

    Raises:
        InputError: file, line and key that cannot be used.
    """
    reading = _Reading()
    count = 0
    arms: dict[str, None] = {}
    ids: dict[str, str] = {}
    for answer in _read(path, reading):
        count += 1
        arms[answer.arm] = None
        ids.setdefault(answer.concept_id, answer.place)
        reading.meet(answer)
    if not count:
        raise InputError(f"{path}: has no answers")
    config, stated = reading.head.get("config"), reading.head.get("total_samples")
    return StoredFile(
        path=path,
        config=config if isinstance(config, dict) else {},
        count=count,
        arms=tuple(arms),
        ids=ids,
        keys=reading.keys,
        partial=reading.head.get("partial") is True,
        stated=stated if isinstance(stated, int) and not isinstance(stated, bool) else None,
        notes=reading.notes(path),
    )


def read_answers(file: StoredFile) -> Iterator[StoredAnswer]:
    """The answers of a checked file, in its order."""
    return _read(file.path, _Reading())


def arm_of(path: Path) -> str:
    """The arm that a file's name tells: `baseline`, or the name up to its time."""
    if path.name.lower().startswith(BASELINE):
        return BASELINE
    return _TIMESTAMP.sub("", path.stem) or path.stem


def _read(path: Path, reading: _Reading) -> Iterator[StoredAnswer]:
    """Every answer; what else is met in the file is put into `reading`."""
    before: dict[tuple[str, str], int] = {}
    try:
        for place, row in _rows(path, reading):
            if not isinstance(row, dict):
                raise InputError(f"{path}, {place}: must be a JSON object")
            concept_id = row.get("concept_id")
            if concept_id in (None, "") or isinstance(concept_id, dict | list):
                msg = f"{path}, {place}: lacks `concept_id`, so its requirements cannot be found"
                raise InputError(msg)
            arm = text_of(row, "arm") or text_of(reading.head, "arm") or arm_of(path)
            nth = before.get((arm, str(concept_id)), 0)
            answer = read_answer(path, place, row, (arm, str(concept_id), nth))
            before[arm, answer.concept_id] = nth + answer.final
            yield answer
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read the answers: {error.strerror}") from error


def _rows(path: Path, reading: _Reading) -> Iterator[tuple[str, object]]:
    """Place and content of every answer."""
    if path.name == JOURNAL:
        refuse_parts(path)
        yield from _lines(path, reading)
    elif _has_lines(path):
        yield from _lines(path, reading)
    else:
        yield from _whole(path, reading)


def _has_lines(path: Path) -> bool:
    """Whether the first line is an answer by itself."""
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_FIRST_LINE), b"")
        first = next((line for line in lines if line.strip()), b"")
    try:
        row = _parse(first)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(row, dict) and "concept_id" in row and not isinstance(row.get("results"), list)
    )


def _lines(path: Path, reading: _Reading) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _parse(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    reading.torn = f"line {number}"
                    return
                raise _wrong(path, error, number) from error
            yield f"line {number}", row


def _whole(path: Path, reading: _Reading) -> Iterator[tuple[str, object]]:
    if path.stat().st_size > MAX_BYTES:
        msg = f"{path}: is larger than {MAX_BYTES // 2**30} GiB, and must be read whole into memory"
        raise InputError(f"{msg}; give the run's {JOURNAL}, or write one result per line")
    try:
        found = _parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _wrong(path, error) from error
    if isinstance(found, list):
        yield from ((f"[{number}]", row) for number, row in enumerate(found))
    elif isinstance(found, dict) and isinstance(found.get("results"), list):
        rows = found.pop("results")
        reading.head |= found
        yield from ((f"results[{number}]", row) for number, row in enumerate(rows))
    elif isinstance(found, dict) and "concept_id" in found:
        yield "line 1", found
    else:
        raise InputError(f"{path}: has neither a list `results` nor a `concept_id`")


def _parse(data: bytes) -> object:
    """A JSON value; orjson refuses some of what Python writes: NaN, controls, half a surrogate."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        found: object = json.loads(data.decode("utf-8-sig"), strict=False)
        return found


def _wrong(path: Path, error: ValueError | RecursionError, line: int = 0) -> Exception:
    """What to raise for a text that cannot be read; `line` is its place where it is one of many."""
    if isinstance(error, UnicodeDecodeError):
        return error
    if isinstance(error, json.JSONDecodeError):
        begun = line or error.doc[: error.pos].strip()
        what = (
            f"not valid JSON: {error.msg}" if begun else "is neither a result file nor JSON lines"
        )
        line = line or error.lineno
    elif isinstance(error, RecursionError):
        what = "nested too deep"
    else:  # Python takes no integer of more than 4,300 digits
        what = "has a number with too many digits"
    return InputError(f"{path}, line {line}: {what}" if line else f"{path}: {what}")
