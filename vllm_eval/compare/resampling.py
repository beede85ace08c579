"""Summaries of some of the cases: of resamples, and of more and more in the order drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm_eval.compare.cases import Cases
from vllm_eval.compare.summary import Summary, summarise

MAX_DRAWS = 10_000_000
"""Cases drawn in all resamples together; many cases get fewer resamples."""
RESAMPLES = 2000
"""Of the cases, for the chance that a verdict stands."""
BATCH_DRAWS = 200_000
"""Cases drawn at once; limits the memory."""


def resample(
    arms: tuple[Summary, Summary], cases: tuple[Cases, Cases], seed: int
) -> Iterator[tuple[Summary, Summary]]:
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
        rows = [
            _numbers({name: column[draws] for name, column in table.items()}) for table in tables
        ]
        for base, student in zip(*rows, strict=True):
            yield replace(arms[0], **base), replace(arms[1], **student)


def summarise_first(cases: Cases, start: int) -> Iterator[Summary]:
    """Summaries of the first `start` cases, of one more, and so on up to all of them.

    They have what rules are about: the fields that `resample` computes, and `total`, in cases.
    """
    none, table = summarise(()), _table(cases, list(cases))
    for count in range(start, len(cases) + 1):
        (numbers,) = _numbers({name: column[None, :count] for name, column in table.items()})
        yield replace(none, total=count, **numbers)


def _table(cases: Cases, ids: Sequence[str]) -> dict[str, Any]:
    """One arm's cases as columns; a case it lacks has no score."""
    import numpy as np

    found = [cases.get(name) for name in ids]
    scores = [case.score if case and case.score is not None else np.nan for case in found]
    shares = [case.share if case else 0.0 for case in found]
    every = [case.score_all if case and case.scored else np.nan for case in found]
    columns = {"score": scores, "share": shares, "score_all": every}
    return {name: np.array(column, float) for name, column in columns.items()}


def _numbers(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of a summary that follow from its cases, for columns of [draws, cases].

    `mean_all` exists without valid answers.
    """
    import numpy as np

    score = table["score"]
    there = ~np.isnan(score)
    count = there.sum(axis=1)
    with np.errstate(all="ignore"):
        mean = np.where(there, score, 0).sum(axis=1) / count
        std = np.sqrt(np.where(there, (score - mean[:, None]) ** 2, 0).sum(axis=1) / count)
    least = np.where(there, score, np.inf).min(axis=1)
    most = np.where(there, score, -np.inf).max(axis=1)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a draw without a known score
        mean_all = np.nanmean(table["score_all"], axis=1)
    columns = {"mean": mean, "std": std, "min": least, "max": most, "mean_all": mean_all}
    rate = table["share"].mean(axis=1)
    return [
        {
            name: float(column[n]) if np.isfinite(column[n]) else None
            for name, column in columns.items()
        }
        | {"valid_rate": float(rate[n])}
        for n in range(len(score))
    ]
