"""Stored answers, read one by one: our result files and journals, and the predecessor's files.

A file is never loaded whole. It is a JSON object with a list `results`, a bare list of results,
or results one after the other (JSON lines); which of them is seen from what it holds.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.store import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PIECE = 2**20
"""Characters read at a time."""
MAX_VALUE = 2**26
"""Characters of the longest single result, or other value, that is taken."""
CONFIG_FILE = "config.yaml"
_SPACE = re.compile(r"[ \t\r\n]*")
_TIMESTAMP = re.compile(r"[_.-]*(?<!\d)20\d\d-?\d\d-?\d\d.*$", re.DOTALL)
_TORN = object()


@dataclass(frozen=True, slots=True)
class Answer:
    """One stored answer with what was recorded of it."""

    place: str
    """Where it stands in its file."""
    arm: str
    concept_id: str
    tier: str | None
    sample: int | None
    """None where the file does not count samples."""
    attempts: int
    """How many were made up to this one."""
    final: bool
    """Whether it is the outcome of its case; false for a failed attempt in a journal."""
    status: str | None
    reason: str | None
    score: float | None
    text: str | None
    """The raw response; None where there is none to judge."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of stored answers, checked from end to end."""

    path: Path
    config: Mapping[str, Any]
    """The configuration stored with it; empty where there is none."""
    count: int
    """Answers in it."""
    arms: tuple[str, ...]
    ids: Mapping[str, str]
    """Each concept id with the place of its first answer."""


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of answers behind `paths`, each of which is a file or a run folder.

    Raises:
        InputError: there is no such file, or a folder without answers.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [*sorted(path.glob(f"{BASELINE}*.json")), *sorted(path.glob("student*.json"))]
        if not inside and (path / JOURNAL).is_file():
            inside = [path / JOURNAL]
        if not inside:
            msg = f"{path}: holds no {BASELINE}_*.json, student_*.json or {JOURNAL}"
            raise InputError(msg)
        found += inside
    return found


def open_source(path: Path) -> Source:
    """Check every answer of the file at `path`.

    Raises:
        InputError: file, line and key that cannot be used.
    """
    head: dict[str, Any] = {}
    count = 0
    arms: dict[str, None] = {}
    ids: dict[str, str] = {}
    for answer in _read(path, head):
        count += 1
        arms[answer.arm] = None
        ids.setdefault(answer.concept_id, answer.place)
    if not count:
        msg = f"{path}: holds no answer"
        raise InputError(msg)
    config = head.get("config")
    return Source(path, config if isinstance(config, dict) else {}, count, tuple(arms), ids)


def read_answers(source: Source) -> Iterator[Answer]:
    """The answers of a checked file, in its order, one in memory at a time."""
    return _read(source.path, {})


def arm_of(path: Path) -> str:
    """The arm that a file's name tells: `baseline`, or the name up to its time."""
    if path.name.lower().startswith(BASELINE):
        return BASELINE
    return _TIMESTAMP.sub("", path.stem) or path.stem


def _read(path: Path, head: dict[str, Any]) -> Iterator[Answer]:
    """Every answer; `head` is filled with the other keys of the file as they are met."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for place, row in _rows(_Text(path, file), head):
                yield _answer(path, place, row, head)
    except UnicodeDecodeError as error:
        msg = f"{path}: is not UTF-8 text: {error.reason}"
        raise InputError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot read the answers: {error.strerror}"
        raise InputError(msg) from error


def _rows(text: _Text, head: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    first = text.peek()
    if first == "[":
        yield from _list(text, "")
    elif first == "{":
        listed = False
        own: dict[str, Any] = {}
        for key in _keys(text):
            if key == "results" and text.peek() == "[":
                listed = True
                yield from _list(text, "results")
            else:
                own[key] = head[key] = text.value()
        if not listed and "concept_id" in own:
            head.clear()  # what was read is no head but the first of many
            yield "line 1", own
            while text.peek():
                place = f"line {text.line()}"
                row = text.value(may_be_torn=True)
                if row is _TORN:
                    return
                yield place, row
        elif not listed:
            raise text.wrong("has neither a list `results` nor a `concept_id`")
    else:
        raise text.wrong("is neither a result file nor JSON lines")
    if text.peek():
        raise text.wrong("goes on after its end")


def _keys(text: _Text) -> Iterator[str]:
    """The keys of an object; whoever asks for the next has read the value."""
    text.take("{")
    while text.peek() != "}":
        key = text.value() if text.peek() == '"' else None
        if key is None:
            raise text.wrong("expected a key")
        text.take(":")
        yield key
        if text.peek() != "}":
            text.take(",")
    text.take("}")


def _list(text: _Text, name: str) -> Iterator[tuple[str, Any]]:
    text.take("[")
    number = 0
    while text.peek() != "]":
        yield f"line {text.line()}, {name}[{number}]", text.value()
        number += 1
        if text.peek() != "]":
            text.take(",")
    text.take("]")


def _answer(path: Path, place: str, row: Any, head: Mapping[str, Any]) -> Answer:
    if not isinstance(row, dict):
        msg = f"{path}, {place}: must be a JSON object"
        raise InputError(msg)
    concept_id = row.get("concept_id")
    if concept_id in (None, "") or isinstance(concept_id, dict | list):
        msg = f"{path}, {place}: lacks `concept_id`, so its requirements cannot be found"
        raise InputError(msg)
    status, text = _text(row, "status"), _text(row, "raw_response")
    attempts = row.get("attempt", row.get("attempts"))
    sample = row.get("sample")
    return Answer(
        place=place,
        arm=_text(row, "arm") or _text(head, "arm") or arm_of(path),
        concept_id=str(concept_id),
        tier=_text(row, "tier"),
        sample=sample if isinstance(sample, int) else None,
        attempts=attempts if isinstance(attempts, int) else 1,
        final=row.get("final") is not False,
        status=status,
        reason=_text(row, "reason"),
        score=_number(row.get("score")),
        text=None if status == "error" and not text else text,
    )


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


class _Text:
    """A JSON text of any length, of which one value at a time is in memory."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._buffer, self._at = "", 0
        self._lines, self._counted = 1, 0
        self._decoder = json.JSONDecoder(strict=False)

    def line(self) -> int:
        """The line reached, counted from 1."""
        self._lines += self._buffer.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Go past `character`, which must come next."""
        if self.peek() != character:
            raise self.wrong(f"expected {character!r}")
        self._at += 1

    def value(self, *, may_be_torn: bool = False) -> Any:
        """The next value, whole; `_TORN` for one cut off by the file's end where that may be."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer) or not self._more():  # else a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                rest = len(self._buffer) - self._at
                if rest > MAX_VALUE or not self._more():
                    if may_be_torn and "\n" not in self._buffer[self._at :]:
                        return _TORN
                    self._at = min(error.pos, len(self._buffer))
                    what = f"longer than {MAX_VALUE} characters, or " if rest > MAX_VALUE else ""
                    raise self.wrong(f"{what}not valid JSON: {error.msg}") from error
            except RecursionError as error:
                raise self.wrong("nested too deep") from error

    def wrong(self, what: str) -> InputError:
        """An error at the place reached."""
        return InputError(f"{self._path}, line {self.line()}: {what}")

    def _more(self) -> bool:
        """Read on: twice what is held, so that a long value is not tried again too often."""
        held = self._buffer[self._at :]
        piece = self._file.read(max(PIECE, len(held)))
        if piece:
            self.line()
            self._buffer, self._at, self._counted = held + piece, 0, 0
        return bool(piece)
