"""Stored answers, read one by one: our result files and journals, and the predecessor's files.

A file is never loaded whole. It is a JSON object with a list `results`, a bare list of results,
or results one after the other (JSON lines); which of them is seen from what it holds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE, Outcome
from vllm_eval.rescore.json_text import TORN, JsonText
from vllm_eval.store import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_eval.records import Key, Status

_TIMESTAMP = re.compile(r"[_.-]*(?<!\d)20\d\d-?\d\d-?\d\d.*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """One stored answer with what was recorded of it."""

    path: Path
    place: str
    """Where it stands in its file."""
    arm: str
    concept_id: str
    tier: str | None
    sample: int
    """As the file counts them, else how often its case stood there before."""
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
    return list(dict.fromkeys(found))


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


def recorded_outcome(answer: Answer) -> Outcome:
    """What was recorded of an answer, as an outcome; no status counts as not valid."""
    valid = answer.status == "success"
    failed: Status = "error" if answer.text is None else "format_error"
    return Outcome(
        arm=answer.arm,
        concept_id=answer.concept_id,
        tier=answer.tier,
        sample=answer.sample,
        status="success" if valid else failed,
        reason=None if valid else answer.reason or failed,
        score=answer.score,
        attempts=answer.attempts,
        first_valid=valid and answer.attempts == 1,
    )


def arm_of(path: Path) -> str:
    """The arm that a file's name tells: `baseline`, or the name up to its time."""
    if path.name.lower().startswith(BASELINE):
        return BASELINE
    return _TIMESTAMP.sub("", path.stem) or path.stem


def _read(path: Path, head: dict[str, Any]) -> Iterator[Answer]:
    """Every answer; `head` is filled with the other keys of the file as they are met."""
    before: dict[tuple[str, str], int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for place, value in _rows(JsonText(path, file), head):
                row, arm, concept_id = _identify(path, place, value, head)
                nth = before.get((arm, concept_id), 0)
                before[arm, concept_id] = nth + 1
                yield _answer(path, place, row, (arm, concept_id, nth))
    except UnicodeDecodeError as error:
        msg = f"{path}: is not UTF-8 text: {error.reason}"
        raise InputError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot read the answers: {error.strerror}"
        raise InputError(msg) from error


def _rows(text: JsonText, head: dict[str, Any]) -> Iterator[tuple[str, object]]:
    first = text.peek()
    if first == "[":
        yield from text.items("")
    elif first == "{":
        listed = False
        own: dict[str, Any] = {}
        for key in text.members():
            if key == "results" and text.peek() == "[":
                listed = True
                yield from text.items("results")
            else:
                own[key] = head[key] = text.value()
        if not listed and "concept_id" in own:
            head.clear()  # what was read is no head but the first of many
            yield "line 1", own
            while text.peek():
                place = f"line {text.line()}"
                row = text.value(may_be_torn=True)
                if row is TORN:
                    return
                yield place, row
        elif not listed:
            raise text.wrong("has neither a list `results` nor a `concept_id`")
    else:
        raise text.wrong("is neither a result file nor JSON lines")
    if text.peek():
        raise text.wrong("goes on after its end")


def _identify(
    path: Path, place: str, row: object, head: Mapping[str, Any]
) -> tuple[dict[str, Any], str, str]:
    if not isinstance(row, dict):
        msg = f"{path}, {place}: must be a JSON object"
        raise InputError(msg)
    concept_id = row.get("concept_id")
    if concept_id in (None, "") or isinstance(concept_id, dict | list):
        msg = f"{path}, {place}: lacks `concept_id`, so its requirements cannot be found"
        raise InputError(msg)
    return row, _text(row, "arm") or _text(head, "arm") or arm_of(path), str(concept_id)


def _answer(path: Path, place: str, row: dict[str, Any], key: Key) -> Answer:
    status, text = _text(row, "status"), _text(row, "raw_response")
    attempts = row.get("attempt", row.get("attempts"))
    sample = row.get("sample")
    return Answer(
        path=path,
        place=place,
        arm=key[0],
        concept_id=key[1],
        tier=_text(row, "tier"),
        sample=sample if isinstance(sample, int) else key[2],
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
