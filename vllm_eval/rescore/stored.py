"""Stored answers, read one by one: our result files and journals, and the predecessor's files.

A file is a JSON object with a list `results`, a bare list of results, or JSON lines with one result
each; the content tells which. JSON lines are read line by line, so a journal may have any length.
Any other file is read whole, which takes 3 times its size in memory with English answers, and up to
11 times with very short answers, emoji, or words that only Python writes (NaN).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE, Key
from vllm_eval.rescore.answers import STATUSES, StoredAnswer, read_answer, text_of
from vllm_eval.store.folder import JOURNAL, index_rows, read_comparison
from vllm_eval.store.journal import refuse_parts

MAX_BYTES = 2**30
"""The largest file that is read whole."""
MAX_FIRST_LINE = 2**26
"""Bytes read to tell JSON lines from other files."""
MAX_WORDS = 5
"""Different unknown statuses that are counted apart."""
_TIMESTAMP = re.compile(r"[_.-]*(?<!\d)20\d\d-?\d\d-?\d\d.*$", re.DOTALL)


@dataclass(slots=True)
class StoredFile:
    """A file of stored answers; `open_file` checks it from end to end and fills this record."""

    path: Path
    count: int = 0
    """Answers in it."""
    arms: dict[str, None] = field(default_factory=dict)
    """In the order of the file."""
    ids: dict[str, str] = field(default_factory=dict)
    """The place of the first answer to each case, by concept id."""
    keys: dict[Key, str] = field(default_factory=dict)
    """The place of each outcome; empty if the file has only failed attempts."""
    head: dict[str, Any] = field(default_factory=dict)
    """All of a result file but its results; of a journal, at which case its run was settled."""
    torn: str = ""
    """Place of an incomplete last line."""
    counted: dict[Key, None] = field(default_factory=dict)
    """Outcomes that repeat a case without saying which sample they are."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Unknown statuses, with counts."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The stored configuration; empty if there is none."""
        config = self.head.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def partial(self) -> bool:
        """Whether the file says that its run did not finish."""
        return self.head.get("partial") is True

    @property
    def settled(self) -> int | None:
        """How many cases settled the verdict of its run; None if all count."""
        settled = self.head.get("settled")
        cases = settled.get("cases") if isinstance(settled, dict) else None
        return cases if isinstance(cases, int) else None

    @property
    def outcomes(self) -> int:
        """The answers without a journal's failed attempts."""
        return sum(1 for place in self.keys.values() if place)

    def take(self, answer: StoredAnswer) -> None:
        """Take in one answer.

        Raises:
            InputError: its case and sample already have an outcome.
        """
        self.count += 1
        self.arms[answer.arm] = None
        self.ids.setdefault(answer.concept_id, answer.place)
        key = (answer.arm, answer.concept_id, answer.sample)
        if answer.final and self.keys.get(key):
            raise InputError(
                f"{answer.path}, {answer.place}: a case and sample of {answer.arm} is there twice, "
                f"concept_id {answer.concept_id!r}, sample {answer.sample}, first at "
                f"{self.keys[key]}; remove one of them"
            )
        self.keys[key] = answer.place if answer.final else self.keys.get(key, "")
        if answer.counted_sample and answer.sample > 0 and answer.final:
            self.counted[key] = None
        if name := answer.unknown_status:
            name = name if name in self.statuses or len(self.statuses) < MAX_WORDS else "others"
            self.statuses[name] = self.statuses.get(name, 0) + 1

    def notes(self) -> list[str]:
        """What limits the figures of this file."""
        found = []
        if self.torn:
            found.append(f"{self.path}, {self.torn}: is truncated and was skipped")
        if self.counted:
            words = "repeat a concept_id without a `sample`, and count as its further samples"
            arms = ", ".join(dict.fromkeys(arm for arm, _, _ in self.counted))
            found.append(f"{self.path}: {len(self.counted)} answers {words} ({arms})")
        if self.statuses:
            words = ", ".join(f"{name} ({count})" for name, count in self.statuses.items())
            known = ", ".join(STATUSES)
            found.append(f"{self.path}: unknown status {words}, not compared; known: {known}")
        return found


