"""What a planned number of cases can show: how often a student of a known quality would pass.

Runs with typical scores are simulated and graded by the gate's own claims and evidence. All their
answers are valid, so a rule on the numbers of a run holds where the mean of its claim does.

The quality of a student is its true ratio to the base, or with `against: absolute` its true mean.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from statistics import NormalDist
from typing import Any

from vllm_eval.compare.betting import bets, log_wealth, p_values, ratio_claim
from vllm_eval.compare.claims import Claims, Table, make_claims
from vllm_eval.compare.rules import level_among
from vllm_eval.compare.sample_size import MOST_CASES, POWER
from vllm_eval.config.settings import GateConfig

BASE_MEAN = 0.86
"""Typical mean of a base. Source, also of the spread: 160 graded answers to the product owner's
cases. Scores have a mean of 0.91 over the valid ones, and of 0.84 with a deviation of 0.16 over all
that could be scored."""
DEVIATION = 0.142
"""Standard deviation of an arm's scores before they are clipped to [0, 1]; 0.12 after."""
SHARED = 0.3
"""Share of the variance that is the difficulty of a case, common to both arms. Student minus base
then has a standard deviation of 0.145."""
SEED = 1
DRAWS, CELLS = 1000, 50_000
"""Simulated runs, and the cases in all of them together; many cases get fewer runs, which are
enough because the verdict on many cases varies little."""
MOST_SIMULATED = 1000
"""Cases. Larger runs are not simulated: they show what these show, and more."""


def bound_of(gate: GateConfig) -> float:
    """The quality that the gate asks for."""
    if gate.against == "absolute":
        return gate.min_student_mean or 0.0
    return max(gate.min_ratio, gate.min_ratio_all or 0.0)


def best_of(gate: GateConfig) -> float:
    """The highest quality that scores in [0, 1] allow."""
    return 1 / BASE_MEAN if gate.against == "baseline" else 1.0


def pass_chance(gate: GateConfig, quality: float, cases: int, students: int = 1) -> float:
    """Chance that a student of that quality passes on so many cases.

    Among several `students` it is the chance of the one that must show the most (Holm 1979); the
    interval of `gate.confidence` is corrected for their number.
    """
    import numpy as np

    cases = min(cases, MOST_SIMULATED)
    student, base = _deal(quality / best_of(gate), cases)
    claims = make_claims(student, base, gate)
    held = [claim.x.mean(axis=-1) >= claim.bound for found in claims.values() for claim in found]
    if gate.certify is not None:
        held += _shown(claims, gate.certify, cases, students)
    if gate.confidence is not None:
        alpha = (1 - level_among(gate.confidence, students)) / 2
        ratio = ratio_claim(student.score, base.score, gate.min_ratio)
        held.append(log_wealth(ratio, bets(cases, 1 - alpha))[..., -1] >= -math.log(alpha))
    return float(np.logical_and.reduce(np.broadcast_arrays(*held)).mean())


def lowest_certified(gate: GateConfig, cases: int, students: int = 1) -> float | None:
    """The lowest quality that passes with a chance of `POWER`, in hundredths; None if none does."""
    tried = range(math.floor(100 * bound_of(gate)) + 1, math.ceil(100 * best_of(gate)))
    place = bisect_left(tried, POWER, key=lambda n: pass_chance(gate, n / 100, cases, students))
    return tried[place] / 100 if place < len(tried) else None


def cases_to_pass(gate: GateConfig, quality: float, students: int = 1) -> int | None:
    """About how many cases pass a student of that quality with a chance of `POWER`.

    None if it takes more than `MOST_SIMULATED`.
    """
    tried = [5]
    while tried[-1] < MOST_SIMULATED:
        tried.append(min(MOST_SIMULATED, math.ceil(tried[-1] * 1.1)))
    place = bisect_left(tried, POWER, key=lambda n: pass_chance(gate, quality, n, students))
    return tried[place] if place < len(tried) else None


def cases_for_valid_rate(gate: GateConfig, level: float, students: int = 1) -> int | None:
    """How many cases show the lowest valid rates if all answers are valid.

    None if it takes more than `MOST_CASES`.
    """
    import numpy as np

    def shows(cases: int) -> bool:
        perfect = Table(np.ones((1, cases)), np.ones((1, cases)))
        claims = make_claims(perfect, perfect, gate)
        rates = {key: found for key, found in claims.items() if key[0] == "valid_rate"}
        return all(shown.all() for shown in _shown(rates, level, cases, students))

    tried = range(1, MOST_CASES + 1)
    place = bisect_left(tried, True, key=shows)
    return tried[place] if place < len(tried) else None


def _shown(claims: Claims, level: float, cases: int, students: int) -> list[Any]:
    """Which runs show each claim that could be false; arrays of runs."""
    shares, alpha = bets(cases, level), (1 - level) / students
    return [
        p_values(log_wealth(claim, shares))[..., -1] <= alpha
        for found in claims.values()
        for claim in found
        if claim.bound > claim.low
    ]


def _deal(share: float, cases: int) -> tuple[Table, Table]:
    """Student and base in simulated runs; the student's mean is `share` times the best one."""
    import numpy as np

    runs = min(DRAWS, CELLS // cases)
    difficulty, *own = np.random.default_rng(SEED).standard_normal((3, runs, cases))
    valid, sides = np.ones((1, cases)), []
    for mean, rest in zip((share, BASE_MEAN), own, strict=True):
        draw = math.sqrt(SHARED) * difficulty + math.sqrt(1 - SHARED) * rest
        sides.append(Table(np.clip(_centre(mean) + DEVIATION * draw, 0, 1), valid))
    return sides[0], sides[1]


def _centre(mean: float) -> float:
    """The centre of a normal distribution whose draws have that mean once clipped to [0, 1]."""
    normal = NormalDist()

    def clipped(centre: float) -> float:
        low, high = -centre / DEVIATION, (1 - centre) / DEVIATION
        inside = centre * (normal.cdf(high) - normal.cdf(low))
        return inside + DEVIATION * (normal.pdf(low) - normal.pdf(high)) + 1 - normal.cdf(high)

    low, high = -1.0, 2.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if clipped(middle) < mean else (low, middle)
    return low
