"""The gate's rules as claims about all cases like these, and the evidence for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_eval.compare.betting import Claim, Evidence, Trace, ratio_claim, trace
from vllm_eval.compare.cases import Cases
from vllm_eval.compare.verdict import Kind
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE

Claims = Mapping[tuple[Kind, str], tuple[Claim, ...]]
"""By the kind of a rule and the arm that must meet it; the rule holds where all of them do."""
Traces = Mapping[tuple[Kind, str], Trace]
"""The evidence on each rule, by the same."""


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
