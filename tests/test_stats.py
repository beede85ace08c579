"""Counts and score statistics per arm and tier, on outcomes made here."""

from __future__ import annotations

import math

import pytest

from vllm_eval.records import Outcome, Status
from vllm_eval.stats import compare, summarise


def outcome(
    status: Status = "success",
    score: float | None = 1.0,
    *,
    arm: str = "baseline",
    tier: str | None = "simple",
    reason: str | None = None,
    attempts: int = 1,
    first_valid: bool = False,
) -> Outcome:
    return Outcome(arm, "K", tier, 0, status, reason, score, attempts, first_valid)


FOUR = [outcome(score=s) for s in (0.2, 0.4, 0.4, 1.0)]
BROKEN = outcome("format_error", 0.9, reason="no_requirement_ids", attempts=3)
SILENT = outcome("error", None, reason="engine_error", attempts=3)


def test_mean_and_extremes_are_over_the_valid_cases() -> None:
    summary = summarise([*FOUR, BROKEN, SILENT])
    assert summary.mean == pytest.approx(0.5)
    assert (summary.min, summary.max) == (0.2, 1.0)


def test_the_standard_deviation_is_that_of_the_population() -> None:
    # Squared distances from 0.5: 0.09 + 0.01 + 0.01 + 0.25 = 0.36, over 4.
    assert summarise([*FOUR, BROKEN]).std == pytest.approx(0.3, abs=1e-12)


def test_one_case_has_no_spread() -> None:
    assert summarise([outcome(score=0.7)]).std == 0


def test_the_score_of_a_format_error_is_no_part_of_the_mean() -> None:
    assert summarise([outcome(score=0.5), BROKEN]).mean == 0.5


def test_the_mean_over_all_counts_a_format_error_as_zero() -> None:
    assert summarise([*FOUR, BROKEN]).mean_all == pytest.approx(0.4, abs=1e-12)


def test_the_mean_over_all_counts_every_failed_case_as_zero() -> None:
    # product_owner.md: "the mean over all cases with a failed one as 0".
    assert summarise([*FOUR, SILENT]).mean_all == pytest.approx(0.4, abs=1e-12)


def test_valid_and_failed_add_up_to_the_total() -> None:
    summary = summarise([*FOUR, BROKEN, SILENT])
    assert (summary.total, summary.valid, summary.failed, summary.errors) == (6, 4, 2, 1)


def test_the_valid_rate_is_over_all_cases() -> None:
    assert summarise([*FOUR, SILENT]).valid_rate == pytest.approx(0.8)


def test_first_and_final_validity_are_counted_apart() -> None:
    summary = summarise([outcome(first_valid=True), outcome(attempts=2), BROKEN, BROKEN])
    assert (summary.first_valid, summary.first_valid_rate) == (1, 0.25)
    assert (summary.valid, summary.valid_rate) == (2, 0.5)


def test_attempts_are_added_up() -> None:
    assert summarise([outcome(attempts=1), outcome(attempts=2), BROKEN]).attempts == 6


def test_without_a_valid_case_there_is_no_score() -> None:
    summary = summarise([BROKEN])
    assert (summary.mean, summary.std, summary.min, summary.max) == (None, None, None, None)
    assert (summary.mean_all, summary.valid_rate) == (0, 0)


def test_an_arm_without_any_outcome_has_defined_numbers() -> None:
    summary = summarise([])
    assert (summary.total, summary.valid_rate, summary.first_valid_rate) == (0, 0.0, 0.0)
    assert (summary.mean, summary.mean_all) == (None, None)


def test_a_score_of_zero_is_a_score() -> None:
    summary = summarise([outcome(score=0.0)])
    assert (summary.valid, summary.mean, summary.mean_all) == (1, 0.0, 0.0)


def test_no_statistic_is_ever_nan() -> None:
    samples: tuple[list[Outcome], ...] = (
        [],
        [SILENT],
        [BROKEN],
        [outcome(score=0.0)] * 3,
        [outcome(score=1 / 3)] * 7,
    )
    numbers = [
        n for s in map(summarise, samples) for n in (s.mean, s.std, s.mean_all, s.valid_rate)
    ]
    assert not any(n is not None and math.isnan(n) for n in numbers)


def test_arms_are_told_apart() -> None:
    rows = [outcome(score=0.5), outcome(arm="pupil", score=1.0), outcome(arm="pupil", score=0.8)]
    arms = compare(rows, ["baseline", "pupil"]).arms
    assert (arms["baseline"].total, arms["pupil"].total) == (1, 2)
    assert arms["pupil"].mean == pytest.approx(0.9)


def test_an_arm_that_has_no_outcome_is_there_all_the_same() -> None:
    assert compare([outcome()], ["baseline", "pupil"]).arms["pupil"].total == 0


def test_tiers_are_summarised_apart_and_in_order() -> None:
    rows = [outcome(tier=t) for t in ("simple", "corporate", None, "simple", "")]
    tiers = compare(rows, ["baseline"]).tiers["baseline"]
    assert [(tier, part.total) for tier, part in tiers.items()] == [
        ("-", 2),
        ("corporate", 1),
        ("simple", 2),
    ]


def test_reasons_are_counted_most_frequent_first() -> None:
    rows = [outcome("format_error", None, reason=r) for r in ("b", "c", "a", "c")]
    reasons = compare([*rows, outcome()], ["baseline"]).reasons["baseline"]
    assert list(reasons.items()) == [("c", 2), ("a", 1), ("b", 1)]
