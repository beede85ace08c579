"""Comparison and thresholds become a verdict with reasons and margins. It fails closed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vllm_eval.records import BASELINE

if TYPE_CHECKING:
    from vllm_eval.config import GateConfig
    from vllm_eval.stats import Comparison, Summary

TOLERANCE = 1e-9
"""A value on its threshold passes, however its last bit was rounded."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition of the gate, with its number."""

    name: str
    value: float | None
    """None where the number does not exist; the rule then fails."""
    threshold: float
    margin: float | None
    """Value less threshold; negative where the rule fails."""
    passed: bool
    reason: str
    """Why it failed; empty where it passed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's word on one student."""

    arm: str
    passed: bool
    rules: tuple[Rule, ...]

    @property
    def word(self) -> str:
        """`PASS` or `FAIL`."""
        return "PASS" if self.passed else "FAIL"


def judge_student(comparison: Comparison, arm: str, expected: int, gate: GateConfig) -> Verdict:
    """Hold one student against the baseline, each arm with `expected` outcomes.

    Source: `product_owner.md`, "Aggregates and gate": PASS only if all rules hold.
    """
    base, student = comparison.arms.get(BASELINE), comparison.arms.get(arm)
    rules = (
        _answered(BASELINE, base, expected),
        _answered(arm, student, expected),
        _at_least(f"valid rate of {BASELINE}", _rate(base), gate.min_valid_rate),
        _at_least(f"valid rate of {arm}", _rate(student), gate.min_valid_rate),
        _at_least(f"mean of {BASELINE}", base.mean if base else None, gate.min_baseline_mean),
        _at_least(f"mean of {arm} / mean of {BASELINE}", _ratio(base, student), gate.min_ratio),
    )
    return Verdict(arm, all(rule.passed for rule in rules), rules)


def _answered(arm: str, summary: Summary | None, expected: int) -> Rule:
    """Every case must have an answer: a gap in the data is no reason to pass."""
    answered = summary.total - summary.errors if summary else 0
    rule = _at_least(f"cases of {arm} with an answer", answered / max(expected, 1), 1.0)
    if rule.passed:
        return rule
    return replace(rule, reason=f"{expected - answered} of {expected} have no answer to judge")


def _at_least(name: str, value: float | None, threshold: float) -> Rule:
    if value is None:
        return Rule(name, None, threshold, None, False, "there is no such number in this run")
    passed = value >= threshold - TOLERANCE
    reason = "" if passed else f"{value:.4f} is below {threshold:.4f}"
    return Rule(name, value, threshold, value - threshold, passed, reason)


def _rate(summary: Summary | None) -> float | None:
    return summary.valid_rate if summary and summary.total else None


def _ratio(base: Summary | None, student: Summary | None) -> float | None:
    if base is None or student is None or student.mean is None or not base.mean:
        return None
    return student.mean / base.mean
