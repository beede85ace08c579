"""What was recorded of a stored answer: its status, reason, score and attempts, as far as usable.

Nothing here looks at the answer's text: a record is taken at its word, or said to be unusable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vllm_eval.conclude.repaired import REPAIRED
from vllm_eval.records import Outcome, Status
from vllm_eval.tasks import open_task
from vllm_eval.tasks.check import compile_contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_eval.records import Key

STATUSES: tuple[Status, ...] = get_args(Status)
MAX_SHOWN = 40
"""Characters shown of a recorded value that cannot be used."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
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
    status: Status | None
    """As recorded; None where nothing was, or a word we do not know."""
    unknown_status: str
    """That word; empty where there is none."""
    recorded_status: str | None
    """The status in the file's own word."""
    reason: str | None
    score: float | None
    """As recorded; None where nothing was, or no number from 0 to 1."""
    unusable_score: str
    """What was recorded instead of such a number; empty where nothing was."""
    text: str | None
    """The raw response; None where there is none to grade."""
    ended: bool
    """Whether the file says that the answer was not truncated at the token limit."""
    counted_sample: bool
    """Whether `sample` is not the file's but counted by us."""

    def outcome(self) -> Outcome:
        """What was recorded, as an outcome; without a known status it is not valid."""
        status = self.status or "format_error"
        valid = status == "success"
        return Outcome(
            arm=self.arm,
            concept_id=self.concept_id,
            tier=self.tier,
            sample=self.sample,
            status=status,
            reason=None if valid else self.reason or status,
            score=self.score,
            attempts=self.attempts,
            first_valid=valid and self.attempts == 1,
        )


def read_answer(path: Path, place: str, row: dict[str, Any], key: Key) -> StoredAnswer:
    """The answer of a row; `key` has its arm and case, and the sample where the row has none."""
    status, unknown = _status(row)
    score, unusable = _score(row)
    text, sample = text_of(row, "raw_response"), row.get("sample")
    counted = not isinstance(sample, int) or isinstance(sample, bool)
    error = text_of(row, "error")  # where the predecessor wrote the reason
    return StoredAnswer(
        path=path,
        place=place,
        arm=key[0],
        concept_id=key[1],
        tier=text_of(row, "tier"),
        sample=key[2] if counted else row["sample"],
        attempts=_attempts(row),
        final=row.get("final") is not False,
        status=status,
        unknown_status=unknown,
        recorded_status=text_of(row, "status"),
        reason=text_of(row, "reason") or (error if error in _predecessors_reasons() else None),
        score=score,
        unusable_score=unusable,
        text=None if status == "error" and not text else text,
        ended=row.get("truncated") is False,
        counted_sample=counted,
    )


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """The text under `key`; None where there is none."""
    value = row.get(key)
    return value if isinstance(value, str) else None


def _status(row: Mapping[str, Any]) -> tuple[Status | None, str]:
    """The recorded status, and the word in its place where that is none we know."""
    value = row.get("status")
    if value == REPAIRED:  # beside what a repair makes of it, such an answer stays what it was
        value = "format_error"
    known = next((status for status in STATUSES if status == value), None)
    return known, "" if known or value is None else _shown(value)


def _score(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """The recorded score, and what is in its place where that is no number from 0 to 1."""
    value = row.get("score")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (number and 0 <= value <= 1):  # without NaN, and without overflow
        return None if value is None else float(value), ""
    return None, _shown(value)


def _attempts(row: Mapping[str, Any]) -> int:
    """How many attempts were made, given as a number or as their list; 1 where not said."""
    value = row.get("attempt", row.get("attempts"))
    if isinstance(value, list):
        value = len(value)
    return value if isinstance(value, int) and value > 0 else 1


def _shown(value: object) -> str:
    """A value as it can be put into a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


@cache
def _predecessors_reasons() -> frozenset[str]:
    """It knew one task."""
    return frozenset(compile_contract(open_task("product_owner").declaration).reasons)
