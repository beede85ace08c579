"""Intervals for statistics of paired cases, by resampling the cases."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONFIDENCE = 0.95
"""Default level of an interval."""

Statistic = Literal["difference", "ratio"]
Method = Literal["BCa", "percentile", "t", "normal", "exact", "none"]
Ends = tuple[float | None, float | None]
NO_ENDS = (None, None)

FEW_PAIRS = 10
"""Below it a bootstrap interval is far too short: for 3 cases it covers 75 % instead of 95 %."""
MAX_PAIRS = 2000
"""Above it the normal interval is as good, and BCa takes quadratic time."""
MAX_DRAWS = 10_000_000
"""Cases drawn in all resamples together; many cases get fewer resamples."""
BATCH_DRAWS = 200_000
"""Cases drawn at once; limits the memory."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How to compute intervals."""

    confidence: float = CONFIDENCE
    resamples: int = 9999
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and how far it can be trusted."""

    value: float | None
    low: float | None
    high: float | None
    confidence: float
    method: Method
    """`exact`: all pairs agree. `none`: there are no ends; `reason` says why."""
    reason: str
    """Why there is no value, why there are no ends, or why it is not BCa; otherwise empty."""


def share_interval(count: int, trials: int) -> tuple[float, float]:
    """Ends of a share's interval at `CONFIDENCE`; reliable for few trials too.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    from scipy.stats import binomtest

    ends = binomtest(count, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def make_interval(  # noqa: PLR0911  a kind of interval each
    student: Sequence[float], base: Sequence[float], statistic: Statistic, bootstrap: Bootstrap
) -> Interval:
    """Difference or ratio of two means over the same cases, with a bootstrap interval.

    Cases are resampled as pairs, with a seed of their own. BCa (Efron & Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 14); where that is not defined, the percentile
    interval (chapter 13). Both are too short for few cases (20 cases, nominal 95 %: 93 %); the
    level is therefore widened to match Student's t (Hesterberg, What Teachers Should Know about
    the Bootstrap, 2015, section 5.3). No bootstrap interval reaches beyond the cases seen, so
    below `FEW_PAIRS` it is Student's t interval of the linearised statistic, and above
    `MAX_PAIRS` the normal one.
    """
    import numpy as np

    one, two = np.asarray(student, float), np.asarray(base, float)

    def made(value: float | None, ends: Ends, method: Method, reason: str) -> Interval:
        return Interval(value, *ends, bootstrap.confidence, method, reason)

    if not len(one):
        return made(None, NO_ENDS, "none", "there is no pair of cases")
    if statistic == "ratio" and two.mean() == 0:
        return made(None, NO_ENDS, "none", "the baseline's mean is 0")
    compute = _STATISTICS[statistic]
    value = float(compute(one, two))
    if len(one) == 1:
        return made(value, NO_ENDS, "none", "one pair of cases has no spread")
    spread = one - two if statistic == "difference" else one - value * two
    few = len(one) < FEW_PAIRS
    if np.ptp(spread) < 1e-12:
        reason = f"every pair of cases has the same {statistic}"
        if not few:
            return made(value, (value, value), "exact", reason)
        reason = f"{reason}, and {len(one)} pairs are too few for that to mean much"
        return made(value, NO_ENDS, "none", reason)
    if few or len(one) > MAX_PAIRS:
        scale = 1.0 if statistic == "difference" else abs(float(two.mean()))
        ends = _linear_ends(value, spread / scale, bootstrap.confidence)
        reason = f"fewer than {FEW_PAIRS} pairs" if few else f"more than {MAX_PAIRS} pairs"
        return made(value, ends, "t" if few else "normal", reason)
    return made(value, *_ends(one, two, compute, bootstrap))


def widened(confidence: float, cases: int) -> float:
    """The nominal level that gives a percentile interval of few cases the width of Student's t.

    Source: Hesterberg 2015, section 5.3.
    """
    from scipy.stats import norm, t

    z = (cases / (cases - 1)) ** 0.5 * t.ppf((1 + confidence) / 2, cases - 1)
    return min(float(2 * norm.cdf(z) - 1), 0.9999)


def _ends(
    one: Any, two: Any, compute: Callable[..., Any], bootstrap: Bootstrap
) -> tuple[Ends, Method, str]:
    """Lower and upper end, the method, and why it is not BCa."""
    import numpy as np
    from scipy import stats

    count = len(one)
    resamples = min(bootstrap.resamples, MAX_DRAWS // count)
    options = {
        "paired": True,
        "vectorized": True,
        "confidence_level": widened(bootstrap.confidence, count),
        "batch": max(1, BATCH_DRAWS // count),
    }
    rng = np.random.default_rng(bootstrap.seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of degenerate data, which show in the numbers below
        first = stats.bootstrap(
            (one, two), compute, n_resamples=resamples, method="percentile", rng=rng, **options
        )
        if not np.isfinite(first.bootstrap_distribution).all():
            return NO_ENDS, "none", "the baseline's mean is 0 in some resamples"
        again = stats.bootstrap(
            (one, two), compute, n_resamples=0, method="BCa", bootstrap_result=first, **options
        )
        ends = again.confidence_interval
        if np.isfinite([ends.low, ends.high]).all():
            return (float(ends.low), float(ends.high)), "BCa", ""
    ends = first.confidence_interval
    return (float(ends.low), float(ends.high)), "percentile", "BCa is not defined for these cases"


def _linear_ends(value: float, influence: Any, confidence: float) -> tuple[float, float]:
    """Student's t interval; of thousands of cases it is the normal one."""
    from scipy.stats import t

    quantile = t.ppf((1 + confidence) / 2, len(influence) - 1)
    half = quantile * influence.std(ddof=1) / len(influence) ** 0.5
    return float(value - half), float(value + half)


def _difference(one: Any, two: Any, axis: int = -1) -> Any:
    return one.mean(axis=axis) - two.mean(axis=axis)


def _ratio(one: Any, two: Any, axis: int = -1) -> Any:
    return one.mean(axis=axis) / two.mean(axis=axis)


_STATISTICS: dict[Statistic, Callable[..., Any]] = {"difference": _difference, "ratio": _ratio}
