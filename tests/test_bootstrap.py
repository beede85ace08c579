"""Intervals against scipy and closed forms, their coverage, and what degenerate data give."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vllm_eval.compare.intervals import BATCH_DRAWS, MAX_PAIRS, Bootstrap, make_interval, widened

if TYPE_CHECKING:
    from vllm_eval.compare.intervals import Statistic

SETTINGS = Bootstrap(resamples=999)
STATISTICS: tuple[Statistic, ...] = ("difference", "ratio")


def pairs(count: int, seed: int = 1) -> tuple[list[float], list[float]]:
    """Student and baseline scores that go together, as scores of the same cases do."""
    generator = np.random.default_rng(seed)
    base = generator.beta(8, 2, count)
    student = np.clip(0.95 * base + generator.normal(0, 0.08, count), 0, 1)
    return student.tolist(), base.tolist()


def difference(one: Any, two: Any, axis: int = -1) -> Any:
    return one.mean(axis=axis) - two.mean(axis=axis)


def ratio(one: Any, two: Any, axis: int = -1) -> Any:
    return one.mean(axis=axis) / two.mean(axis=axis)


@pytest.mark.parametrize(("statistic", "function"), [("difference", difference), ("ratio", ratio)])
def test_an_interval_is_the_bca_interval_of_scipy_at_the_widened_level(
    statistic: Statistic, function: Any
) -> None:
    student, base = pairs(20)
    expected = scipy_stats.bootstrap(
        (np.array(student), np.array(base)),
        function,
        paired=True,
        vectorized=True,
        n_resamples=999,
        method="BCa",
        confidence_level=widened(0.95, 20),
        batch=BATCH_DRAWS // 20,
        rng=np.random.default_rng(42),
    ).confidence_interval
    found = make_interval(student, base, statistic, SETTINGS)
    assert found.method == "BCa"
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_widened_level_gives_a_normal_quantile_the_length_of_students_t() -> None:
    # 20 cases: t at 0.975 with 19 degrees of freedom is 2.0930, times the root of 20/19.
    z = scipy_stats.norm.ppf((1 + widened(0.95, 20)) / 2)
    assert z == pytest.approx(2.09302 * (20 / 19) ** 0.5, abs=1e-4)


def test_many_cases_are_hardly_widened() -> None:
    assert widened(0.95, 5000) == pytest.approx(0.95, abs=1e-4)


def test_the_same_cases_and_seed_give_the_same_interval() -> None:
    first, again = (make_interval(*pairs(30), "ratio", SETTINGS) for _ in range(2))
    assert first == again


def test_a_higher_confidence_gives_a_longer_interval() -> None:
    ends = [make_interval(*pairs(30), "ratio", Bootstrap(c, 999)) for c in (0.8, 0.95, 0.99)]
    lows = [interval.low for interval in ends if interval.low is not None]
    assert lows == sorted(lows, reverse=True)
    assert len(set(lows)) == 3


def test_pairing_makes_the_interval_shorter_than_independent_arms_would() -> None:
    student, base = pairs(60)
    found = make_interval(student, base, "difference", SETTINGS)
    alone = scipy_stats.ttest_ind(student, base).confidence_interval()
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.low < 0.6 * (alone.high - alone.low)


def test_above_the_limit_the_interval_is_the_normal_one() -> None:
    student, base = pairs(MAX_PAIRS + 1)
    found = make_interval(student, base, "difference", SETTINGS)
    apart = np.subtract(student, base)
    half = 1.959964 * apart.std() / len(apart) ** 0.5
    assert found.method == "normal"
    assert (found.low, found.high) == pytest.approx(
        (apart.mean() - half, apart.mean() + half), rel=1e-3
    )


def test_the_normal_interval_of_a_ratio_agrees_with_the_bootstrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = make_interval(*pairs(1000), "ratio", Bootstrap())
    monkeypatch.setattr("vllm_eval.compare.intervals.MAX_PAIRS", 999)
    fast = make_interval(*pairs(1000), "ratio", Bootstrap())
    assert (slow.method, fast.method) == ("BCa", "normal")
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=5e-4)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_no_pair_has_no_value_and_a_reason(statistic: Statistic) -> None:
    found = make_interval([], [], statistic, SETTINGS)
    assert (found.value, found.low, found.high, found.method) == (None, None, None, "none")
    assert found.reason == "there is no pair of cases"


@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_pair_has_a_value_without_ends(statistic: Statistic) -> None:
    found = make_interval([0.4], [0.8], statistic, SETTINGS)
    assert found.value == pytest.approx({"difference": -0.4, "ratio": 0.5}[statistic])
    assert (found.low, found.high, found.method) == (None, None, "none")
    assert found.reason


@pytest.mark.parametrize("statistic", STATISTICS)
def test_equal_scores_in_few_pairs_have_no_interval_of_no_width(statistic: Statistic) -> None:
    found = make_interval([0.8] * 9, [0.8] * 9, statistic, SETTINGS)
    assert (found.low, found.high, found.method) == (None, None, "none")
    assert "too few" in found.reason


def test_the_interval_of_few_differences_is_students_t() -> None:
    student, base = [0.9, 0.8, 0.95, 0.7], [0.8, 0.85, 0.8, 0.75]
    apart = np.subtract(student, base)
    low, high = scipy_stats.t.interval(0.95, 3, apart.mean(), apart.std(ddof=1) / 2)
    found = make_interval(student, base, "difference", SETTINGS)
    assert found.method == "t"
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_intervals_of_few_pairs_cover_what_they_say(count: int) -> None:
    hits = 0
    for seed in range(600):
        draw = np.random.default_rng(seed)
        base = draw.normal(0.8, 0.05, count)
        student = base * draw.normal(1, 0.05, count)
        found = make_interval(student.tolist(), base.tolist(), "ratio", SETTINGS)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 <= found.high
    assert 0.92 <= hits / 600 <= 0.98


@pytest.mark.parametrize("statistic", STATISTICS)
def test_equal_scores_throughout_give_an_exact_point(statistic: Statistic) -> None:
    found = make_interval([0.8] * 10, [0.8] * 10, statistic, SETTINGS)
    assert found.low == found.value == found.high
    assert found.method == "exact"


def test_one_and_the_same_ratio_in_every_pair_is_exact_but_its_difference_is_not() -> None:
    base = [0.5, 0.6, 0.7, 0.9] * 3
    student = [0.9 * score for score in base]
    assert make_interval(student, base, "ratio", SETTINGS).method == "exact"
    assert make_interval(student, base, "difference", SETTINGS).method != "exact"


def test_a_baseline_of_zero_has_no_ratio_but_a_difference() -> None:
    student, base = [0.1, 0.2, 0.3], [0.0, 0.0, 0.0]
    assert make_interval(student, base, "ratio", SETTINGS).reason == "the baseline's mean is 0"
    assert make_interval(student, base, "difference", SETTINGS).value == pytest.approx(0.2)


def test_a_baseline_that_is_zero_in_some_resamples_leaves_the_ratio_without_ends() -> None:
    found = make_interval([0.5] * 12, [0.0] * 11 + [0.9], "ratio", SETTINGS)
    assert found.value == pytest.approx(6 / 0.9)
    assert (found.low, found.high) == (None, None)
    assert "some resamples" in found.reason


def test_where_bca_is_not_defined_the_percentile_interval_stands_in_and_says_so() -> None:
    # So few resamples that all of them lie on one side of the value.
    tries = [make_interval(*pairs(10), "ratio", Bootstrap(0.95, 3, seed)) for seed in range(20)]
    found = next(interval for interval in tries if interval.method == "percentile")
    assert found.reason == "BCa is not defined for these cases"
    assert found.low is not None


@pytest.mark.parametrize("count", range(7))
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("values", [(0.0,), (1.0,), (0.0, 1.0), (0.3, 0.3 + 1e-16), (0.2, 0.9)])
def test_no_end_is_ever_nan_or_infinite(
    count: int, statistic: Statistic, values: tuple[float, ...]
) -> None:
    generator = np.random.default_rng(count)
    student, base = (generator.choice(values, count).tolist() for _ in range(2))
    found = make_interval(student, base, statistic, SETTINGS)
    assert all(np.isfinite(n) for n in astuple(found)[:3] if n is not None)
    assert (found.low is None) == (found.high is None)
    assert found.reason or found.method == "BCa"


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_nominal_interval_of_95_percent_covers_the_truth_in_92_to_98(
    statistic: Statistic,
) -> None:
    """Twenty cases, as a run has; 600 runs. Scores are cut off at 1, so that they are skewed."""
    many, base = (np.array(side) for side in pairs(2_000_000, seed=0))
    truth = {"difference": many.mean() - base.mean(), "ratio": many.mean() / base.mean()}[statistic]
    found = [make_interval(*pairs(20, seed), statistic, SETTINGS) for seed in range(1, 601)]
    covered = [f.low is not None and f.high is not None and f.low <= truth <= f.high for f in found]
    assert 0.92 <= np.mean(covered) <= 0.98
