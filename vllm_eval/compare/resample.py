"""What a run might have shown with other cases of the same kind: summaries of resamples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm_eval.compare.intervals import BATCH_DRAWS, MAX_DRAWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_eval.compare.paired import CaseScore
    from vllm_eval.compare.summary import Comparison, Summary

RESAMPLES = 2000


def resample(
    comparison: Comparison, arm: str, baseline: str, confidence: float
) -> Iterator[tuple[Summary, Summary, float | None]]:
    """Summaries of baseline and student over cases drawn with replacement, and a bound.

    Both arms see the same cases each time. Only what varies with the cases is computed
    again: valid rate, mean, std, min and max; the counts stay. The bound is the lower end of
    the ratio's interval by its linear approximation (Fieller 1954), since a bootstrap within
    each resample would take minutes; None where the ratio does not exist.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6.
    """
    import numpy as np

    summaries = comparison.arms[baseline], comparison.arms[arm]
    sides = comparison.cases[baseline], comparison.cases[arm]
    ids = sorted(sides[0].keys() | sides[1].keys())
    if not ids:
        return
    tables = [_table(cases, ids) for cases in sides]
    count = max(1, min(RESAMPLES, MAX_DRAWS // len(ids)))
    batch = max(1, BATCH_DRAWS // len(ids))
    generator = np.random.default_rng(comparison.bootstrap.seed)
    for start in range(0, count, batch):
        draws = generator.integers(0, len(ids), (min(batch, count - start), len(ids)))
        rows = [_summaries(table, draws) for table in tables]
        bounds = _bounds(tables, draws, confidence)
        for base, student, bound in zip(*rows, bounds, strict=True):
            yield replace(summaries[0], **base), replace(summaries[1], **student), bound


def _table(cases: Mapping[str, CaseScore], ids: Sequence[str]) -> dict[str, Any]:
    """One arm's cases as columns; a case it lacks has no score."""
    import numpy as np

    found = [cases.get(name) for name in ids]
    scores = [case.score if case and case.score is not None else np.nan for case in found]
    return {
        "score": np.array(scores, float),
        "share": np.array([case.share if case else 0.0 for case in found], float),
    }


def _summaries(table: Mapping[str, Any], draws: Any) -> list[dict[str, Any]]:
    """Of each draw the changed fields of its summary."""
    import numpy as np

    score = table["score"][draws]
    there = ~np.isnan(score)
    count = there.sum(axis=1)
    with np.errstate(all="ignore"):
        mean = np.where(there, score, 0).sum(axis=1) / count
        std = np.sqrt(np.where(there, (score - mean[:, None]) ** 2, 0).sum(axis=1) / count)
    columns = {
        "mean": mean,
        "std": std,
        "min": np.where(there, score, np.inf).min(axis=1),
        "max": np.where(there, score, -np.inf).max(axis=1),
    }
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
