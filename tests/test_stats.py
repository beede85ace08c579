"""Counts and score statistics per arm and tier, on outcomes made here."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest

from vllm_eval.compare.summary import compare_arms, comparison_to_json, summarise
from vllm_eval.records import Outcome, Status

NUMBERS = itertools.count(1)


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
    case = f"K{next(NUMBERS)}"
    return Outcome(arm, case, tier, 0, status, reason, score, attempts, first_valid)


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
    summary = summarise([outcome(first_valid=True), outcome(attempts=2), BROKEN, SILENT])
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
        [outcome(score=0.0) for _ in range(3)],
        [outcome(score=1 / 3) for _ in range(7)],
    )
    numbers = [
        n for s in map(summarise, samples) for n in (s.mean, s.std, s.mean_all, s.valid_rate)
    ]
    assert not any(n is not None and math.isnan(n) for n in numbers)


def test_arms_are_told_apart() -> None:
    rows = [outcome(score=0.5), outcome(arm="pupil", score=1.0), outcome(arm="pupil", score=0.8)]
    arms = compare_arms(rows, ["baseline", "pupil"]).arms
    assert (arms["baseline"].total, arms["pupil"].total) == (1, 2)
    assert arms["pupil"].mean == pytest.approx(0.9)


def test_an_arm_that_has_no_outcome_is_there_all_the_same() -> None:
    assert compare_arms([outcome()], ["baseline", "pupil"]).arms["pupil"].total == 0


def test_tiers_are_summarised_apart_and_in_order() -> None:
    rows = [outcome(tier=t) for t in ("simple", "corporate", None, "simple", "")]
    tiers = compare_arms(rows, ["baseline"]).tiers["baseline"]
    assert [(tier, part.total) for tier, part in tiers.items()] == [
        ("-", 2),
        ("corporate", 1),
        ("simple", 2),
    ]


def test_reasons_are_counted_most_frequent_first() -> None:
    rows = [outcome("format_error", None, reason=r) for r in ("b", "c", "a", "c")]
    reasons = compare_arms([*rows, outcome()], ["baseline"]).reasons["baseline"]
    assert list(reasons.items()) == [("c", 2), ("a", 1), ("b", 1)]


def sampled(case: str, *scores: float | None, arm: str = "baseline") -> list[Outcome]:
    """The samples of one case; None for one that broke the contract."""
    return [
        Outcome(arm, case, None, n, "format_error", "no_requirement_ids", 0.9, 1, first_valid=False)
        if score is None
        else Outcome(arm, case, None, n, "success", None, score, 1, first_valid=True)
        for n, score in enumerate(scores)
    ]


THREE = [*sampled("A", 0.4, 0.6), *sampled("B", 0.8, None), *sampled("C", None, None)]


def test_a_case_scores_the_mean_of_its_valid_samples_and_each_case_counts_once() -> None:
    # A has 0.5, B has 0.8, C has none; over the answers it would be 0.6.
    summary = summarise(THREE)
    assert (summary.cases, summary.total, summary.valid) == (3, 6, 3)
    assert summary.mean == pytest.approx(0.65)
    assert (summary.min, summary.max) == (0.5, 0.8)


def test_a_case_is_valid_by_the_share_of_its_samples() -> None:
    assert summarise(THREE).valid_rate == pytest.approx((1 + 0.5 + 0) / 3)
    assert summarise(THREE).first_valid_rate == pytest.approx((1 + 0.5 + 0) / 3)


def test_a_failed_sample_is_a_zero_of_its_case_in_the_mean_over_all() -> None:
    assert summarise(THREE).mean_all == pytest.approx((0.5 + 0.4 + 0) / 3)


def test_one_sample_a_case_shows_no_spread_apart() -> None:
    summary = summarise([*FOUR, BROKEN])
    assert (summary.within_std, summary.between_std) == (None, None)


def test_the_spread_within_cases_is_pooled_over_them() -> None:
    # Squares 0.02 and 0.08, one degree of freedom each.
    summary = summarise([*sampled("A", 0.4, 0.6), *sampled("B", 0.4, 0.8)])
    assert summary.within_std == pytest.approx((0.10 / 2) ** 0.5)


def test_cases_that_differ_only_by_chance_show_no_spread_between_them() -> None:
    summary = summarise([*sampled("A", 0.4, 0.6), *sampled("B", 0.6, 0.4)])
    assert summary.between_std == 0.0


def test_both_spreads_are_found_again_where_they_are_known() -> None:
    generator = random.Random(7)
    rows = []
    for number in range(4000):
        centre = generator.gauss(0.6, 0.10)
        rows += sampled(f"K{number}", *(generator.gauss(centre, 0.05) for _ in range(3)))
    summary = summarise(rows)
    assert summary.within_std == pytest.approx(0.05, abs=0.002)
    assert summary.between_std == pytest.approx(0.10, abs=0.004)


def test_a_single_case_of_several_samples_has_a_spread_within_only() -> None:
    summary = summarise(sampled("A", 0.4, 0.6))
    assert summary.within_std == pytest.approx(0.02**0.5)
    assert summary.between_std is None


def test_each_student_is_held_against_the_baseline() -> None:
    rows = [*sampled("A", 0.5), *sampled("A", 0.6, arm="one"), *sampled("A", 0.4, arm="two")]
    students = compare_arms(rows, ["baseline", "one", "two"]).students
    assert {arm: paired.difference.value for arm, paired in students.items()} == {
        "one": pytest.approx(0.1),
        "two": pytest.approx(-0.1),
    }


def test_another_arm_can_be_the_one_held_against() -> None:
    rows = [*sampled("A", 0.5, arm="old"), *sampled("A", 0.6, arm="new")]
    students = compare_arms(rows, ["old", "new"], baseline="old").students
    assert list(students) == ["new"]
    assert students["new"].baseline == "old"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        sampled("A", 0.0),
        sampled("A", None, None),
        [*sampled("A", 0.0, 0.0), *sampled("A", 0.0, 0.0, arm="pupil")],
        [*sampled("A", 0.0), *sampled("B", 1.0), *sampled("A", 1.0, arm="pupil")],
        [*sampled("A", 0.7), *sampled("A", 0.7, arm="pupil")],
        [*sampled("A", None), *sampled("B", 0.5), *sampled("A", 0.5, arm="pupil")],
        [SILENT],
    ],
)
def test_a_comparison_is_json_without_nan_whatever_the_outcomes(rows: list[Outcome]) -> None:
    assert json.dumps(
        comparison_to_json(compare_arms(rows, ["baseline", "pupil"])), allow_nan=False
    )
