"""Stored answers, read one by one: our result files and journals, and the predecessor's files.

A file is never loaded whole. It is a JSON object with a list `results`, a bare list of results,
or results one after the other (JSON lines); which of them is seen from what it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.rescore.json_text import TORN, JsonText
from vllm_eval.rescore.recorded import (
    STATUSES,
    Answer,
    attempts_of,
    reason_of,
    score_of,
    status_of,
    text_of,
)
from vllm_eval.store.folder import JOURNAL
from vllm_eval.store.journal import parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vllm_eval.records import Key

MAX_WORDS = 5
"""Different unknown words for a status that are told apart."""
_TIMESTAMP = re.compile(r"[_.-]*(?<!\d)20\d\d-?\d\d-?\d\d.*$", re.DOTALL)


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

    def meet(self, answer: Answer) -> None:
        """Take note of an answer.

        Raises:
            InputError: its case and sample had an outcome before.
        """
        key = (answer.arm, answer.concept_id, answer.sample)
        if answer.final and self.keys.get(key):
            msg = (
                f"{answer.path}, {answer.place}: case and sample of {answer.arm} are there twice, "
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
            found.append(f"{path}, {self.torn}: is cut off and was passed over")
        if self.counted:
            words = "repeat a concept_id without a `sample`, and count as its further samples"
            found.append(f"{path}: {self.counted} answers {words}")
        if self.statuses:
            words = ", ".join(f"{name} ({count})" for name, count in self.statuses.items())
            known = ", ".join(STATUSES)
            found.append(f"{path}: unknown status {words}, not compared; known are {known}")
        return tuple(found)


def open_source(path: Path) -> Source:
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
        msg = f"{path}: holds no answer"
        raise InputError(msg)
    config, stated = reading.head.get("config"), reading.head.get("total_samples")
    return Source(
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


def read_answers(source: Source) -> Iterator[Answer]:
    """The answers of a checked file, in its order, one in memory at a time."""
    return _read(source.path, _Reading())


def arm_of(path: Path) -> str:
    """The arm that a file's name tells: `baseline`, or the name up to its time."""
    if path.name.lower().startswith(BASELINE):
        return BASELINE
    return _TIMESTAMP.sub("", path.stem) or path.stem


def _read(path: Path, reading: _Reading) -> Iterator[Answer]:
    """Every answer; what else is met in the file is put into `reading`."""
    before: dict[tuple[str, str], int] = {}
    try:
        for place, value in _values(path, reading):
            row, arm, concept_id = _identify(path, place, value, reading.head)
            nth = before.get((arm, concept_id), 0)
            answer = _answer(path, place, row, (arm, concept_id, nth))
            before[arm, concept_id] = nth + answer.final
            yield answer
    except UnicodeDecodeError as error:
        msg = f"{path}: is not UTF-8 text: {error.reason}"
        raise InputError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot read the answers: {error.strerror}"
        raise InputError(msg) from error


def _values(path: Path, reading: _Reading) -> Iterator[tuple[str, object]]:
    """Place and content of every answer, of a journal through all its parts."""
    for part in parts(path) if path.name == JOURNAL else [path]:
        with part.open(encoding="utf-8-sig", newline="") as file:
            for place, value in _rows(JsonText(part, file), reading):
                yield (place if part == path else f"{part.name}, {place}"), value


def _rows(text: JsonText, reading: _Reading) -> Iterator[tuple[str, object]]:
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
                own[key] = reading.head[key] = text.value()
        if not listed and "concept_id" in own:
            reading.head.clear()  # what was read is no head but the first of many
            yield "line 1", own
            while text.peek():
                place = f"line {text.line()}"
                row = text.value(may_be_torn=True)
                if row is TORN:
                    reading.torn = place
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
    return row, text_of(row, "arm") or text_of(head, "arm") or arm_of(path), str(concept_id)


def _answer(path: Path, place: str, row: dict[str, Any], key: Key) -> Answer:
    status, unknown = status_of(row)
    score, unusable = score_of(row)
    text, sample = text_of(row, "raw_response"), row.get("sample")
    counted = not isinstance(sample, int) or isinstance(sample, bool)
    return Answer(
        path=path,
        place=place,
        arm=key[0],
        concept_id=key[1],
        tier=text_of(row, "tier"),
        sample=key[2] if counted else row["sample"],
        attempts=attempts_of(row),
        final=row.get("final") is not False,
        status=status,
        unknown_status=unknown,
        recorded_status=text_of(row, "status"),
        reason=reason_of(row),
        score=score,
        unusable_score=unusable,
        text=None if status == "error" and not text else text,
        ended=row.get("truncated") is False,
        counted_sample=counted,
    )
