"""From outcomes to the numbers per arm and tier that the gate and the report stand on."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_eval.records import Outcome

NO_TIER = "-"


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm, or one tier of it. Scores are None where no answer kept the contract."""

    total: int
    valid: int
    failed: int
    """Every case that is not valid, whatever the cause."""
    errors: int
    """Of those, the cases without an answer: our failure, not the model's."""
    first_valid: int
    """Cases whose first attempt already kept the contract."""
    valid_rate: float
    first_valid_rate: float
    mean: float | None
    """Over the valid cases, as are std (population), min and max."""
    std: float | None
    min: float | None
    max: float | None
    mean_all: float | None
    """Over every case, each that is not valid counted as 0."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All arms side by side."""

    arms: Mapping[str, Summary]
    tiers: Mapping[str, Mapping[str, Summary]]
    """By arm, then by tier; a missing tier is called `-`."""
    reasons: Mapping[str, Mapping[str, int]]
    """By arm: final reasons and their counts, most frequent first."""


def compare(outcomes: Sequence[Outcome], arms: Sequence[str]) -> Comparison:
    """Summarise every arm of `arms`, also one without any outcome."""
    by_arm = {arm: [o for o in outcomes if o.arm == arm] for arm in arms}
    return Comparison(
        arms={arm: summarise(rows) for arm, rows in by_arm.items()},
        tiers={
            arm: {tier: summarise(part) for tier, part in sorted(_by_tier(rows).items())}
            for arm, rows in by_arm.items()
        },
        reasons={arm: _reasons(rows) for arm, rows in by_arm.items()},
    )


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Counts and score statistics of some outcomes; defined for none of them too.

    Source: `product_owner.md`, "Aggregates and gate".
    """
    total = len(outcomes)
    scores = [o.score for o in outcomes if o.status == "success" and o.score is not None]
    judged = sum(o.status != "error" for o in outcomes)
    first = sum(o.first_valid for o in outcomes)
    return Summary(
        total=total,
        valid=len(scores),
        failed=total - len(scores),
        errors=total - judged,
        first_valid=first,
        valid_rate=len(scores) / total if total else 0.0,
        first_valid_rate=first / total if total else 0.0,
        mean=statistics.fmean(scores) if scores else None,
        std=statistics.pstdev(scores) if scores else None,
        min=min(scores, default=None),
        max=max(scores, default=None),
        mean_all=sum(scores) / total if total else None,
        attempts=sum(o.attempts for o in outcomes),
    )


def _by_tier(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    tiers: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tiers.setdefault(outcome.tier or NO_TIER, []).append(outcome)
    return tiers


def _reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.reason is not None:
            counts[outcome.reason] = counts.get(outcome.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