def open_file(path: Path) -> StoredFile:
    """Check every answer of the file at `path`.

    Raises:
        InputError: the file or an answer cannot be used; names file, line and key.
    """
    file = StoredFile(path)
    for answer in _read(file):
        file.take(answer)
    if not file.count:
        raise InputError(f"{path}: has no answers")
    return file


def read_answers(file: StoredFile) -> Iterator[StoredAnswer]:
    """The answers of a checked file, in its order."""
    return _read(StoredFile(file.path))


def arm_of(path: Path) -> str:
    """The arm in a file's name: `baseline`, or the name up to its timestamp."""
    if path.name.lower().startswith(BASELINE):
        return BASELINE
    return _TIMESTAMP.sub("", path.stem) or path.stem


def _read(file: StoredFile) -> Iterator[StoredAnswer]:
    """Every answer; sets the `head` of `file`, and `torn`."""
    path = file.path
    before: dict[tuple[str, str], int] = {}
    late = _late_cases(file)
    try:
        for place, row in _rows(file):
            if not isinstance(row, dict):
                raise InputError(f"{path}, {place}: must be a JSON object")
            concept_id = row.get("concept_id")
            if row.get("after_decision") is True or concept_id in late:
                continue
            if concept_id in (None, "") or isinstance(concept_id, dict | list):
                raise InputError(f"{path}, {place}: lacks `concept_id`, so its case is unknown")
            arm = text_of(row, "arm") or text_of(file.head, "arm") or arm_of(path)
            nth = before.get((arm, str(concept_id)), 0)
            answer = read_answer(path, place, row, (arm, str(concept_id), nth))
            before[arm, answer.concept_id] = nth + answer.final
            yield answer
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read the answers: {error.strerror}") from error


def _late_cases(file: StoredFile) -> Collection[str]:
    """The cases of a journal that its run does not count: the verdict was settled without them."""
    folder = file.path.parent
    found = (read_comparison(folder) or {}) if file.path.name == JOURNAL else {}
    if settled := found.get("settled"):
        file.head["settled"] = settled
        return frozenset(islice(index_rows(folder).order, settled["cases"], None))
    return ()


def _rows(file: StoredFile) -> Iterator[tuple[str, object]]:
    """Place and content of every answer."""
    is_journal = file.path.name == JOURNAL
    if is_journal:
        refuse_parts(file.path)
    return _lines(file) if is_journal or _has_lines(file.path) else _whole(file)


def _has_lines(path: Path) -> bool:
    """Whether the first line is an answer by itself."""
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_FIRST_LINE), b"")
        first = next((line for line in lines if line.strip()), b"")
    try:
        row = _parse(first)
    except (ValueError, RecursionError):
        return False
    row = row if isinstance(row, dict) else {}
    return "concept_id" in row and not isinstance(row.get("results"), list)


def _lines(stored: StoredFile) -> Iterator[tuple[str, object]]:
    with stored.path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _parse(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    stored.torn = f"line {number}"
                    return
                raise _wrong(stored.path, error, number) from error
            yield f"line {number}", row


def _whole(file: StoredFile) -> Iterator[tuple[str, object]]:
    path = file.path
    if path.stat().st_size > MAX_BYTES:
        size = f"{MAX_BYTES // 2**30} GiB"
        large = f"{path}: is larger than {size}, and must be read whole into memory"
        raise InputError(f"{large}; give the run's {JOURNAL}, or write one result per line")
    try:
        found = _parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _wrong(path, error) from error
    if isinstance(found, list):
        yield from ((f"[{number}]", row) for number, row in enumerate(found))
    elif isinstance(found, dict) and isinstance(found.get("results"), list):
        rows = found.pop("results")
        file.head |= found
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
    """What to raise for invalid JSON; `line` is 0 if the file was read whole."""
    if isinstance(error, UnicodeDecodeError):
        return error
    if isinstance(error, json.JSONDecodeError):
        begun = line or error.doc[: error.pos].strip()
        what = "is neither a result file nor JSON lines"
        what = f"not valid JSON: {error.msg}" if begun else what
        line = line or error.lineno
    elif isinstance(error, RecursionError):
        what = "nested too deep"
    else:  # Python takes no integer of more than 4,300 digits
        what = "has a number with too many digits"
    return InputError(f"{path}, line {line}: {what}" if line else f"{path}: {what}")
