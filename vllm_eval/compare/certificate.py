"""The evidence of several runs of one student taken together.

An e-value is at most 1 on average where the claim is false. So is the product of e-values from
cases that no two of them share, and the mean of any e-values, however they depend on each other.
Runs that share a case, directly or through other runs, are averaged; these averages share no case
and are multiplied. Source: Vovk & Wang, E-values: calibration, combination and applications,
Annals of Statistics 49, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from vllm_eval.compare.betting import SURE, Evidence, p_of_all
from vllm_eval.compare.gate import correct
from vllm_eval.compare.rules import SHOWABLE, make_rule, with_state
from vllm_eval.compare.verdict import Rule, State, Verdict, overall
from vllm_eval.records import BASELINE

_Sets = Sequence[Sequence[Rule]]


@dataclass(frozen=True, slots=True)
class PastRun:
    """What one run says of a student."""

    name: str
    cases: frozenset[str]
    """Hash of the content of each."""
    rules: tuple[Rule, ...]
    """Of the same gate as in the student's other runs."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What several runs say of a student."""

    verdict: Verdict
    """Its rules have the value and the evidence of all runs together."""
    sets: tuple[tuple[str, ...], ...]
    """The runs, by sets of cases that share none; those of one set are averaged."""
    cases: int
    """Different ones."""


def certify(students: Mapping[str, Sequence[PastRun]], level: float) -> tuple[Certificate, ...]:
    """What the evidence of its runs says of each student at `level`.

    PASS if every rule is shown; FAIL if one is refuted, or if a rule on the cases at hand fails in
    any run; else UNDECIDED. A ratio or mean must hold on average too, as the gate has it. The
    chance that any of the students passes wrongly is kept below 1 - level (Holm 1979).
    """
    found = [_certify(name, runs, level) for name, runs in students.items()]
    verdicts = correct([one.verdict for one in found])
    return tuple(replace(one, verdict=v) for one, v in zip(found, verdicts, strict=True))


def rules_by_side(rules: Sequence[Rule]) -> dict[tuple[str, bool], Rule]:
    """The rules by kind, and whether they are the baseline's; without those on one run's interval.

    Names of students may differ between runs of the same adapter.
    """
    return {(r.kind, r.arm == BASELINE): r for r in rules if r.kind != "ratio_low"}


def _certify(name: str, runs: Sequence[PastRun], level: float) -> Certificate:
    sets = _disjoint(runs)
    rules = tuple(
        _together([[rules_by_side(run.rules)[key] for run in runs] for runs in sets], level)
        for key in rules_by_side(runs[0].rules)
    )
    p = p_of_all(rule.evidence for rule in rules if rule.evidence)
    names = tuple(tuple(run.name for run in runs) for runs in sets)
    cases = len({case for run in runs for case in run.cases})
    word = overall(rules)
    verdict = Verdict(name, word, rules, p=p, p_corrected=p, level=level, certified=word)
    return Certificate(verdict, names, cases)


def _disjoint(runs: Sequence[PastRun]) -> list[list[PastRun]]:
    """The runs in sets, so that no two of different sets share a case."""
    sets: list[tuple[frozenset[str], list[PastRun]]] = []
    for run in runs:
        touching = [one for one in sets if one[0] & run.cases]
        cases = run.cases.union(*(cases for cases, _ in touching))
        together = [other for _, others in touching for other in others]
        sets = [one for one in sets if one not in touching] + [(cases, [*together, run])]
    return [together for _, together in sets]


def _together(sets: _Sets, level: float) -> Rule:
    """One rule with the evidence of all runs; a rule on the cases at hand as in its worst run."""
    rules = [rule for rules in sets for rule in rules]
    if rules[0].kind not in SHOWABLE:
        return min(rules, key=lambda rule: -math.inf if rule.margin is None else rule.margin)
    evidence, value, one = _multiply(sets), _average(rules), rules[0]
    why = "" if value is None else "does not hold on average"
    rule = make_rule(one.kind, one.arm, one.name, value, one.threshold, why)
    return with_state(replace(rule, evidence=evidence), _state(evidence, level), level)


def _average(rules: Sequence[Rule]) -> float | None:
    """The mean of the runs' values, weighted by their cases; None if one has none."""
    cases = [rule.evidence.cases if rule.evidence else 0 for rule in rules]
    values = [rule.value for rule in rules if rule.value is not None]
    if len(values) < len(rules) or not sum(cases):
        return None
    return sum(value * n for value, n in zip(values, cases, strict=True)) / sum(cases)


def _multiply(sets: _Sets) -> Evidence:
    """The evidence for one rule: e-values averaged within each set, then multiplied."""
    every = [[rule.evidence for rule in rules if rule.evidence] for rules in sets]
    unknown = [len(rules) - len(found) for rules, found in zip(sets, every, strict=True)]
    flat = [evidence for found in every for evidence in found]
    cases = sum(evidence.cases for evidence in flat)
    logs = []
    for name in ("e_shown", "e_refuted"):
        # A run that does not know a score says nothing: its e-value is 1.
        means = [
            fmean([*(getattr(evidence, name) for evidence in found), *([1.0] * ones)])
            for found, ones in zip(every, unknown, strict=True)
        ]
        logs.append(sum(math.log(mean) if mean > 0 else -math.inf for mean in means))
    shown, refuted = (math.exp(min(log, SURE)) for log in logs)
    return Evidence(
        mean=sum(evidence.mean * evidence.cases for evidence in flat) / max(cases, 1),
        bound=flat[0].bound if flat else 0.0,
        cases=cases,
        p_shown=1 / max(shown, 1.0),
        p_refuted=1 / max(refuted, 1.0),
        e_shown=shown,
        e_refuted=refuted,
        first_shown=None,
        first_refuted=None,
    )


def _state(evidence: Evidence, level: float) -> State:
    """A rule that is both shown and refuted is refuted."""
    if evidence.p_refuted <= 1 - level:
        return "refuted"
    return "shown" if evidence.p_shown <= 1 - level else "open"
