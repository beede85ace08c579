"""What the gate says of a student: the word, every rule behind it, and how certain it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from vllm_eval.compare.betting import Evidence
from vllm_eval.config.settings import CONFIDENCE, Select

NOT_FINISHED = "NOT FINISHED"
"""Instead of a verdict while outcomes are pending: a partial run neither passes nor fails."""

TOLERANCE = 1e-9
"""A value on its threshold passes, whichever way its last bit was rounded."""

Kind = Literal[
    "answered",
    "valid_rate",
    "baseline_mean",
    "ratio",
    "ratio_low",
    "ratio_all",
    "student_mean",
    "student_std",
    "lowest_case",
    "distance",
    "whole_files",
]
Word = Literal["PASS", "FAIL", "UNDECIDED"]
WORDS: tuple[Word, ...] = ("PASS", "UNDECIDED", "FAIL")
"""Best first."""
State = Literal["", "shown", "refuted", "open"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition of the gate, with its number."""

    kind: Kind
    arm: str
    """The arm that must meet it."""
    name: str
    """For a reader: the kind, with the names of the arms."""
    value: float | None
    """None if the number does not exist; the rule then fails."""
    threshold: float
    margin: float | None
    """How far the value is on the good side of the threshold; negative where the rule fails."""
    passed: bool
    reason: str
    """Why it failed; empty where it passed."""
    bound: Literal["at least", "at most"] = "at least"
    """Which side of the threshold is good; the threshold itself always is."""
    state: State = ""
    """What the evidence says at the level of `gate.certify`; empty without it, and for a rule that
    is about the cases at hand alone."""
    evidence: Evidence | None = None
    """For the same rule of all cases like these, with failed answers as 0."""

    @property
    def word(self) -> Word:
        """UNDECIDED if the evidence decides, and neither shows the rule nor refutes it."""
        if self.passed:
            return "PASS"
        return "FAIL" if self.state in ("", "refuted") else "UNDECIDED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's verdict on one student, and how certain it is."""

    arm: str
    word: Word
    """UNDECIDED only with `gate.certify`."""
    rules: tuple[Rule, ...]
    pass_chance: float | None = None
    """Share of resamples of the cases on which the same rules pass; None without cases.

    Leaves out what the rules say of other cases (`gate.confidence`, `gate.certify`). 0 if an answer
    is missing, because that does not depend on which cases were drawn.
    """
    cases_to_settle: int | None = None
    """About how many cases settle what is in doubt; None where nothing is, or none is known."""
    unsettled: str = ""
    """Why there is no such number."""
    p: float = 1.0
    """Chance of such evidence for every rule, at most, if one of them did not hold."""
    p_corrected: float = 1.0
    """`p`, corrected for the number of students (Holm 1979)."""
    level: float = CONFIDENCE
    """That of `gate.certify`, or else the one at which `certified` is said."""
    certified: Word = "FAIL"
    """The word that `gate.certify` says, or would say, at `level`."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the word, one sentence each."""

    @property
    def passed(self) -> bool:
        """Whether the student may ship."""
        return self.word == "PASS"


def overall(parts: Iterable[Rule | Verdict]) -> Word:
    """Of all rules of a student, or of all students: PASS if each passes, FAIL if one fails."""
    words = {part.word for part in parts}
    return "FAIL" if "FAIL" in words else "UNDECIDED" if "UNDECIDED" in words else "PASS"


def word_on(students: Collection[Verdict], select: Select) -> Word:
    """The gate's word on all students of a run together, by `gate.select`.

    `all`: PASS if each passes, FAIL if one fails. `best`: PASS if any passes, and FAIL only if each
    fails. UNDECIDED otherwise.
    """
    if select == "all":
        return overall(students)
    return next((word for word in WORDS if any(one.word == word for one in students)), "FAIL")


def to_json(verdicts: Iterable[Verdict], pending: int) -> list[dict[str, Any]]:
    """Verdicts as JSON values; without the word PASS or FAIL while outcomes are `pending`."""
    return [
        asdict(v) | {"passed": v.passed, "verdict": NOT_FINISHED if pending else v.word}
        for v in verdicts
    ]


def from_json(rows: Iterable[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The verdicts that `to_json` wrote."""
    return TypeAdapter(tuple[Verdict, ...]).validate_python(tuple(rows))
