"""How many cases like those at hand would settle what is in doubt."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from vllm_eval.compare.betting import Claim, bets, log_wealth, ratio_claim
from vllm_eval.compare.claims import Claims
from vllm_eval.compare.paired import SAME
from vllm_eval.compare.verdict import Rule

POWER = 0.8
"""Chance of a settled verdict with the number of cases that is called enough."""
MOST_PAIRS, MOST_CASES = 10**7, 10_000
"""Larger numbers are not looked for, by the t test and by betting."""
REPEATS = 100
"""Runs drawn from the cases at hand, to see how many cases would be enough."""
TOO_CLOSE = "{} is too close to its threshold to be settled"


def two_digits(cases: int) -> int:
    """An estimate of so many cases, rounded up to as many digits as it deserves."""
    step = int(10 ** max(0, len(str(cases)) - 2))
    return -(-cases // step) * step


def cases_to_settle(
    student: Sequence[float], base: Sequence[float], ratio: float, confidence: float
) -> tuple[int | None, str]:
    """About how many pairs tell, with a chance of 0.8, on which side of `ratio` the ratio lies.

    For spread and distance as seen in these pairs, by a two-sided t test of the mean of
    student - ratio * baseline at `confidence` (Fieller 1954; Cohen, Statistical Power Analysis,
    1988, chapter 2). Rough by nature, since both are estimates. None with a reason if there is no
    such number, or if the pairs at hand are enough.
    """
    from scipy.stats import t

    count = len(student)
    if count < 2:
        return None, "fewer than two pairs of cases show no spread"
    rests = [mine - ratio * theirs for mine, theirs in zip(student, base, strict=True)]
    mean = math.fsum(rests) / count
    std = math.sqrt(math.fsum((rest - mean) ** 2 for rest in rests) / (count - 1))
    if abs(mean) <= SAME:
        return None, "the ratio lies on its threshold"
    if std <= SAME:
        return None, "every pair is as far from the threshold, so their spread is unknown"

    def enough(cases: int) -> bool:
        sides = t.ppf((1 + confidence) / 2, cases - 1) + t.ppf(POWER, cases - 1)
        return cases >= (float(sides) * std / mean) ** 2

    if enough(count):
        return None, "these pairs are enough"
    found = bisect_left(range(MOST_PAIRS), True, lo=count, key=enough)
    return (found, "") if found < MOST_PAIRS else (None, "the ratio is too close to its threshold")


def pairs_needed(
    student: Sequence[float], base: Sequence[float], ratio: float, level: float, seed: int
) -> int | None:
    """How many pairs of valid scores like these put one end of the ratio's interval on `ratio`."""
    import numpy as np

    claim = ratio_claim(np.array(student), np.array(base), ratio)
    return _cases_needed((claim,), level, seed, at_last=True)


def cases_to_certify(
    level: float, rules: Sequence[Rule], claims: Claims, seed: int
) -> tuple[int | None, str]:
    """The largest number of cases that a rule needs which is open at `level`."""
    needed = 0
    for rule in rules:
        found = claims.get((rule.kind, rule.arm))
        unsure = rule.evidence and rule.evidence.p_shown > 1 - level
        if rule.state != "refuted" and unsure and found:
            if all(claim.bound >= claim.high for claim in found):
                return None, f"{rule.name}: no number of cases shows so high a bound"
            cases = _cases_needed(found, level, seed)
            if cases is None:
                return None, TOO_CLOSE.format(rule.name)
            needed = max(needed, cases)
    if needed:
        return needed, ""
    short = "; ".join(rule.name for rule in rules if not rule.passed)
    return None, f"the evidence is enough, but these cases miss the bound: {short}"


def _cases_needed(
    claims: Sequence[Claim], level: float, seed: int, *, at_last: bool = False
) -> int | None:
    """How many cases like those at hand show or refute a rule at `level`, with a chance of `POWER`.

    At least those at hand; None if it would take more than `MOST_CASES`, or there are none. It is
    enough to show the rule at some case, or `at_last` after the last one.
    """
    import numpy as np

    generator, most, goal = np.random.default_rng(seed), 0, -math.log(1 - level)
    for claim in claims:
        if not len(claim.x):
            return None
        right = claim if claim.x.mean() >= claim.bound else claim.opposite
        count, shares = len(claim.x), bets(MOST_CASES, level)
        growth = max(float(log_wealth(right, [share])[-1]) for share in shares) / count
        if growth * MOST_CASES < goal:
            return None
        cases = max(count, math.ceil(goal / growth))  # which the best bet takes on average
        while cases <= MOST_CASES:
            drawn = generator.choice(right.x, (REPEATS, cases))
            curves = log_wealth(replace(right, x=drawn), bets(cases, level))
            ends = curves[:, -1] if at_last else curves.max(axis=-1)
            if (ends >= goal).mean() >= POWER:
                break
            cases = math.ceil(cases * 1.15)
        else:
            return None
        most = max(most, cases)
    return most
