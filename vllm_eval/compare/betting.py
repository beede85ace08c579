"""Tests and intervals that hold at their level for any number of bounded scores of any shape.

A gambler bets on each case that the mean of `x` lies above a bound. If it does not, no way of
betting makes money on average, so reaching `1 / alpha` times the stake has a chance of at most
`alpha`, at whichever case one looks. The wealth is the mean over a fixed grid of bets, which is
chosen before the first answer, from the number of cases that were planned.

Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, Journal of
the Royal Statistical Society B 86, 2024; Ville 1939 for the chance over all looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

BETS = 8
LARGEST_BET = 0.99
"""Share of the largest bet that cannot lose everything. At 1, one lost case would end it."""
MOST_CAREFUL = 0.95
"""The smallest bet is at most this share, however few cases are planned."""
SPREAD = 0.4
"""Standard deviation, as a share of what a case can lose, for which the smallest bet is the best
one that so many cases can decide. Smaller bets would dilute the others and decide nothing."""
EDGE = 1e-9
"""Distance from a bound at which a bet would have no limit."""
SURE = 700.0
"""Log wealth beyond any doubt; its exponential is still a number."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the cases say about a claim: that the mean of `x` is at least `bound`."""

    mean: float
    """Of `x` over the cases; for a ratio `r`, of student - r * baseline, and the bound is 0."""
    bound: float
    cases: int
    p_shown: float
    """Chance of looking this good at some case, at most, if the claim were false."""
    p_refuted: float
    """Chance of looking this bad at some case, at most, if the claim and others of its rule were
    true."""
    e_shown: float
    """Wealth of the bet on the claim after the last case; at most 1 on average if it is false."""
    e_refuted: float
    """The same of the bet against it."""
    first_shown: int | None
    """Cases, in the order drawn, after which the claim was first shown at the level asked for; None
    if it never was."""
    first_refuted: int | None


Trace = Callable[[int], Evidence]
"""The evidence after so many of the cases, in the order drawn: from none to all of them."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That the mean of `x` in [`low`, `high`] is at least `bound`."""

    x: Any
    """Array of [..., cases], in the order drawn."""
    low: float
    high: float
    bound: float

    @property
    def opposite(self) -> Claim:
        """The claim that the mean is at most `bound`."""
        return Claim(-self.x, -self.high, -self.low, -self.bound)


def bets(planned: int, level: float) -> list[float]:
    """Bets as shares of the largest one; the fewer cases are planned, the bolder they are."""
    best = math.sqrt(-2 * math.log(1 - level) / max(planned, 1)) / SPREAD
    least = min(MOST_CAREFUL, best)
    step = (LARGEST_BET / least) ** (1 / (BETS - 1))
    return [least * step**n for n in range(BETS)]


def log_wealth(claim: Claim, shares: Sequence[float]) -> Any:
    """Logarithm of the wealth after each case, betting on the claim: array of [..., cases]."""
    import numpy as np

    gain = _gain(claim)
    total = np.full(gain.shape, -np.inf)
    for share in shares:  # one after the other, because all at once could fill the memory
        total = np.logaddexp(total, np.cumsum(np.log1p(share * gain), axis=-1))
    return total - math.log(len(shares))


