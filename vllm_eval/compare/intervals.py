"""What chance does to a comparison: intervals by betting, and summaries of resampled cases."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vllm_eval.compare.evidence import least_mean, least_ratio
from vllm_eval.config.settings import CONFIDENCE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


_Summary = TypeVar("_Summary", bound="DataclassInstance")

Statistic = Literal["difference", "ratio"]
Method = Literal["betting", "none"]
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


def make_interval(
    student: Sequence[float], base: Sequence[float], statistic: Statistic, confidence: float
) -> Interval:
    """Difference or ratio of two means over the same cases, with an interval by betting.

    Scores lie in [0, 1], and that is all that is assumed of them: the interval holds at its level
    for few cases, ties, ceilings and rare bad answers too, where bootstrap and t intervals do not.
    Each end is one-sided at `(1 + confidence) / 2`. Source: see `evidence`.
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


def resample(
    arms: tuple[_Summary, _Summary], cases: tuple[Cases, Cases], seed: int
) -> Iterator[tuple[_Summary, _Summary]]:
    """Summaries of baseline and student over cases drawn with replacement.

    Both arms see the same cases each time. Only what varies with the cases is computed
    again: valid rate, the means, std, min and max; the counts stay.

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
        for base, student in zip(*rows, strict=True):
            yield replace(arms[0], **base), replace(arms[1], **student)


def _table(cases: Cases, ids: Sequence[str]) -> dict[str, Any]:
    """One arm's cases as columns; a case it lacks has no score."""
    import numpy as np

    found = [cases.get(name) for name in ids]
    scores = [case.score if case and case.score is not None else np.nan for case in found]
    shares = [case.share if case else 0.0 for case in found]
    every = [case.score_all if case and case.scored else np.nan for case in found]
    columns = {"score": scores, "share": shares, "score_all": every}
    return {name: np.array(column, float) for name, column in columns.items()}


def _summaries(table: Mapping[str, Any], draws: Any) -> list[dict[str, Any]]:
    """Of each draw the changed fields of its summary; `mean_all` exists without valid answers."""
    import numpy as np

    score = table["score"][draws]
    there = ~np.isnan(score)
    count = there.sum(axis=1)
    with np.errstate(all="ignore"):
        mean = np.where(there, score, 0).sum(axis=1) / count
        std = np.sqrt(np.where(there, (score - mean[:, None]) ** 2, 0).sum(axis=1) / count)
    least = np.where(there, score, np.inf).min(axis=1)
    most = np.where(there, score, -np.inf).max(axis=1)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a draw without a known score
        mean_all = np.nanmean(table["score_all"][draws], axis=1)
    columns = {"mean": mean, "std": std, "min": least, "max": most, "mean_all": mean_all}
    rate = table["share"][draws].mean(axis=1)
    return [
        {
            name: float(column[n]) if np.isfinite(column[n]) else None
            for name, column in columns.items()
        }
        | {"valid_rate": float(rate[n])}
        for n in range(len(draws))
    ]
