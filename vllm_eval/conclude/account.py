"""What went wrong and what it cost, from every attempt in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vllm_eval.diagnose.example import make_example

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_eval.diagnose.example import Blocks, Example
    from vllm_eval.records import Attempt

MAX_EXAMPLES = 3
"""Examples kept of each kind of failure; the journal holds all of them."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The failed attempts of one arm and tier with one reason."""

    reason: str
    tier: str | None
    arm: str
    attempts: int
    outcomes: int
    """Of the attempts, those after which none was left: the answer stayed a failure."""
    truncated: int
    """Of the attempts, those truncated at the token limit."""
    examples: tuple[Example, ...]
    """The first few, each of another case."""


@dataclass(frozen=True, slots=True)
class AttemptScores:
    """All attempts of one arm with the same number."""

    attempt: int
    """Counted from 1."""
    made: int
    valid: int
    valid_share: float
    """Of those made."""
    mean: float | None
    """Score of the valid ones."""
    valid_by_then: float
    """Share of all answers that were valid after at most so many attempts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What some attempts took."""

    attempts: int
    output_tokens: int
    seconds: float
    """Summed over the attempts; they ran side by side, so the run took less."""


@dataclass(frozen=True, slots=True)
class ArmAttempts:
    """Score and cost of one arm by number of the attempt; over answers, not over cases."""

    by_attempt: tuple[AttemptScores, ...]
    all: Cost
    retries: Cost
    """Every attempt but the first."""
    counts: Literal["last"] = "last"
    """The attempt that makes the outcome."""


@dataclass(frozen=True, slots=True)
class Account:
    """All attempts of a run."""

    failures: tuple[FailureGroup, ...]
    """Most frequent first."""
    attempts: Mapping[str, ArmAttempts]
    """By arm."""


def take_account(attempts: Iterable[Attempt], blocks: Blocks) -> Account:
    """Group the failures and add up the costs, with one attempt in memory at a time.

    Args:
        attempts: of all arms, in the order of the journal.
        blocks: gives the text of each block of an answer, by its label in lower case.
    """
    groups: dict[tuple[str, str | None, str], _Group] = {}
    tallies: dict[str, dict[int, _Tally]] = {}
    for attempt in attempts:
        numbers = tallies.setdefault(attempt.arm, {})
        _count(numbers.setdefault(attempt.attempt, _Tally()), attempt)
        if attempt.status != "success":
            key = (attempt.reason or attempt.status, attempt.tier, attempt.arm)
            _collect(groups.setdefault(key, _Group()), attempt, blocks)
    found = [
        FailureGroup(*key, group.attempts, group.outcomes, group.truncated, tuple(group.examples))
        for key, group in groups.items()
    ]
    found.sort(key=lambda g: (-g.attempts, -g.outcomes, g.reason, g.tier or "", g.arm))
    return Account(tuple(found), {arm: _sum_up(numbers) for arm, numbers in tallies.items()})


@dataclass(slots=True)
class _Group:
    attempts: int = 0
    outcomes: int = 0
    truncated: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    made: int = 0
    valid: int = 0
    score: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def _collect(group: _Group, attempt: Attempt, blocks: Blocks) -> None:
    group.attempts += 1
    group.outcomes += attempt.final
    group.truncated += attempt.truncated
    if len(group.examples) >= MAX_EXAMPLES or any(
        example.concept_id == attempt.concept_id for example in group.examples
    ):
        return
    group.examples.append(make_example(attempt, blocks))


def _count(tally: _Tally, attempt: Attempt) -> None:
    tally.made += 1
    tally.tokens += attempt.output_tokens
    tally.seconds += attempt.total_s
    if attempt.status == "success":
        tally.valid += 1
        tally.score += attempt.score or 0.0


def _sum_up(numbers: Mapping[int, _Tally]) -> ArmAttempts:
    answers = max(tally.made for tally in numbers.values())
    rows, valid = [], 0
    for number, tally in sorted(numbers.items()):
        valid += tally.valid
        mean = tally.score / tally.valid if tally.valid else None
        share, by_then = tally.valid / tally.made, valid / answers
        rows.append(AttemptScores(number, tally.made, tally.valid, share, mean, by_then))
    return ArmAttempts(
        by_attempt=tuple(rows),
        all=_cost(numbers.values()),
        retries=_cost(tally for number, tally in numbers.items() if number > 1),
    )


def _cost(tallies: Iterable[_Tally]) -> Cost:
    rows = list(tallies)
    return Cost(
        sum(row.made for row in rows),
        sum(row.tokens for row in rows),
        sum(row.seconds for row in rows),
    )