def trace(claim: Claim, planned: int, level: float, claims: int = 1) -> Trace:
    """The evidence of one run, whose `claim.x` has one dimension, after any number of its cases.

    `planned` is the number of cases the run may have, which must not depend on the answers. So many
    `claims` of a rule can each refute it; their p-values are corrected for that.
    """
    import numpy as np

    shares, sums = bets(planned, level), np.cumsum(claim.x)
    shown, refuted = (log_wealth(one, shares) for one in (claim, claim.opposite))
    if claim.bound <= claim.low:  # true of any cases
        shown = shown * 0 + SURE
    p_shown, p_refuted = p_values(shown), np.minimum(1.0, claims * p_values(refuted))
    firsts = _first(shown, level), _first(refuted, 1 - (1 - level) / claims)

    def after(cases: int) -> Evidence:
        if not cases:
            return Evidence(0.0, claim.bound, 0, 1.0, 1.0, 1.0, 1.0, None, None)
        first = [at if at is not None and at <= cases else None for at in firsts]
        return Evidence(
            mean=float(sums[cases - 1]) / cases,
            bound=claim.bound,
            cases=cases,
            p_shown=float(p_shown[cases - 1]),
            p_refuted=float(p_refuted[cases - 1]),
            e_shown=_exp(float(shown[cases - 1])),
            e_refuted=_exp(float(refuted[cases - 1])),
            first_shown=first[0],
            first_refuted=first[1],
        )

    return after


def p_values(curve: Any) -> Any:
    """The p-value after each case of a curve of log wealth, 1 / its peak so far and at most 1."""
    import numpy as np

    return np.exp(-np.maximum(np.maximum.accumulate(curve, axis=-1), 0.0))


def p_of_all(found: Iterable[Evidence]) -> float:
    """The p-value that all claims are shown: that of the weakest, or 1 without a claim."""
    return max((evidence.p_shown for evidence in found), default=1.0)


def chance(p: float) -> str:
    """A p-value in words; small ones as `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def least_mean(x: Any, low: float, alpha: float) -> float:
    """The lowest mean of values of at least `low` that these leave possible at `1 - alpha`.

    `x` is a one-dimensional array; the order of the values does not matter.
    """
    shares = bets(len(x), 1 - alpha)
    return _least(lambda m: Claim(x, low, math.inf, m), low, float(x.mean()), shares, alpha)


def least_ratio(one: Any, other: Any, alpha: float) -> float:
    """The lowest ratio of the means of `one` to `other` that they leave possible at `1 - alpha`.

    Both are one-dimensional arrays of values in [0, 1], in pairs, whose order does not matter.
    """
    seen, shares = float(one.mean() / max(other.mean(), EDGE)), bets(len(one), 1 - alpha)
    return _least(lambda ratio: ratio_claim(one, other, ratio), 0.0, seen, shares, alpha)


def ratio_claim(student: Any, base: Any, ratio: float) -> Claim:
    """That the mean of `student` is at least `ratio` times that of `base`, pair by pair.

    Both hold scores in [0, 1], with failed answers as 0.
    """
    return Claim(student - ratio * base, -ratio, 1.0, 0.0)


def _least(
    make: Callable[[float], Claim], start: float, seen: float, shares: Sequence[float], alpha: float
) -> float:
    """The bound from which on a claim is no longer shown by all cases together."""
    from scipy.optimize import brentq

    def beyond(bound: float) -> float:
        return _last(make(bound), shares) + math.log(alpha)

    start += EDGE
    if seen <= start or beyond(start) <= 0:
        return start - EDGE
    return float(brentq(beyond, start, seen, xtol=1e-9))


def _last(claim: Claim, shares: Sequence[float]) -> float:
    """Log wealth after the last case."""
    import numpy as np

    gain = _gain(claim)
    totals = [float(np.log1p(share * gain).sum()) for share in shares]
    return float(np.logaddexp.reduce(totals)) - math.log(len(shares))


def _gain(claim: Claim) -> Any:
    """What the largest bet wins or loses in each case, as a share of its stake; at least -1."""
    import numpy as np

    room, above = claim.bound - claim.low, claim.x - claim.bound
    if room <= 0:  # the claim's opposite is impossible, and any case above the bound shows that
        return np.where(above > EDGE, np.exp(SURE), 0.0)
    return np.maximum(above / room, -1.0)


def _first(curve: Any, level: float) -> int | None:
    reached = curve >= -math.log(1 - level)
    return int(reached.argmax()) + 1 if reached.any() else None


def _exp(log: float) -> float:
    """Finite, so that it is a number in JSON."""
    return math.exp(min(log, SURE))
