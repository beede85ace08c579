"""What chance does to a comparison: intervals and summaries, by resampling the cases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


_Summary = TypeVar("_Summary", bound="DataclassInstance")
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
RESAMPLES = 2000
"""Of the cases, for the chance that a verdict stands."""
BATCH_DRAWS = 200_000
"""Cases drawn at once; limits the memory."""


@dataclass(frozen=True, slots=True)
class CaseScore:
    """One case in one arm, its samples aggregated."""

    samples: int
    valid: int
    """Samples that kept the contract."""
    errors: int
    """Samples without an answer: our failure, not the model's."""
    score: float | None
    """Mean score of the valid samples; None if there are none, or a score is unknown."""
    squares: float
    """Sum of squared distances of the valid samples' scores from their mean."""

    @property
    def share(self) -> float:
        """Share of the samples that kept the contract: the case's validity."""
        return self.valid / self.samples

    @property
    def scored(self) -> bool:
        """Whether the score is known; a case without a valid sample has 0."""
        return self.score is not None or self.valid == 0

    @property
    def score_all(self) -> float:
        """Mean score of all samples, a failed one counted as 0."""
        return 0.0 if self.score is None else self.score * self.share


Cases = Mapping[str, CaseScore]
"""The cases of one arm, by id."""


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


def resample(
    arms: tuple[_Summary, _Summary], cases: tuple[Cases, Cases], confidence: float, seed: int
) -> Iterator[tuple[_Summary, _Summary, float | None]]:
    """Summaries of baseline and student over cases drawn with replacement, and a bound.

    Both arms see the same cases each time. Only what varies with the cases is computed
    again: valid rate, mean, std, min and max; the counts stay. The bound is the lower end of
    the ratio's interval by its linear approximation (Fieller 1954), since a bootstrap within
    each resample would take minutes; None where the ratio does not exist.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6.
    """
    import numpy as np

    ids = sorted(cases[0].keys() | cases[1].keys())
    if not ids:
        return
    tables = [_table(side, ids) for side in cases]
    count = max(1, min(RESAMPLES, MAX_DRAWS // len(ids)))
    batch = max(1, BATCH_DRAWS // len(ids))
    generator = np.random.default_rng(seed)
    for start in range(0, count, batch):
        draws = generator.integers(0, len(ids), (min(batch, count - start), len(ids)))
        rows = [_summaries(table, draws) for table in tables]
        bounds = _bounds(tables, draws, confidence)
        for base, student, bound in zip(*rows, bounds, strict=True):
            yield replace(arms[0], **base), replace(arms[1], **student), bound


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
    level, batch = widened(bootstrap.confidence, count), max(1, BATCH_DRAWS // count)
    options = {"paired": True, "vectorized": True, "confidence_level": level, "batch": batch}
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


def _table(cases: Cases, ids: Sequence[str]) -> dict[str, Any]:
    """One arm's cases as columns; a case it lacks has no score."""
    import numpy as np

    found = [cases.get(name) for name in ids]
    scores = [case.score if case and case.score is not None else np.nan for case in found]
    shares = [case.share if case else 0.0 for case in found]
    return {"score": np.array(scores, float), "share": np.array(shares, float)}


def _summaries(table: Mapping[str, Any], draws: Any) -> list[dict[str, Any]]:
    """Of each draw the changed fields of its summary."""
    import numpy as np

    score = table["score"][draws]
    there = ~np.isnan(score)
    count = there.sum(axis=1)
    with np.errstate(all="ignore"):
        mean = np.where(there, score, 0).sum(axis=1) / count
        std = np.sqrt(np.where(there, (score - mean[:, None]) ** 2, 0).sum(axis=1) / count)
    least = np.where(there, score, np.inf).min(axis=1)
    most = np.where(there, score, -np.inf).max(axis=1)
    columns = {"mean": mean, "std": std, "min": least, "max": most}
    rate = table["share"][draws].mean(axis=1)
    return [
        {name: float(column[n]) if count[n] else None for name, column in columns.items()}
        | {"valid_rate": float(rate[n])}
        for n in range(len(draws))
    ]


def _bounds(
    tables: Sequence[Mapping[str, Any]], draws: Any, confidence: float
) -> list[float | None]:
    """Of each draw the approximate lower end of the ratio of means over its pairs, if two."""
    import numpy as np
    from scipy.stats import t

    base, student = (table["score"][draws] for table in tables)
    there = ~(np.isnan(base) | np.isnan(student))
    count = there.sum(axis=1)
    with np.errstate(all="ignore"):
        means = [np.where(there, side, 0).sum(axis=1) / count for side in (base, student)]
        ratio = means[1] / means[0]
        rests = np.where(there, student - ratio[:, None] * base, 0)
        error = np.sqrt((rests**2).sum(axis=1) / np.maximum(count - 1, 1) / count) / means[0]
        low = ratio - t.ppf((1 + confidence) / 2, count - 1) * error
    return [float(bound) if np.isfinite(bound) else None for bound in low]
