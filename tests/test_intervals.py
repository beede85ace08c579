"""Intervals by betting: what they cover for data of any shape, and what degenerate data give."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tests.depth import count
from vllm_eval.compare.intervals import make_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_eval.compare.intervals import Statistic

STATISTICS: tuple[Statistic, ...] = ("difference", "ratio")


def pairs(cases: int, seed: int = 1) -> tuple[list[float], list[float]]:
    """Student and baseline scores that go together, as scores of the same cases do."""
    generator = np.random.default_rng(seed)
    base = generator.beta(8, 2, cases)
    student = np.clip(0.95 * base + generator.normal(0, 0.08, cases), 0, 1)
    return student.tolist(), base.tolist()


def rare_zeros(generator: np.random.Generator, cases: int) -> np.ndarray:
    return np.where(generator.random(cases) < 0.1, 0.0, 1.0)


def collapse(generator: np.random.Generator, cases: int) -> np.ndarray:
    return np.where(generator.random(cases) < 0.08, 0.3, 0.95)


def discrete(generator: np.random.Generator, cases: int) -> np.ndarray:
    return generator.choice([0.5, 0.75, 1.0], cases, p=[0.1, 0.2, 0.7])


def ceiling(generator: np.random.Generator, cases: int) -> np.ndarray:
    return np.minimum(1.0, generator.normal(1.1, 0.15, cases))


@pytest.mark.parametrize("cases", [10, 20, 50])
@pytest.mark.parametrize("model", [rare_zeros, collapse, discrete, ceiling])
def test_the_lower_end_of_a_ratio_holds_with_rare_bad_answers_ties_and_ceilings(
    model: Callable[[np.random.Generator, int], np.ndarray], cases: int
) -> None:
    truth = float(model(np.random.default_rng(0), 1_000_000).mean()) / 0.9
    runs = count(300, deep=3000)
    above = 0
    for seed in range(runs):
        student = model(np.random.default_rng(seed), cases).tolist()
        low = make_interval(student, [0.9] * cases, "ratio", 0.9).low
        assert low is not None
        above += low > truth
    assert above / runs <= 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("cases", [3, 10, 20])
def test_an_interval_of_95_percent_covers_the_truth_at_least_as_often(
    statistic: Statistic, cases: int
) -> None:
    many, base = (np.array(side) for side in pairs(2_000_000, seed=0))
    truth = {"difference": many.mean() - base.mean(), "ratio": many.mean() / base.mean()}[statistic]
    covered = 0
    for seed in range(1, 301):
        found = make_interval(*pairs(cases, seed), statistic, 0.95)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert covered / 300 >= 0.95


@pytest.mark.parametrize("statistic", STATISTICS)
def test_many_cases_give_an_interval_not_much_longer_than_the_normal_one(
    statistic: Statistic,
) -> None:
    student, base = (np.array(side) for side in pairs(5000))
    found = make_interval(student.tolist(), base.tolist(), statistic, 0.95)
    scale = base.mean() if statistic == "ratio" else 1.0
    rests = student - base if statistic == "difference" else student - found.value * base
    normal = 2 * 1.96 * rests.std() / 5000**0.5 / scale
    assert found.low is not None
    assert found.high is not None
    assert normal < found.high - found.low < 2.5 * normal


def test_the_lower_end_of_a_constant_score_is_the_exact_binomial_one() -> None:
    # Ten answers of 1: a share that is lower than this gives ten of ten less often than 2.5 %.
    exact = scipy_stats.binomtest(10, 10).proportion_ci(0.95, method="exact").low
    low = make_interval([1.0] * 10, [1.0] * 10, "ratio", 0.95).low
    assert low is not None
    assert exact - 0.06 < low < exact


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("cases", [1, 2, 9, 10, 100])
def test_equal_scores_throughout_have_an_interval_of_honest_width(
    statistic: Statistic, cases: int
) -> None:
    found = make_interval([0.8] * cases, [0.8] * cases, statistic, 0.95)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert found.high - found.low > 2 / (cases + 5)
    assert found.low < found.value < found.high


def test_the_same_cases_give_the_same_interval_in_any_order() -> None:
    student, base = pairs(30)
    ordered = make_interval(student, base, "ratio", 0.95)
    turned = make_interval(student[::-1], base[::-1], "ratio", 0.95)
    assert astuple(turned)[:3] == pytest.approx(astuple(ordered)[:3], abs=1e-8)


def test_a_higher_confidence_gives_a_longer_interval() -> None:
    ends = [make_interval(*pairs(30), "ratio", confidence) for confidence in (0.8, 0.95, 0.99)]
    lows = [interval.low for interval in ends if interval.low is not None]
    assert lows == sorted(lows, reverse=True)
    assert len(set(lows)) == 3


def test_pairing_makes_the_interval_shorter_than_independent_arms_would() -> None:
    student, base = pairs(300)
    found = make_interval(student, base, "difference", 0.95)
    generator = np.random.default_rng(5)
    alone = make_interval(student, generator.permutation(base).tolist(), "difference", 0.95)
    assert found.high is not None
    assert found.low is not None
    assert alone.high is not None
    assert alone.low is not None
    assert found.high - found.low < 0.8 * (alone.high - alone.low)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_no_pair_has_no_value_and_a_reason(statistic: Statistic) -> None:
    found = make_interval([], [], statistic, 0.95)
    assert (found.value, found.low, found.high, found.method) == (None, None, None, "none")
    assert found.reason == "there is no pair of cases"


def test_a_baseline_of_zero_has_no_ratio_but_a_difference() -> None:
    student, base = [0.1, 0.2, 0.3], [0.0, 0.0, 0.0]
    assert make_interval(student, base, "ratio", 0.95).reason == "the baseline's mean is 0"
    assert make_interval(student, base, "difference", 0.95).value == pytest.approx(0.2)


def test_a_student_of_zero_has_a_ratio_of_zero_with_an_upper_end() -> None:
    found = make_interval([0.0] * 20, [0.8] * 20, "ratio", 0.95)
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high is not None
    assert 0 < found.high < 0.5


@pytest.mark.parametrize("cases", range(7))
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("values", [(0.0,), (1.0,), (0.0, 1.0), (0.3, 0.3 + 1e-16), (0.2, 0.9)])
def test_no_end_is_ever_nan_or_infinite_or_on_the_wrong_side(
    cases: int, statistic: Statistic, values: tuple[float, ...]
) -> None:
    generator = np.random.default_rng(cases)
    student, base = (generator.choice(values, cases).tolist() for _ in range(2))
    found = make_interval(student, base, statistic, 0.95)
    assert all(np.isfinite(n) for n in astuple(found)[:3] if n is not None)
    assert (found.low is None) == (found.value is None)
    assert found.high is not None or found.reason
    if found.value is not None and found.low is not None:
        assert found.low <= found.value <= (found.value if found.high is None else found.high)
