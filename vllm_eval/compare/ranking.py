"""The students side by side: best first, and each compared with the next."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from vllm_eval.compare.cases import Cases
from vllm_eval.compare.intervals import Interval, make_interval, mean_interval
from vllm_eval.compare.paired import holm, pair_all, paired_means
from vllm_eval.compare.summary import Comparison
from vllm_eval.compare.verdict import NOT_FINISHED, WORDS, Verdict

BY = "verdict, then mean (failures = 0)"
CORRECTION = "Holm 1979"
ALPHA = 0.05
"""Two students are tied where the test of one against the next is not below it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A student's place among the students."""

    rank: int
    """From 1; tied students have ranks of their own, because ties do not add up: the first of
    several tied in a row may well be better than the last."""
    arm: str
    word: str
    """Of its verdict, by which students are ranked first."""
    mean_all: Interval
    """Mean over all cases, with failed answers as 0; by it among those of one verdict."""
    p: float
    """Of the test of its scores against the baseline's."""
    p_corrected: float
    """`p`, corrected for the number of students."""
    ahead: Interval | None
    """Its `mean_all` minus the next student's, over the cases of both, at the level of one
    interval; None for the last."""
    p_next: float | None
    """Of the test that both means are the same, corrected like `p`; None for the last."""
    tied: bool
    """Whether the next student has the same verdict and a mean that cannot be told apart."""


def rank(comparison: Comparison, verdicts: Sequence[Verdict]) -> tuple[Ranked, ...]:
    """Students by verdict, then by mean with failures as 0; equal ones by name, 9 before 10.

    So the order in which they are given does not matter.
    """
    words = {verdict.arm: verdict.word for verdict in verdicts}
    arms, cases = comparison.arms, comparison.cases

    def place(arm: str) -> tuple[int, float, list[tuple[int, str]], str]:
        return WORDS.index(words[arm]), -(arms[arm].mean_all or 0.0), _by_number(arm), arm

    order, level = sorted(words, key=place), comparison.confidence
    own = [comparison.students[arm].scores.p if arm in comparison.students else 1 for arm in order]
    pairs = [pair_all(cases[one], cases[two]) for one, two in itertools.pairwise(order)]
    nexts, corrected = holm([paired_means(*pair).p for pair in pairs]), holm(own)
    ranked: list[Ranked] = []
    for number, (arm, following) in enumerate(zip(order, (*order[1:], None), strict=True)):
        same = following is not None and words[following] == words[arm]
        ranked.append(
            Ranked(
                rank=number + 1,
                arm=arm,
                word=words[arm],
                mean_all=_mean_all(cases[arm], level),
                p=own[number],
                p_corrected=corrected[number],
                ahead=make_interval(*pairs[number], "difference", level) if following else None,
                p_next=nexts[number] if following else None,
                tied=same and nexts[number] >= ALPHA,
            )
        )
    return tuple(ranked)


def _by_number(arm: str) -> list[tuple[int, str]]:
    """A key to sort by, in which numbers count by their value."""
    parts = re.split(r"([0-9]+)", arm)  # text and digits in turn
    return [(len(part.lstrip("0")) * (place % 2), part) for place, part in enumerate(parts)]


def to_json(ranking: Sequence[Ranked], pending: int) -> dict[str, Any]:
    """The ranking as JSON values, without the words PASS and FAIL while outcomes are `pending`."""
    word = {"word": NOT_FINISHED} if pending else {}
    rows = [asdict(ranked) | word for ranked in ranking]
    return {"by": BY, "correction": CORRECTION, "students": rows}


def from_json(data: Mapping[str, Any]) -> tuple[Ranked, ...]:
    """The ranking that `to_json` wrote."""
    return TypeAdapter(tuple[Ranked, ...]).validate_python(tuple(data["students"]))


def _mean_all(cases: Cases, confidence: float) -> Interval:
    import numpy as np

    scores = [case.score_all for case in cases.values() if case.scored]
    if not scores:
        return Interval(None, None, None, confidence, "none", "no case has a known score")
    return mean_interval(np.array(scores), 0.0, 1.0, confidence)
