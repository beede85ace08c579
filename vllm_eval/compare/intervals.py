"""Intervals of means, their differences and ratios: what chance does to a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vllm_eval.compare.betting import least_mean, least_ratio
from vllm_eval.config.settings import CONFIDENCE

Statistic = Literal["difference", "ratio"]
Method = Literal["betting", "exact", "none"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and how far it can be trusted."""

    value: float | None
    low: float | None
    high: float | None
    confidence: float
    method: Method
    """`none`: there is no value, and `reason` says why."""
    reason: str
    """Why there is no value or no upper end; otherwise empty."""


def share_interval(count: int, trials: int) -> tuple[float, float]:
    """Ends of a share's interval at `CONFIDENCE`; reliable for few trials too.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    from scipy.stats import binomtest

    ends = binomtest(count, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def rate_interval(shares: Sequence[float], confidence: float, *, single: bool) -> Interval:
    """The mean of the cases' shares of answers; `single` if each case has one answer.

    Then the shares are 0 or 1, and the interval is the exact one of a binomial. Answers to one case
    are not independent of each other, so with several of them the cases' shares are taken as they
    are, by betting. Source: Clopper & Pearson, The use of confidence or fiducial limits, 1934.
    """
    import numpy as np
    from scipy.stats import binomtest

    if not shares:
        return Interval(None, None, None, confidence, "none", "no case has an outcome")
    if not single:
        return mean_interval(np.array(shares), 0.0, 1.0, confidence)
    count, trials = round(sum(shares)), len(shares)
    ends = binomtest(count, trials).proportion_ci(confidence, method="exact")
    return Interval(count / trials, float(ends.low), float(ends.high), confidence, "exact", "")


def make_interval(
    student: Sequence[float], base: Sequence[float], statistic: Statistic, confidence: float
) -> Interval:
    """Difference or ratio of two means over the same cases, with an interval by betting.

    Scores lie in [0, 1], and that is all that is assumed of them: the interval holds at its level
    for few cases, ties, ceilings and rare bad answers too, where bootstrap and t intervals do not.
    Each end is one-sided at `(1 + confidence) / 2`. Source: see `betting`.
    """
    import numpy as np

    one, two = np.asarray(student, float), np.asarray(base, float)
    if not len(one):
        return Interval(None, None, None, confidence, "none", "there is no pair of cases")
    if statistic == "ratio" and two.mean() == 0:
        return Interval(None, None, None, confidence, "none", "the baseline's mean is 0")
    alpha = (1 - confidence) / 2
    if statistic == "ratio":
        low, inverse = least_ratio(one, two, alpha), least_ratio(two, one, alpha)
        high = 1 / inverse if inverse > 0 else None
        reason = "" if high else "these cases set the ratio no upper limit"
        return Interval(float(one.mean() / two.mean()), low, high, confidence, "betting", reason)
    return mean_interval(one - two, -1.0, 1.0, confidence)


def mean_interval(x: Any, low: float, high: float, confidence: float) -> Interval:
    """The mean of a non-empty array of values in [`low`, `high`], with an interval by betting."""
    alpha = (1 - confidence) / 2
    ends = least_mean(x, low, alpha), -least_mean(-x, -high, alpha)
    return Interval(float(x.mean()), *ends, confidence, "betting", "")
