"""Scores of a base and a student as chance deals them, where the true ratio of means is known.

Each model says how scores are spread. The student's are placed so that the true means, failed
answers counted as 0, have the ratio asked for. Both arms share the difficulty of a case.

Spreads are anchored in 160 graded answers to the product owner's cases. The scores of valid ones
have mean 0.91 and standard deviation 0.05, and one in eight has the same value; all scores, those
of failed answers too, have mean 0.84 and standard deviation 0.16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

SHARED = 0.3
"""Share of the variance of a score that is the difficulty of its case, common to both arms."""
FIRST_FAILURE = 0.25
"""Share of first attempts that fail, in runs with retries."""
HARDNESS = 0.6
"""How much likelier a hard case fails, in probits per standard deviation of difficulty."""


@dataclass(frozen=True)
class Model:
    """How the scores of one arm are spread."""

    name: str
    base_mean: float
    spread: Callable[[Any, float], Any]
    """Score for a standard normal draw and a location; increases with both."""
    bad: Callable[[float], float] = lambda _: 0.0
    """Share of the student's answers that are bad, by the true ratio."""
    bad_score: float = 0.0
    bad_fails: bool = False
    """A bad answer breaks the contract, rather than being valid with a low score."""


@dataclass(frozen=True)
class Arm:
    """The true distribution of one arm's answers."""

    model: Model
    location: float
    bad: float = 0.0
    retries: int | None = None
    """None: answers do not fail, apart from bad ones."""

    def fails(self, difficulty: Any) -> Any:
        """Chance that every attempt at a case fails."""
        if self.retries is None:
            return np.zeros_like(difficulty)
        limit = ndtri(FIRST_FAILURE) * (1 + HARDNESS**2) ** 0.5
        return ndtr(limit - HARDNESS * difficulty) ** (self.retries + 1)


@dataclass(frozen=True)
class Scores:
    """One arm in many runs; arrays of runs by cases, the samples of a case averaged."""

    score: Any
    """Mean of the valid samples; NaN where there are none."""
    share: Any
    """Share of valid samples."""
    score_all: Any
    """Mean of all samples, a failed one counted as 0."""


def _normal(deviation: float, step: float = 0.0) -> Callable[[Any, float], Any]:
    """Scores about a location within [0, 1], rounded to a multiple of `step` if there is one."""

    def spread(draw: Any, location: float) -> Any:
        score = location + deviation * draw
        return np.clip(np.rint(score / step) * step if step else score, 0, 1)

    return spread


def _full_marks(draw: Any, location: float) -> Any:
    """Full marks, or anything from 0.2 to 0.8."""
    return np.where(draw > -location, 1.0, 0.2 + 0.6 * ndtr(draw) / ndtr(-location))


def _shortfall(ratio: float) -> float:
    return max(0.0, 1 - ratio)


MODELS = (
    Model("noise", 0.86, _normal(0.145)),  # about 0.145 between the arms of a case
    Model("collapse", 0.86, _normal(0.06), lambda _: 0.08, 0.3),
    Model("discrete", 0.86, _normal(0.15, 0.25)),
    Model("ceiling", 0.95, _full_marks),
    Model("rare zeros", 0.86, _normal(0.06), _shortfall),
    Model("rare failures", 0.86, _normal(0.06), _shortfall, bad_fails=True),
)


@cache
def arms_of(model: Model, ratio: float, retries: int | None = None) -> tuple[Arm, Arm]:
    """Base and student whose true means, failures counted as 0, have this ratio."""
    base = _placed(Arm(model, 0.0), model.base_mean)
    base = replace(base, retries=retries)
    student = Arm(model, 0.0, model.bad(ratio), retries)
    return base, _placed(student, ratio * true_mean(base))


def true_mean(arm: Arm, points: int = 300) -> float:
    """Mean over all cases, failures counted as 0; by quadrature over difficulty and the rest."""
    grid = ndtri((np.arange(points) + 0.5) / points)
    difficulty, rest = grid[:, None], grid[None, :]
    good = arm.model.spread(_draw(difficulty, rest), arm.location)
    score = (1 - arm.bad) * good + arm.bad * arm.model.bad_score
    return float(((1 - arm.fails(difficulty)) * score).mean())


def deal(
    arms: Sequence[Arm], runs: int, cases: int, samples: int, random: np.random.Generator
) -> tuple[Scores, ...]:
    """Scores of each arm in `runs` runs of the same `cases` cases."""
    difficulty = random.standard_normal((runs, cases, 1))
    return tuple(_deal(arm, difficulty, samples, random) for arm in arms)


def _deal(arm: Arm, difficulty: Any, samples: int, random: np.random.Generator) -> Scores:
    shape = (*difficulty.shape[:2], samples)
    score = arm.model.spread(_draw(difficulty, random.standard_normal(shape)), arm.location)
    valid = random.random(shape) >= arm.fails(difficulty)
    if arm.bad:
        bad = random.random(shape) < arm.bad
        score = np.where(bad, arm.model.bad_score, score)
        valid &= ~(bad & arm.model.bad_fails)
    counted = np.where(valid, score, 0.0)
    with np.errstate(invalid="ignore"):
        mean = counted.sum(axis=2) / valid.sum(axis=2)
    return Scores(mean, valid.mean(axis=2), counted.mean(axis=2))


def _draw(difficulty: Any, rest: Any) -> Any:
    return SHARED**0.5 * difficulty + (1 - SHARED) ** 0.5 * rest


def _placed(arm: Arm, mean: float) -> Arm:
    """The arm at the location where its true mean is `mean`."""
    low, high = -3.0, 4.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        above = true_mean(replace(arm, location=middle)) > mean
        low, high = (low, middle) if above else (middle, high)
    return replace(arm, location=low)
