"""Comparison and thresholds become a verdict with reasons and margins. The gate fails closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from vllm_eval.compare.intervals import resample
from vllm_eval.compare.paired import cases_to_settle, pair_scores
from vllm_eval.compare.summary import Comparison, Summary
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE

TOLERANCE = 1e-9
"""A value on its threshold passes, whichever way its last bit was rounded."""
NO_NUMBER = "there is no such number in this run"
NOT_FINISHED = "NOT FINISHED"
"""Instead of a verdict while outcomes are pending: a partial run neither passes nor fails."""

_Basic = Literal["answered", "valid_rate", "baseline_mean", "ratio", "ratio_low"]
_Extra = Literal["student_mean", "student_std", "lowest_case", "distance", "whole_files"]
Kind = Literal[_Basic, _Extra]
AT_MOST = ("student_std", "distance")
"""Rules whose threshold is an upper bound."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition of the gate, with its number."""

    kind: Kind
    arm: str
    """The arm that must meet it."""
    name: str
    """For a reader: the kind, with the names of the arms."""
    value: float | None
    """None if the number does not exist; the rule then fails."""
    threshold: float
    margin: float | None
    """How far the value is on the good side of the threshold; negative where the rule fails."""
    passed: bool
    reason: str
    """Why it failed; empty where it passed."""
    bound: Literal["at least", "at most"] = "at least"
    """Which side of the threshold is good; the threshold itself always is."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's verdict on one student, and how certain it is."""

    arm: str
    passed: bool
    rules: tuple[Rule, ...]
    pass_chance: float | None = None
    """Share of resamples of the cases on which the same rules pass; None without cases.

    0 if an answer is missing, because that does not depend on which cases were drawn.
    """
    cases_to_settle: int | None = None
    """About how many pairs of valid answers would settle whether the ratio is reached."""
    unsettled: str = ""
    """Why there is no such number."""

    @property
    def word(self) -> str:
        """`PASS` or `FAIL`."""
        return "PASS" if self.passed else "FAIL"


def decide_student(
    comparison: Comparison, arm: str, expected: int, gate: GateConfig, baseline: str = BASELINE
) -> Verdict:
    """Grade one student against the baseline; each arm must have `expected` outcomes.

    Source: `product_owner.md`, "Aggregates and gate": PASS only if all rules hold. Rules beyond
    those of that page count only where the configuration sets them.
    """
    low, why = _lower_end(comparison, arm, gate)
    base, student = comparison.arms.get(baseline), comparison.arms.get(arm)
    terms = _Terms(baseline, arm, expected, gate)
    rules = _rules(terms, base, student, low, why)
    chance = settle = None
    unsettled = "an arm is missing"
    if baseline in comparison.cases and arm in comparison.cases:
        level = gate.confidence or comparison.bootstrap.confidence
        lacking = gate.confidence is not None and low is None
        chance = 0.0 if lacking else _pass_chance(terms, comparison, level)
        one, two = pair_scores(comparison.cases[arm], comparison.cases[baseline])
        settle, unsettled = cases_to_settle(one, two, gate.min_ratio, level)
    passed = all(rule.passed for rule in rules)
    return Verdict(arm, passed, rules, chance, settle, unsettled)


def to_json(verdicts: Iterable[Verdict], pending: int) -> list[dict[str, Any]]:
    """Verdicts as JSON values; without the word PASS or FAIL while outcomes are `pending`."""
    return [asdict(v) | {"verdict": NOT_FINISHED if pending else v.word} for v in verdicts]


def from_json(rows: Iterable[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """The verdicts that `to_json` wrote."""
    return TypeAdapter(tuple[Verdict, ...]).validate_python(tuple(rows))


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is graded, apart from the numbers."""

    baseline: str
    arm: str
    expected: int
    gate: GateConfig


def _rules(
    terms: _Terms, base: Summary | None, student: Summary | None, low: float | None, why: str = ""
) -> tuple[Rule, ...]:
    """Every rule that is in force.

    `low` is the lower end of the ratio's interval; if there is none, `why` says why.
    """
    gate, arm, baseline = terms.gate, terms.arm, terms.baseline
    sides = ((baseline, base), (arm, student))
    mean, std, lowest = (student.mean, student.std, student.min) if student else (None,) * 3
    base_mean = base.mean if base else None
    ratio = mean / base_mean if mean is not None and base_mean else None
    rules = [_answered(name, summary, terms.expected) for name, summary in sides]
    for name, summary in sides:
        rate = summary.valid_rate if summary and summary.total else None
        rules.append(_rule("valid_rate", name, f"valid rate of {name}", rate, gate.min_valid_rate))
    least = gate.min_baseline_mean
    rules += [
        _rule("baseline_mean", baseline, f"mean of {baseline}", base_mean, least),
        _rule("ratio", arm, f"mean of {arm} / mean of {baseline}", ratio, gate.min_ratio),
    ]
    if gate.confidence is not None:
        name = f"ratio of means of {arm}, lower end at {gate.confidence:g}"
        rules.append(_rule("ratio_low", arm, name, low, gate.min_ratio, why))
    apart = None if mean is None or base_mean is None else abs(mean - base_mean)
    extra: tuple[tuple[Kind, str, float | None, float | None], ...] = (
        ("student_mean", f"mean of {arm}", mean, gate.min_student_mean),
        ("student_std", f"std of {arm}", std, gate.max_student_std),
        ("lowest_case", f"lowest valid case of {arm}", lowest, gate.min_case_score),
        ("distance", f"mean of {arm} apart from {baseline}", apart, gate.max_abs_difference),
    )
    for kind, name, value, bound in extra:
        if bound is not None:
            rules.append(_rule(kind, arm, name, value, bound))
    return tuple(rules)


def _lower_end(comparison: Comparison, arm: str, gate: GateConfig) -> tuple[float | None, str]:
    """The lower end of the ratio's interval, and why there is none."""
    paired = comparison.students.get(arm)
    if paired is None:
        return None, NO_NUMBER
    if gate.confidence not in (None, paired.ratio.confidence):
        return None, f"the interval was computed at {paired.ratio.confidence:g}"
    return paired.ratio.low, "" if paired.ratio.low is not None else paired.ratio.reason


def _pass_chance(terms: _Terms, comparison: Comparison, confidence: float) -> float | None:
    base, arm, seed = terms.baseline, terms.arm, comparison.bootstrap.seed
    summaries = comparison.arms[base], comparison.arms[arm]
    cases = comparison.cases[base], comparison.cases[arm]
    draws = passed = 0
    for one, two, low in resample(summaries, cases, confidence, seed):
        draws += 1
        passed += all(rule.passed for rule in _rules(terms, one, two, low))
    return passed / draws if draws else None


def _answered(arm: str, summary: Summary | None, expected: int) -> Rule:
    """Every case must have an answer: a gap in the data must not help an arm pass."""
    answered = summary.total - summary.errors if summary else 0
    why = f"{expected - answered} of {expected} have no answer to grade"
    share = answered / max(expected, 1)
    return _rule("answered", arm, f"cases of {arm} with an answer", share, 1.0, why)


def _rule(
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
