"""Student against baseline over the same cases: difference, ratio, wins, and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vllm_eval.compare.cases import Cases
from vllm_eval.compare.intervals import Interval, make_interval

SAME = 1e-9
"""Scores closer than this are a tie; the rest is rounding."""
EXCHANGES = 9999
MAX_EXCHANGED = 500
MAX_EXACT_PAIRS = 100
"""Above it the signed-rank test uses its normal approximation, which is then just as good."""


@dataclass(frozen=True, slots=True)
class Significance:
    """A test of whether two arms differ at all; two-sided."""

    name: str
    p: float
    """1 where nothing differs."""
    method: Literal["exact", "normal approximation", "resampled"]
    cases: int
    """Cases in which the arms differ; only these carry information."""


@dataclass(frozen=True, slots=True)
class Paired:
    """One student against the baseline.

    Scores are compared over the cases with a valid answer in both arms. A failed case enters
    neither `difference` nor `ratio`, so that a student cannot gain by failing where the task is
    hard. Failures enter `validity`, and `ratio_all`, which counts each as 0.
    """

    baseline: str
    cases: int
    """Cases that both arms were asked."""
    pairs: int
    """Of those, cases with a valid answer in both arms."""
    difference: Interval
    """Student mean minus baseline mean, over the pairs."""
    ratio: Interval
    """Student mean over baseline mean, over the pairs."""
    ratio_all: Interval
    """The ratio over all cases, with failed answers counted as 0."""
    wins: int
    """Pairs in which the student scores higher."""
    losses: int
    ties: int
    scores: Significance
    """On the scores of the pairs."""
    gained: int
    """Cases that the student answers validly more often than the baseline."""
    lost: int
    """Cases that the baseline answers validly more often than the student."""
    validity: Significance
    """On gained and lost; leaves out cases without an answer in one of the arms."""


def pair_scores(student: Cases, base: Cases) -> tuple[list[float], list[float]]:
    """The scores of the cases, by id, that have a valid answer in both arms."""
    one, two = [], []
    for case in sorted(student):  # sums are the same to the last bit, whatever the order
        mine, theirs = student[case], base.get(case)
        if theirs is not None and mine.score is not None and theirs.score is not None:
            one.append(mine.score)
            two.append(theirs.score)
    return one, two


def pair_all(student: Cases, base: Cases) -> tuple[list[float], list[float]]:
    """The scores, failures as 0, of the cases, by id, whose score is known in both arms."""
    both = [(student[case], base[case]) for case in sorted(student) if case in base]
    known = [(mine, theirs) for mine, theirs in both if mine.scored and theirs.scored]
    return [mine.score_all for mine, _ in known], [theirs.score_all for _, theirs in known]


def compare_cases(student: Cases, base: Cases, baseline: str, confidence: float) -> Paired:
    """Compare one student with the baseline, case by case; defined even for no cases."""
    common = sorted(case for case in student if case in base)
    one, two = pair_scores(student, base)
    distances = [mine - theirs for mine, theirs in zip(one, two, strict=True)]
    wins, losses = sum(d > SAME for d in distances), sum(d < -SAME for d in distances)
    answered = [c for c in common if not student[c].errors and not base[c].errors]
    shares = [student[case].share - base[case].share for case in answered]
    gained, lost = sum(s > SAME for s in shares), sum(s < -SAME for s in shares)
    return Paired(
        baseline=baseline,
        cases=len(common),
        pairs=len(one),
        difference=make_interval(one, two, "difference", confidence),
        ratio=make_interval(one, two, "ratio", confidence),
        ratio_all=make_interval(*pair_all(student, base), "ratio", confidence),
        wins=wins,
        losses=losses,
        ties=len(distances) - wins - losses,
        scores=signed_rank(distances),
        gained=gained,
        lost=lost,
        validity=mcnemar(gained, lost),
    )


def signed_rank(distances: Sequence[float]) -> Significance:
    """Wilcoxon's signed-rank test; leaves out pairs without a difference.

    Exact up to `MAX_EXACT_PAIRS`, with ties too: the distribution of the rank sum over all
    signs, given the mid-ranks at hand. Source: Wilcoxon 1945; Pratt & Gibbons, Concepts of
    Nonparametric Theory, 1981, chapter 3, for ties.
    """
    from scipy import stats

    name = "Wilcoxon signed-rank"
    # Rounded, so that equal distances stay equal when their last bits differ.
    apart = [round(d, 9) for d in distances if abs(d) > SAME]
    if not apart:
        return Significance(name, 1.0, "exact", 0)
    if len(apart) > MAX_EXACT_PAIRS:
        p = float(stats.wilcoxon(apart).pvalue)
        return Significance(name, p, "normal approximation", len(apart))
    ranks = stats.rankdata([abs(d) for d in apart])
    above = sum(rank for rank, d in zip(ranks, apart, strict=True) if d > 0)
    return Significance(name, _exact_p(ranks, float(above)), "exact", len(apart))


def paired_means(one: Sequence[float], other: Sequence[float]) -> Significance:
    """Whether the means of paired scores differ, by exchanging the scores of each pair.

    Exact for few pairs, else by `EXCHANGES` random ones; of many pairs, the t test is the same.
    Source: Fisher, The Design of Experiments, 1935, section 21.
    """
    import numpy as np
    from scipy import stats

    apart = np.array(one) - np.array(other)
    differ = int((np.abs(apart) > SAME).sum())
    if not differ:
        return Significance("paired exchange", 1.0, "exact", 0)
    if len(apart) > MAX_EXCHANGED:
        return Significance(
            "paired t", float(stats.ttest_1samp(apart, 0).pvalue), "normal approximation", differ
        )
    found = stats.permutation_test(
        (apart,),
        lambda x, axis=-1: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=EXCHANGES,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    exact = 2 ** len(apart) <= EXCHANGES
    how: Literal["exact", "resampled"] = "exact" if exact else "resampled"
    return Significance("paired exchange", min(1.0, float(found.pvalue)), how, differ)


def _exact_p(ranks: Any, above: float) -> float:
    """Probability of a rank sum as far from its mean as `above`, if all signs are random."""
    import numpy as np

    doubled = np.rint(2 * ranks).astype(int)  # mid-ranks are halves
    chances = np.zeros(doubled.sum() + 1)
    chances[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[:-rank]
        chances = (chances + shifted) / 2
    seen = round(2 * above)
    extreme = min(seen, int(doubled.sum()) - seen)
    return min(1.0, 2 * float(chances[: extreme + 1].sum()))


def mcnemar(gained: int, lost: int) -> Significance:
    """Exact test on the cases that only one arm answers validly.

    With several samples per case it is the sign test on the shares of valid samples, which is
    the same thing for one. Source: McNemar 1947; exact as a binomial of one half.
    """
    from scipy.stats import binomtest

    cases = gained + lost
    p = float(binomtest(gained, cases, 0.5).pvalue) if cases else 1.0
    return Significance("exact McNemar", p, "exact", cases)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for multiple testing. Source: Holm 1979."""
    corrected = [1.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
