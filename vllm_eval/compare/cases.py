"""One case in one arm, its samples aggregated: the unit of every figure and test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_eval.records import Outcome


@dataclass(frozen=True, slots=True)
class CaseScore:
    """One case in one arm."""

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


def aggregate(rows: Sequence[Outcome]) -> CaseScore:
    """A case with a valid sample of unknown score has no score."""
    if len(rows) == 1:  # the usual case, and most of the work in a large run
        (row,) = rows
        score = row.score if row.status == "success" else None
        return CaseScore(1, int(row.status == "success"), int(row.status == "error"), score, 0.0)
    valid = [o.score for o in rows if o.status == "success"]
    known = [score for score in valid if score is not None]
    scores = known if len(known) == len(valid) else []
    mean = statistics.fmean(scores) if scores else None
    return CaseScore(
        samples=len(rows),
        valid=len(valid),
        errors=sum(o.status == "error" for o in rows),
        score=mean,
        squares=math.fsum((score - (mean or 0.0)) ** 2 for score in scores),
    )
