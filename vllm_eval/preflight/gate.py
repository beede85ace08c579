"""What the planned number of cases can and cannot show, told before the first answer."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_eval.compare.power import (
    BASE_MEAN,
    MOST_SIMULATED,
    best_of,
    bound_of,
    cases_for_valid_rate,
    cases_to_pass,
    lowest_certified,
    pass_chance,
)
from vllm_eval.compare.sample_size import MOST_CASES, POWER
from vllm_eval.config.settings import GateConfig
from vllm_eval.preflight.finding import Finding, ok, warning

BELOW, ABOVE = 0.02, 0.05
"""Distances from the bound of students that should fail, and pass."""
HARDLY = 0.5
"""A chance of being certified below this is worth a warning."""
NOT_SIMULATED = ("max_student_std", "min_case_score", "max_abs_difference")
"""Rules that do not follow from a student's quality."""


def check_gate(gate: GateConfig, cases: int, students: int) -> list[Finding]:
    """One finding; none where the gate asks for more or less than typical scores can tell."""
    left_out = [name for name in NOT_SIMULATED if getattr(gate, name) is not None]
    gate = gate.model_copy(update=dict.fromkeys(left_out))
    possible = BELOW < bound_of(gate) < best_of(gate)
    if gate.against == "baseline":
        possible &= gate.min_baseline_mean < BASE_MEAN
    if not cases or not students or not possible:
        return []
    planned = f"with {cases:,} case{'s' if cases > 1 else ''}"
    if gate.certify is None:
        planned += f" and {students} students" if students > 1 and gate.confidence else ""
        what, todo = _by_numbers(gate, cases, students), ""
    else:
        planned += f" and {students} students" if students > 1 else ""
        what, todo = _certified(gate, gate.certify, cases, students)
    what = f"{planned}, {what} ({_assumed(gate, cases, left_out)}; docs/statistics.md)"
    return [warning("gate", what, todo) if todo else ok("gate", what)]


def _assumed(gate: GateConfig, cases: int, left_out: Sequence[str]) -> str:
    parts = ["assuming valid answers of a typical spread"]
    if gate.against == "baseline":
        parts[0] += f" and a base mean of {BASE_MEAN}"
    if left_out:
        parts.append(f"without {' and '.join(left_out)}")
    if cases > MOST_SIMULATED:
        parts.append(f"simulated for {MOST_SIMULATED:,} cases")
    return ", ".join(parts)


def _by_numbers(gate: GateConfig, cases: int, students: int) -> str:
    """How often the gate errs, on either side of its bound."""
    bad, good = bound_of(gate) - BELOW, _good(gate)
    passes = pass_chance(gate, bad, cases, students)
    fails = 1 - pass_chance(gate, good, cases, students)
    return (
        f"a student whose {_noun(gate)} is {bad:.3g} passes in {_percent(passes)} of such runs, "
        f"and one at {good:.3g} fails in {_percent(fails)}"
    )


def _certified(gate: GateConfig, level: float, cases: int, students: int) -> tuple[str, str]:
    """Who is certified; and what to do if hardly anyone is."""
    least = cases_for_valid_rate(gate, level, students)
    if least is None:
        what = f"no student can be certified at {level:g}: to show so high a valid rate takes "
        return f"{what}more than {MOST_CASES:,} cases", "lower gate.min_valid_rate"
    like_base = gate.against == "baseline" and bound_of(gate) < 1
    good = 1.0 if like_base else _good(gate)
    name = "one as good as the base" if like_base else f"one at {good:.3g}"
    often = f"with a chance of {_percent(POWER)}"
    if cases < least:
        chance = 0.0
        what = f"no student can be certified at {level:g}: even if every answer is valid, "
        what += f"it takes {least} to show the valid rate"
    else:
        chance = pass_chance(gate, good, cases, students)
        lowest = lowest_certified(gate, cases, students)
        what = (
            f"a student needs a {_noun(gate)} of {lowest:.2f} to be" if lowest else "no student is"
        )
        what += f" certified at {level:g} {often}, and {name} is in {_percent(chance)} of such runs"
    if chance >= HARDLY:
        return what, ""
    number = cases_to_pass(gate, good, students)
    enough = f"about {number:,}" if number else f"more than {MOST_SIMULATED:,}"
    return what, f"plan {enough} cases to certify {name} {often}"


def _noun(gate: GateConfig) -> str:
    return "true ratio" if gate.against == "baseline" else "true mean"


def _good(gate: GateConfig) -> float:
    """A quality above the bound, within what scores allow."""
    bound = bound_of(gate)
    return min(bound + ABOVE, (bound + best_of(gate)) / 2)


def _percent(chance: float) -> str:
    if 0.01 <= chance <= 0.99:
        return f"{100 * chance:.0f} %"
    return "under 1 %" if chance < 0.5 else "over 99 %"
