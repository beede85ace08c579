"""The gate's rules as claims about cases like these, the evidence, and how many cases it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_eval.compare.betting import Claim, Evidence, Trace, bets, log_wealth, ratio_claim, trace
from vllm_eval.compare.cases import Cases
from vllm_eval.compare.paired import POWER
from vllm_eval.compare.verdict import Kind, Rule
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE

Claims = Mapping[tuple[Kind, str], tuple[Claim, ...]]
"""By the kind of a rule and the arm that must meet it; the rule holds where all of them do."""
Traces = Mapping[tuple[Kind, str], Trace]
"""The evidence on each rule, by the same."""

REPEATS = 100
"""Runs drawn from the cases at hand, to see how many cases would be enough."""
MOST_CASES = 10_000
"""Larger numbers are not looked for."""
TOO_CLOSE = "{} is too close to its threshold to be settled"


@dataclass(frozen=True, slots=True)
class Table:
    """The cases of one arm as arrays of [..., cases], in the order drawn."""

    score: Any
    """Mean score of all samples of the case, a failed one counted as 0; None if one is unknown."""
    valid: Any
    """Share of its samples that kept the contract."""


def tables(student: Cases, base: Cases) -> tuple[Table, Table]:
    """Both arms over the cases that either was asked.

    The order is the student's own. An answer that is missing counts as a failed one.
    """
    import numpy as np

    names = [*student, *(name for name in base if name not in student)]
    found = []
    for side in (student, base):
        cases = [side.get(name) for name in names]
        known = all(case is None or case.scored for case in cases)
        scores = [case.score_all if case else 0.0 for case in cases] if known else None
        shares = [case.share if case else 0.0 for case in cases]
        found.append(Table(None if scores is None else np.array(scores), np.array(shares)))
    return found[0], found[1]


def make_claims(student: Table, base: Table, gate: GateConfig, arm: str = "student") -> Claims:
    """What must hold of cases like these, for every rule of the gate that is about a mean.

    A failed answer counts as 0 in each score, on either side, so no arm is helped by failing. Rules
    on the spread and on the lowest case are about the cases at hand alone. An unknown score leaves
    out the rules on that arm's scores. `arm` is the student's name.
    """

    def share(x: Any, least: float) -> tuple[Claim, ...]:
        return (Claim(x, 0.0, 1.0, least),)

    found: dict[tuple[Kind, str], tuple[Claim, ...]] = {
        ("valid_rate", arm): share(student.valid, gate.min_valid_rate)
    }
    if gate.min_student_mean is not None and student.score is not None:
        found["student_mean", arm] = share(student.score, gate.min_student_mean)
    if gate.against == "absolute":
        return found
    found["valid_rate", BASELINE] = share(base.valid, gate.baseline_valid_rate)
    if base.score is not None:
        found["baseline_mean", BASELINE] = share(base.score, gate.min_baseline_mean)
    if base.score is None or student.score is None:
        return found
    found["ratio", arm] = (ratio_claim(student.score, base.score, gate.min_ratio),)
    if (least := gate.min_ratio_all) is not None:
        found["ratio_all", arm] = (ratio_claim(student.score, base.score, least),)
    if (most := gate.max_abs_difference) is not None:
        apart = student.score - base.score
        found["distance", arm] = tuple(Claim(x, -1.0, 1.0, -most) for x in (apart, -apart))
    return found


def trace_rules(claims: Claims, planned: int, level: float) -> Traces:
    """The evidence for the rules that make these claims."""
    return {key: _trace_all(found, planned, level) for key, found in claims.items()}


def _trace_all(claims: Sequence[Claim], planned: int, level: float) -> Trace:
    traces = [trace(claim, planned, level, len(claims)) for claim in claims]
    return lambda cases: _together([after(cases) for after in traces])


def _together(found: Sequence[Evidence]) -> Evidence:
    """The evidence for a rule that makes one claim, or two that cannot both be wrong."""
    weakest = max(found, key=lambda evidence: evidence.p_shown)
    if len(found) == 1:
        return weakest
    firsts = [e.first_shown for e in found if e.first_shown is not None]
    against = min(found, key=lambda evidence: evidence.p_refuted)
    return replace(
        weakest,
        e_shown=min(evidence.e_shown for evidence in found),
        first_shown=max(firsts) if len(firsts) == len(found) else None,
        p_refuted=against.p_refuted,
        e_refuted=sum(evidence.e_refuted for evidence in found) / len(found),
        first_refuted=against.first_refuted,
    )


def pairs_needed(
    student: Sequence[float], base: Sequence[float], ratio: float, level: float, seed: int
) -> int | None:
    """How many pairs of valid scores like these put one end of the ratio's interval on `ratio`."""
    import numpy as np

    claim = ratio_claim(np.array(student), np.array(base), ratio)
    return cases_needed((claim,), level, seed, at_last=True)


def cases_needed(
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
            cases = cases_needed(found, level, seed)
            if cases is None:
                return None, TOO_CLOSE.format(rule.name)
            needed = max(needed, cases)
    if needed:
        return needed, ""
    short = "; ".join(rule.name for rule in rules if not rule.passed)
    return None, f"the evidence is enough, but these cases miss the bound: {short}"
