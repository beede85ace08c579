"""The gate's rules: which are in force, and what the numbers and the evidence say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vllm_eval.compare.betting import Evidence, chance
from vllm_eval.compare.intervals import Interval
from vllm_eval.compare.summary import Summary
from vllm_eval.compare.verdict import TOLERANCE, Kind, Rule, State
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE

NO_NUMBER = "there is no such number in this run"
AT_MOST = ("student_std", "distance")
"""Rules whose threshold is an upper bound."""
SHOWABLE = ("valid_rate", "baseline_mean", "ratio", "ratio_all", "student_mean", "distance")
"""Rules about means, so about cases that were not asked too: evidence can show or refute them."""


@dataclass(frozen=True, slots=True)
class RatioAmong:
    """A student's ratio of means over the pairs, and how many students are graded together."""

    interval: Interval | None
    """At the level that `level_among` gives for so many students."""
    students: int = 1


def make_rules(
    gate: GateConfig,
    arm: str,
    base: Summary | None,
    student: Summary | None,
    expected: int | None = None,
    ratio: RatioAmong | None = None,
) -> tuple[Rule, ...]:
    """Every rule that is in force, by the numbers of these cases.

    Each arm must have `expected` answers, if that is given; `ratio` is what `gate.confidence` is
    about.
    """
    mean, std, lowest = (student.mean, student.std, student.min) if student else (None,) * 3
    base_mean = base.mean if base else None
    sides = [(arm, student, gate.min_valid_rate)]
    if gate.against == "baseline":
        sides.insert(0, (BASELINE, base, gate.baseline_valid_rate))
    rules = []
    if expected is not None:
        rules += [_answered(name, summary, expected) for name, summary, _ in sides]
    for name, summary, least in sides:
        rate = summary.valid_rate if summary and summary.total else None
        rules.append(make_rule("valid_rate", name, f"valid rate of {name}", rate, least))
    if gate.against == "baseline":
        least, name = gate.min_baseline_mean, f"mean of {arm} / mean of {BASELINE}"
        rules.append(make_rule("baseline_mean", BASELINE, f"mean of {BASELINE}", base_mean, least))
        why = "" if base_mean else "the baseline has no mean to compare with"
        rules.append(make_rule("ratio", arm, name, over(mean, base_mean), gate.min_ratio, why))
        if (least_all := gate.min_ratio_all) is not None:
            every = over(*(side.mean_all if side else None for side in (student, base)))
            rules.append(make_rule("ratio_all", arm, f"{name}, failures = 0", every, least_all))
    if gate.confidence is not None:
        low, why = _lower_end(ratio, gate.confidence)
        name = f"ratio of means of {arm}, lower end at {gate.confidence:g}"
        name += f" among {ratio.students} students" if ratio and ratio.students > 1 else ""
        rules.append(make_rule("ratio_low", arm, name, low, gate.min_ratio, why))
    apart = None if mean is None or base_mean is None else abs(mean - base_mean)
    extra: tuple[tuple[Kind, str, float | None, float | None], ...] = (
        ("student_mean", f"mean of {arm}", mean, gate.min_student_mean),
        ("student_std", f"std of {arm}", std, gate.max_student_std),
        ("lowest_case", f"lowest valid case of {arm}", lowest, gate.min_case_score),
        ("distance", f"mean of {arm} apart from {BASELINE}", apart, gate.max_abs_difference),
    )
    for kind, name, value, bound in extra:
        if bound is not None:
            rules.append(make_rule(kind, arm, name, value, bound))
    return tuple(rules)


def level_among(confidence: float, students: int) -> float:
    """The level of each student's interval, so that all of them hold together at `confidence`.

    Source: Bonferroni's inequality. Holm's method takes p-values, and an interval has none.
    """
    return 1 - (1 - confidence) / students if students > 1 else confidence


def _answered(arm: str, summary: Summary | None, expected: int) -> Rule:
    """Every case must have an answer: a gap in the data must not help an arm pass."""
    answered = summary.total - summary.errors if summary else 0
    why = f"{expected - answered} of {expected} have no answer to grade"
    share = answered / max(expected, 1)
    return make_rule("answered", arm, f"cases of {arm} with an answer", share, 1.0, why)


def make_rule(
    kind: Kind, arm: str, name: str, value: float | None, threshold: float, why: str = ""
) -> Rule:
    """One rule applied to its number; `why` it fails, if the number alone does not say."""
    bound: Literal["at least", "at most"] = "at most" if kind in AT_MOST else "at least"
    if value is None:
        return Rule(kind, arm, name, None, threshold, None, False, why or NO_NUMBER, bound)
    margin = threshold - value if bound == "at most" else value - threshold
    passed = margin >= -TOLERANCE
    if not passed and not why:
        why = f"{value:.6g} is {'above' if bound == 'at most' else 'below'} {threshold:.6g}"
    return Rule(kind, arm, name, value, threshold, margin, passed, "" if passed else why, bound)


def _lower_end(ratio: RatioAmong | None, confidence: float) -> tuple[float | None, str]:
    """The lower end of the ratio's interval, and why there is none."""
    if ratio is None or (found := ratio.interval) is None:
        return None, NO_NUMBER
    if found.confidence != level_among(confidence, ratio.students):
        return None, f"the interval was computed at {found.confidence:g}"
    return found.low, "" if found.low is not None else found.reason


def over(mine: float | None, theirs: float | None) -> float | None:
    """Their ratio, if there is one."""
    return mine / theirs if mine is not None and theirs else None


def add_evidence(
    rules: Sequence[Rule], found: Mapping[tuple[Kind, str], Evidence]
) -> tuple[Rule, ...]:
    """The rules with their evidence, which is by kind and arm."""
    return tuple(replace(rule, evidence=found.get((rule.kind, rule.arm))) for rule in rules)


def certify_rules(rules: Sequence[Rule], level: float) -> tuple[Rule, ...]:
    """The rules, of which those on means must also be shown at `level` by their evidence."""
    return tuple(
        with_state(r, _state(r.evidence), level) if r.kind in SHOWABLE else r for r in rules
    )


def with_state(rule: Rule, state: State, level: float) -> Rule:
    """The rule with what its evidence says at `level`, which decides as well."""
    found, reason = rule.evidence, rule.reason
    passed = rule.passed and state == "shown"
    if state == "refuted" and found:
        reason = f"refuted at {level:g} ({chance(found.p_refuted)})"
    elif state == "open":
        seen = f" ({chance(found.p_shown)})" if found else ": a score is unknown"
        reason = "; ".join(filter(None, (reason, f"not shown at {level:g}{seen}")))
    return replace(rule, passed=passed, reason="" if passed else reason, state=state)


def _state(found: Evidence | None) -> State:
    """What was reached first counts: later cases cannot take it back."""
    if found is None:
        return "open"
    shown, refuted = found.first_shown, found.first_refuted
    if shown is not None and (refuted is None or shown < refuted):
        return "shown"
    return "open" if refuted is None else "refuted"
