"""Each arm answering freely compared with the same arm constrained by the task's grammar."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vllm_eval.compare.paired import Paired, compare_cases
from vllm_eval.compare.summary import Comparison, Summary, compare_arms
from vllm_eval.diagnose.survey import ArmTally
from vllm_eval.records import BASELINE, CONSTRAINED, Outcome

NOTE = (
    "free and constrained answers share each step of the engine, so the masks slow "
    "both: to measure their cost, compare a run with `constrain: only` with one with "
    "`constrain: none`"
)


@dataclass(frozen=True, slots=True)
class Side:
    """One arm, free or constrained."""

    arm: str
    summary: Summary
    truncated: int
    """Answers of which the last attempt was truncated at the token limit."""
    attempts: int
    output_tokens: int
    """Of all attempts."""
    tokens_per_attempt: float | None
    """Mean; None without an attempt."""
    tokens_per_s: float | None
    """Decoding speed of one answer, median over the attempts; None if none was timed."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One arm both ways."""

    free: Side
    constrained: Side
    paired: Paired
    """The constrained answers against the free ones, case by case."""


@dataclass(frozen=True, slots=True)
class Constrained:
    """What constrained decoding does; without arms where no run had both ways."""

    mode: Literal["none", "beside", "only"]
    """`only`: every figure of the run is of constrained answers."""
    arms: Mapping[str, Variant] = field(default_factory=dict)
    """By the free arm."""
    students: Mapping[str, Paired] = field(default_factory=dict)
    """By the free student: constrained, against the constrained baseline."""
    note: str = NOTE


def compare_constrained(
    mode: Literal["none", "beside", "only"],
    outcomes: Sequence[Outcome],
    free: Comparison,
    tallies: Mapping[str, ArmTally],
    drawn: Iterable[str],
) -> Constrained:
    """Compare every arm of `free` with its constrained variant, where the run has variants.

    `outcomes` and the `tallies` of attempts are of all arms, `free` is of the free ones;
    `drawn` are the ids of the cases in the order drawn.
    """
    if mode != "beside":
        return Constrained(mode)
    names, level = [arm + CONSTRAINED for arm in free.arms], free.confidence
    constrained = compare_arms(outcomes, names, BASELINE + CONSTRAINED, level, drawn)
    return Constrained(
        mode,
        arms={
            arm: Variant(
                _side(arm, free, tallies),
                _side(arm + CONSTRAINED, constrained, tallies),
                compare_cases(constrained.cases[arm + CONSTRAINED], free.cases[arm], arm, level),
            )
            for arm in free.arms
        },
        students={
            name.removesuffix(CONSTRAINED): pair for name, pair in constrained.students.items()
        },
    )


def _side(arm: str, comparison: Comparison, tallies: Mapping[str, ArmTally]) -> Side:
    tally = tallies.get(arm, ArmTally())
    attempts, tokens = tally.together().made, tally.together().output_tokens
    speeds = [1 / seconds for seconds in tally.itl if seconds > 0]
    return Side(
        arm=arm,
        summary=comparison.arms[arm],
        truncated=tally.truncated,
        attempts=attempts,
        output_tokens=tokens,
        tokens_per_attempt=tokens / attempts if attempts else None,
        tokens_per_s=statistics.median(speeds) if speeds else None,
    )
