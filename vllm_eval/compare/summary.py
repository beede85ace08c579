"""From outcomes to the numbers per arm and tier that the gate and the report use."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from vllm_eval.compare.cases import Cases, CaseScore, aggregate
from vllm_eval.compare.paired import Paired, compare_cases
from vllm_eval.config.settings import CONFIDENCE
from vllm_eval.records import BASELINE, Outcome

NO_TIER = "-"


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm, or one tier of it. Scores are None if no answer kept the contract.

    Counts are of answers: the number of cases times the samples of each. Shares and scores are
    taken per case first (a case's score is the mean of its valid samples, its validity their
    share), then over the cases.
    """

    total: int
    valid: int
    failed: int
    """All answers that are not valid, whatever the cause."""
    errors: int
    """Of those, missing answers: our failure, not the model's."""
    first_valid: int
    """Answers whose first attempt already kept the contract."""
    valid_rate: float
    first_valid_rate: float
    mean: float | None
    """Over the cases with a valid answer; so are std (population), min and max."""
    std: float | None
    min: float | None
    max: float | None
    mean_all: float | None
    """Over all cases, with failed answers as 0; leaves out answers of unknown score."""
    attempts: int
    cases: int
    within_std: float | None
    """Spread of the answers to the same case; None with one sample per case."""
    between_std: float | None
    """Spread between cases, with `within_std` removed; None with one sample per case."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All arms side by side."""

    arms: Mapping[str, Summary]
    tiers: Mapping[str, Mapping[str, Summary]]
    """By arm, then by tier; a missing tier is called `-`."""
    reasons: Mapping[str, Mapping[str, int]]
    """By arm: final reasons and their counts, most frequent first."""
    students: Mapping[str, Paired] = field(default_factory=dict)
    """By student, against the baseline."""
    cases: Mapping[str, Cases] = field(default_factory=dict)
    """By arm, then by case, in the order that evidence is gathered in."""
    confidence: float = CONFIDENCE
    """Level of the intervals."""


def compare_arms(
    outcomes: Sequence[Outcome],
    arms: Sequence[str],
    baseline: str = BASELINE,
    confidence: float = CONFIDENCE,
    drawn: Iterable[str] | None = None,
) -> Comparison:
    """Summarise each of `arms`, even without outcomes, and compare it with the baseline.

    `drawn` are the ids of the cases in the order drawn; where that is not known, they are shuffled
    in a way that depends on the ids alone.
    """
    order = None if drawn is None else {name: place for place, name in enumerate(drawn)}
    by_arm = {arm: [o for o in outcomes if o.arm == arm] for arm in arms}
    by_case = {arm: _ordered(_by_case(rows), order) for arm, rows in by_arm.items()}
    summaries = {arm: summarise(rows, by_case[arm]) for arm, rows in by_arm.items()}
    students = {
        arm: compare_cases(by_case[arm], by_case[baseline], baseline, confidence)
        for arm in arms
        if baseline in by_case and arm != baseline
    }
    return Comparison(
        arms=summaries,
        tiers={
            arm: {tier: summarise(part) for tier, part in sorted(_grouped(rows, "tier").items())}
            for arm, rows in by_arm.items()
        },
        reasons={arm: _reasons(rows) for arm, rows in by_arm.items()},
        students=students,
        cases=by_case,
        confidence=confidence,
    )


def summarise(outcomes: Sequence[Outcome], by_case: Cases | None = None) -> Summary:
    """Counts and score statistics of outcomes of one arm; defined even for no outcomes.

    `by_case` holds the same outcomes by case, where that is known already.
    Source: `product_owner.md`, "Aggregates and gate".
    """
    by_case = _by_case(outcomes) if by_case is None else by_case
    cases = list(by_case.values())
    scores = [case.score for case in cases if case.score is not None]
    first = Counter(outcome.concept_id for outcome in outcomes if outcome.first_valid)
    first_rates = [first[name] / case.samples for name, case in by_case.items()]
    total, valid = len(outcomes), sum(case.valid for case in cases)
    within, between = _spreads(cases)
    return Summary(
        total=total,
        valid=valid,
        failed=total - valid,
        errors=sum(case.errors for case in cases),
        first_valid=sum(o.first_valid for o in outcomes),
        valid_rate=_mean([case.share for case in cases]) or 0.0,
        first_valid_rate=_mean(first_rates) or 0.0,
        mean=_mean(scores),
        std=statistics.pstdev(scores) if scores else None,
        min=min(scores, default=None),
        max=max(scores, default=None),
        mean_all=_mean([case.score_all for case in cases if case.scored]),
        attempts=sum(o.attempts for o in outcomes),
        cases=len(cases),
        within_std=within,
        between_std=between,
    )


def as_repaired(outcome: Outcome) -> Outcome:
    """An outcome as it would be, were its repair part of the answer."""
    if outcome.repair is None:
        return outcome
    return replace(outcome, status="success", reason=None, score=outcome.repair.score)


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, without the cases."""
    data = asdict(replace(comparison, cases={}))
    del data["cases"]
    return data


def comparison_from_json(data: Mapping[str, Any]) -> Comparison:
    """What `comparison_to_json` wrote, without the cases."""
    keys = ("arms", "tiers", "reasons", "students", "confidence")
    return TypeAdapter(Comparison).validate_python({key: data[key] for key in keys})


def _grouped(
    outcomes: Iterable[Outcome], by: Literal["concept_id", "tier"]
) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(getattr(outcome, by) or NO_TIER, []).append(outcome)
    return groups


def _by_case(outcomes: Iterable[Outcome]) -> dict[str, CaseScore]:
    return {case: aggregate(rows) for case, rows in _grouped(outcomes, "concept_id").items()}


def _ordered(cases: Cases, order: Mapping[str, int] | None) -> Cases:
    def shuffled(name: str) -> tuple[int, bytes]:
        place = len(order) if order else 0  # of one that was not drawn
        return place, hashlib.blake2b(name.encode("utf-8", "surrogatepass")).digest()

    def place(name: str) -> tuple[int, bytes]:
        return (order[name], b"") if order and name in order else shuffled(name)

    return {name: cases[name] for name in sorted(cases, key=place)}


def _spreads(cases: Sequence[CaseScore]) -> tuple[float | None, float | None]:
    """Standard deviations within and between cases, independent of each other.

    Source: Searle, Casella & McCulloch, Variance Components, 1992, section 3.6 (one-way random
    model, here with unweighted means, because cases may differ in valid samples).
    """
    if all(case.samples == 1 for case in cases):
        return None, None
    valid = [(case.score, case.valid) for case in cases if case.score is not None]
    free = sum(count - 1 for _, count in valid)
    if not free:
        return None, None
    within = math.fsum(case.squares for case in cases) / free
    if len(valid) < 2:
        return math.sqrt(within), None
    means = statistics.variance([score for score, _ in valid])
    noise = within * math.fsum(1 / count for _, count in valid) / len(valid)
    return math.sqrt(within), math.sqrt(max(0.0, means - noise))


def _reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts = Counter(outcome.reason for outcome in outcomes if outcome.reason is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _mean(numbers: Sequence[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None
