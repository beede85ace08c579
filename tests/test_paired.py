"""Tests on paired cases against scipy and closed forms, and the correction for many students."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vllm_eval.compare.cases import CaseScore
from vllm_eval.compare.paired import (
    MAX_EXACT_PAIRS,
    Paired,
    compare_cases,
    holm,
    mcnemar,
    signed_rank,
)
from vllm_eval.compare.sample_size import cases_to_settle


def scores(*values: float | None) -> dict[str, CaseScore]:
    """Cases K0, K1, ... with these scores; None for one that broke the contract."""
    return {
        f"K{n}": CaseScore(1, int(value is not None), 0, value, 0.0)
        for n, value in enumerate(values)
    }


def held(student: dict[str, CaseScore], base: dict[str, CaseScore]) -> Paired:
    return compare_cases(student, base, "baseline", 0.95)


def distances(count: int) -> list[float]:
    return np.random.default_rng(5).normal(0.3, 1, count).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 2, 5, 12, 30, 50])
def test_the_signed_rank_test_is_scipys_exact_one_where_nothing_ties(count: int) -> None:
    expected = scipy_stats.wilcoxon(distances(count), method="exact").pvalue
    found = signed_rank(distances(count))
    assert (found.method, found.cases) == ("exact", count)
    assert found.p == pytest.approx(expected, abs=1e-12)


def test_with_ties_it_is_the_share_of_all_signs_that_are_as_extreme() -> None:
    apart = [0.1, 0.1, -0.1, 0.2, 0.2, 0.2, -0.3, 0.5, 0.5]
    ranks = scipy_stats.rankdata(np.abs(apart))
    centre = ranks.sum() / 2
    seen = abs(ranks[np.array(apart) > 0].sum() - centre)
    sums = [sum(r for r, up in zip(ranks, s, strict=True) if up) for s in product((0, 1), repeat=9)]
    expected = np.mean([abs(total - centre) >= seen - 1e-9 for total in sums])
    assert signed_rank(apart).p == pytest.approx(expected, abs=1e-12)


def test_many_pairs_use_the_normal_approximation() -> None:
    apart = distances(MAX_EXACT_PAIRS + 1)
    found = signed_rank([d - 0.28 for d in apart])
    assert found.method == "normal approximation"
    assert found.p == pytest.approx(scipy_stats.wilcoxon([d - 0.28 for d in apart]).pvalue)


def test_exact_and_approximate_agree_where_they_meet() -> None:
    apart = [d - 0.25 for d in distances(MAX_EXACT_PAIRS)]
    approximate = scipy_stats.wilcoxon(apart).pvalue
    assert signed_rank(apart).p == pytest.approx(approximate, abs=2e-3)


@pytest.mark.parametrize("apart", [[], [0.0], [0.0] * 8, [1e-12, -1e-13]])
def test_where_nothing_differs_p_is_one(apart: list[float]) -> None:
    assert (signed_rank(apart).p, signed_rank(apart).cases) == (1.0, 0)


def test_the_last_bit_of_a_score_breaks_no_tie() -> None:
    assert signed_rank([0.1, -0.3 + 0.2]).p == signed_rank([0.1, -0.1]).p


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 6), (3, 9), (10, 10)])
def test_mcnemar_is_twice_the_smaller_binomial_tail(gained: int, lost: int) -> None:
    cases = gained + lost
    tail = sum(math.comb(cases, k) for k in range(min(gained, lost) + 1)) / 2**cases
    assert mcnemar(gained, lost).p == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


def test_holm_multiplies_each_by_the_number_still_to_be_tested() -> None:
    # In order 0.01 x 3, 0.02 x 2, 0.03 x 1; the last may not be below the one before.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


def test_holm_never_exceeds_one() -> None:
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_leaves_a_single_student_alone() -> None:
    assert holm([0.04]) == [0.04]


def test_wins_losses_and_ties_add_up_to_the_pairs() -> None:
    found = held(scores(0.9, 0.5, 0.7, 0.8, None), scores(0.8, 0.6, 0.7, 0.8 + 1e-12, 0.9))
    assert (found.wins, found.losses, found.ties, found.pairs) == (1, 1, 2, 4)


def test_a_case_that_failed_in_one_arm_is_no_pair_but_counts_for_validity() -> None:
    found = held(scores(None, 0.8, 0.9), scores(0.5, 0.8, None))
    assert (found.cases, found.pairs, found.lost, found.gained) == (3, 1, 1, 1)


def test_the_ratio_over_all_counts_a_failure_as_zero() -> None:
    found = held(scores(0.8, None), scores(0.8, 0.8))
    assert found.ratio.value == 1.0
    assert found.ratio_all.value == pytest.approx(0.5)


def test_failing_on_hard_cases_does_not_lift_the_paired_ratio() -> None:
    # Over its own valid cases the student has 0.9 against the baseline's 0.6.
    found = held(scores(0.9, 0.9, None, None), scores(0.9, 0.9, 0.3, 0.3))
    assert found.ratio.value == 1.0


def test_a_case_without_an_answer_says_nothing_of_validity() -> None:
    silent = {"K0": CaseScore(1, 0, 1, None, 0.0)}
    assert held(silent, scores(0.8)).lost == 0


def test_with_several_samples_the_share_of_valid_ones_is_compared() -> None:
    student = {"K0": CaseScore(4, 3, 0, 0.8, 0.0), "K1": CaseScore(4, 4, 0, 0.8, 0.0)}
    base = {"K0": CaseScore(4, 4, 0, 0.8, 0.0), "K1": CaseScore(4, 4, 0, 0.8, 0.0)}
    found = held(student, base)
    assert (found.lost, found.gained, found.validity.cases) == (1, 0, 1)


def test_cases_of_one_arm_only_are_left_out() -> None:
    assert held(scores(0.5, 0.5), scores(0.5)).cases == 1


def test_the_order_of_the_cases_changes_nothing() -> None:
    student, base = scores(0.9, 0.5, 0.7, 0.8), scores(0.8, 0.6, 0.75, 0.9)
    turned = dict(reversed(student.items())), dict(reversed(base.items()))
    assert held(*turned) == held(student, base)


def test_no_case_at_all_gives_defined_numbers() -> None:
    found = held({}, {})
    assert (found.cases, found.pairs, found.scores.p, found.validity.p) == (0, 0, 1.0, 1.0)
    assert found.ratio.reason == found.difference.reason == "there is no pair of cases"


def test_the_cases_to_settle_are_a_sample_size_at_80_percent_power_with_t_quantiles() -> None:
    # student - 0.9 * baseline has mean 0.08 and std 0.3: an effect of 0.2667, for which the usual
    # tables of a two-sided t test at 0.05 with a power of 0.8 give about 113.
    student = [0.8 + step for step in (0.3, -0.3) * 2] + [0.8]
    found, reason = cases_to_settle(student, [0.8] * 5, 0.9, 0.95)
    assert found is not None
    assert 110 <= found <= 116
    assert reason == ""


def test_the_cases_to_settle_are_never_fewer_than_those_at_hand() -> None:
    student = [0.8 + step for step in (0.05, -0.05) * 10]
    found, reason = cases_to_settle(student, [0.8] * 20, 0.9, 0.95)
    assert (found, reason) == (None, "these pairs are enough")


def test_a_closer_threshold_takes_more_cases() -> None:
    student, base = [0.8, 0.7, 0.9, 0.6], [0.8, 0.8, 0.8, 0.8]
    near, _ = cases_to_settle(student, base, 0.93, 0.95)
    far, _ = cases_to_settle(student, base, 0.85, 0.95)
    assert near is not None
    assert far is not None
    assert near > 100 > far


@pytest.mark.parametrize(
    ("student", "base"), [([], []), ([0.5], [0.5]), ([0.72, 0.72], [0.8, 0.8])]
)
def test_where_no_number_of_cases_settles_it_there_is_a_reason(
    student: list[float], base: list[float]
) -> None:
    found, reason = cases_to_settle(student, base, 0.9, 0.95)
    assert found is None
    assert reason


def test_with_so_many_cases_four_of_five_runs_tell_the_ratio_from_its_threshold() -> None:
    generator = np.random.default_rng(3)
    base = generator.beta(8, 2, 200_000)
    student = np.clip(0.95 * base + generator.normal(0, 0.1, 200_000), 0, 1)
    few = slice(0, 12)
    rests = student - 0.9 * base
    # Few cases with the spread and the mean of all.
    like = (rests[few] - rests[few].mean()) / rests[few].std(ddof=1) * rests.std() + rests.mean()
    count, _ = cases_to_settle(like.tolist(), [0.0] * 12, 0.9, 0.95)
    assert count is not None
    runs = rests[: count * 1000].reshape(-1, count)
    errors = runs.std(axis=1, ddof=1) / count**0.5
    settled = np.abs(runs.mean(axis=1)) > scipy_stats.t.ppf(0.975, count - 1) * errors
    assert settled.mean() == pytest.approx(0.8, abs=0.05)
