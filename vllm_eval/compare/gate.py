"""Comparison and thresholds become a verdict with reasons and margins. The gate fails closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vllm_eval.compare.claims import (
    TOO_CLOSE,
    Claims,
    cases_to_certify,
    make_claims,
    pairs_needed,
    tables,
    trace_rules,
)
from vllm_eval.compare.evidence import Evidence, chance
from vllm_eval.compare.intervals import resample
from vllm_eval.compare.notes import notes_of
from vllm_eval.compare.paired import cases_to_settle, holm, pair_scores
from vllm_eval.compare.summary import Comparison, Summary
from vllm_eval.compare.verdict import TOLERANCE, Kind, Ratios, Rule, State, Verdict, Word
from vllm_eval.config.settings import CONFIDENCE, GateConfig
from vllm_eval.records import BASELINE

NO_NUMBER = "there is no such number in this run"
AT_MOST = ("student_std", "distance")
"""Rules whose threshold is an upper bound."""
SHOWABLE = ("valid_rate", "baseline_mean", "ratio", "ratio_all", "student_mean", "distance")
"""Rules about means, so about cases that were not asked too."""
RATIOS = ("ratio", "ratio_low")


def decide(
    comparison: Comparison,
    students: Sequence[str],
    expected: int,
    gate: GateConfig,
    *,
    planned: int | None = None,
    seed: int = 42,
) -> tuple[Verdict, ...]:
    """Grade students against the baseline; each arm must have `expected` outcomes.

    `planned` is the number of cases that evidence may be gathered on, by default those at hand;
    it must be fixed before the first answer. `seed` is that of the resamples.

    With `gate.certify`, a student passes only if every rule is shown at that level, and fails if
    one is refuted. The chance of a wrong PASS is below 1 - level, also that of any among several
    students (Holm 1979); that of a wrong FAIL is below 1 - level for each rule.

    Source: `product_owner.md`, "Aggregates and gate": PASS only if all rules hold. Rules beyond
    those of that page count only where the configuration sets them.
    """
    terms = [Terms(comparison, arm, expected, gate, planned, seed) for arm in students]
    found = [_decide(each) for each in terms]
    corrected = holm([verdict.p for verdict in found])
    found = list(map(_corrected, terms, found, corrected, [len(found)] * len(found)))
    return tuple(map(_with_cases, terms, found, [len(found)] * len(found)))


@dataclass(frozen=True, slots=True)
class Terms:
    """What one student is graded by."""

    comparison: Comparison
    arm: str
    expected: int
    gate: GateConfig
    planned: int | None = None
    seed: int = 42


def _decide(terms: Terms) -> Verdict:
    """The verdict on one student, as if it were the only one."""
    comparison, gate, arm = terms.comparison, terms.gate, terms.arm
    arms, cases = comparison.arms, comparison.cases
    if missing := [name for name in (BASELINE, arm) if name not in cases]:
        rules = _rules(terms, arms.get(BASELINE), arms.get(arm))
        return Verdict(arm, "FAIL", rules, unsettled=f"there is no answer of {missing[0]}")
    count, level = len(cases[arm].keys() | cases[BASELINE].keys()), gate.certify or CONFIDENCE
    traces = trace_rules(_claims(terms), arm, terms.planned or count, level)
    evidence = {key: after(count) for key, after in traces.items()}
    rules = _closed(grade_rules(terms, arms[BASELINE], arms[arm], evidence))
    certain = gate.model_copy(update={"certify": level, "confidence": None})
    sure = grade_rules(replace(terms, gate=certain), arms[BASELINE], arms[arm], evidence)
    word, ratios = _word(rules, gate.certify), _ratios(terms)
    p = max((found.p_shown for found in evidence.values()), default=1.0)
    return Verdict(
        arm=arm,
        word=word,
        rules=rules,
        pass_chance=_pass_chance(terms),
        p=p,
        p_corrected=p,
        level=level,
        certified=_word(_closed(sure), level),
        ratios=ratios,
        notes=tuple(notes_of(comparison, arm, gate.min_ratio, rules, ratios)),
    )


def _claims(terms: Terms) -> Claims:
    cases = terms.comparison.cases
    return make_claims(*tables(cases[terms.arm], cases[BASELINE]), terms.gate)


def _closed(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """At the end a rule without a number fails, whatever the evidence."""
    lacking = (rule.value is None and rule.evidence for rule in rules)
    return tuple(replace(r, state="") if no else r for r, no in zip(rules, lacking, strict=True))


def _word(rules: Sequence[Rule], certify: float | None) -> Word:
    if all(rule.passed for rule in rules):
        return "PASS"
    sure = any(r.state == "refuted" or (not r.state and not r.passed) for r in rules)
    return "FAIL" if certify is None or sure else "UNDECIDED"


def _corrected(terms: Terms, verdict: Verdict, p: float, students: int) -> Verdict:
    """With the p-value among several students, by which a PASS may become undecided."""
    verdict = replace(verdict, p_corrected=p)
    if verdict.certified != "PASS" or p <= 1 - verdict.level:
        return verdict
    verdict = replace(verdict, certified="UNDECIDED")
    if terms.gate.certify is None:
        return verdict
    note = (
        f"Every rule is shown at {verdict.level:g} for this student alone, but not among "
        f"{students} students: {chance(p)}, corrected."
    )
    return replace(verdict, word="UNDECIDED", notes=(*verdict.notes, note))


def _with_cases(terms: Terms, verdict: Verdict, students: int) -> Verdict:
    """The verdict with how many cases would settle what is in doubt."""
    cases = terms.comparison.cases
    if terms.arm not in cases or BASELINE not in cases:
        return verdict
    if terms.gate.certify is None:
        settle, why = _cases_to_settle(terms, verdict)
    elif verdict.word == "UNDECIDED":
        strict = 1 - (1 - verdict.level) / students  # which Holm asks of the first of them
        settle, why = cases_to_certify(strict, verdict.rules, _claims(terms), terms.seed)
    else:
        settle, why = None, ""
    return replace(verdict, cases_to_settle=settle, unsettled=why)


def grade_rules(
    terms: Terms, base: Summary, student: Summary, evidence: Mapping[tuple[str, str], Evidence]
) -> tuple[Rule, ...]:
    """Every rule that is in force; `evidence` is by kind and arm, of the cases summarised."""
    certify = terms.gate.certify
    return tuple(_with_evidence(rule, evidence, certify) for rule in _rules(terms, base, student))


def _with_evidence(
    rule: Rule, evidence: Mapping[tuple[str, str], Evidence], certify: float | None
) -> Rule:
    """The rule with what the cases say about it; with `certify`, that decides as well."""
    found = evidence.get((rule.kind, rule.arm))
    rule = replace(rule, evidence=found)
    if certify is None or rule.kind not in SHOWABLE:
        return rule
    state = _state(found)
    passed = rule.passed and state == "shown"
    reason = rule.reason
    if state == "refuted" and found:
        reason = f"refuted at {certify:g} ({chance(found.p_refuted)})"
    elif state == "open":
        seen = f" ({chance(found.p_shown)})" if found else ": a score is unknown"
        reason = "; ".join(filter(None, (rule.reason, f"not shown at {certify:g}{seen}")))
    return replace(rule, passed=passed, reason="" if passed else reason, state=state)


def _state(found: Evidence | None) -> State:
    """What was reached first counts: later cases cannot take it back."""
    if found is None:
        return "open"
    shown, refuted = found.first_shown, found.first_refuted
    if shown is not None and (refuted is None or shown < refuted):
        return "shown"
    return "open" if refuted is None else "refuted"


def _rules(
    terms: Terms, base: Summary | None, student: Summary | None, *, resampled: bool = False
) -> tuple[Rule, ...]:
    """Every rule that is in force, by the numbers of these cases.

    The lower end of the ratio's interval is left out of those on cases that were `resampled`.
    """
    gate, arm = terms.gate, terms.arm
    mean, std, lowest = (student.mean, student.std, student.min) if student else (None,) * 3
    base_mean = base.mean if base else None
    sides = [(arm, student, gate.min_valid_rate)]
    if gate.against == "baseline":
        sides.insert(0, (BASELINE, base, gate.baseline_valid_rate))
    rules = [_answered(name, summary, terms.expected) for name, summary, _ in sides]
    for name, summary, least in sides:
        rate = summary.valid_rate if summary and summary.total else None
        rules.append(_rule("valid_rate", name, f"valid rate of {name}", rate, least))
    if gate.against == "baseline":
        least, name = gate.min_baseline_mean, f"mean of {arm} / mean of {BASELINE}"
        rules.append(_rule("baseline_mean", BASELINE, f"mean of {BASELINE}", base_mean, least))
        why = "" if base_mean else "the baseline has no mean to compare with"
        rules.append(_rule("ratio", arm, name, _over(mean, base_mean), gate.min_ratio, why))
        if gate.min_ratio_all is not None:
            sums = [side.mean_all if side else None for side in (student, base)]
            every = _over(*sums)
            rules.append(
                _rule("ratio_all", arm, f"{name}, failures = 0", every, gate.min_ratio_all)
            )
    if gate.confidence is not None and not resampled:
        low, why = _lower_end(terms.comparison, arm, gate.confidence)
        name = f"ratio of means of {arm}, lower end at {gate.confidence:g}"
        rules.append(_rule("ratio_low", arm, name, low, gate.min_ratio, why))
    apart = None if mean is None or base_mean is None else abs(mean - base_mean)
    extra: tuple[tuple[Kind, str, float | None, float | None], ...] = (
        ("student_mean", f"mean of {arm}", mean, gate.min_student_mean),
        ("student_std", f"std of {arm}", std, gate.max_student_std),
        ("lowest_case", f"lowest valid case of {arm}", lowest, gate.min_case_score),
        ("distance", f"mean of {arm} apart from {BASELINE}", apart, gate.max_abs_difference),
    )
    for kind, name, value, bound in extra:
        if bound is not None:
            rules.append(_rule(kind, arm, name, value, bound))
    return tuple(rules)


def _over(mine: float | None, theirs: float | None) -> float | None:
    return mine / theirs if mine is not None and theirs else None


def _lower_end(comparison: Comparison, arm: str, confidence: float) -> tuple[float | None, str]:
    """The lower end of the ratio's interval, and why there is none."""
    paired = comparison.students.get(arm)
    if paired is None:
        return None, NO_NUMBER
    if confidence != paired.ratio.confidence:
        return None, f"the interval was computed at {paired.ratio.confidence:g}"
    return paired.ratio.low, "" if paired.ratio.low is not None else paired.ratio.reason


def _pass_chance(terms: Terms) -> float | None:
    comparison, names = terms.comparison, (BASELINE, terms.arm)
    base, student = (comparison.arms[name] for name in names)
    cases = comparison.cases[BASELINE], comparison.cases[terms.arm]
    draws = passed = 0
    for one, two in resample((base, student), cases, terms.seed):
        draws += 1
        passed += all(rule.passed for rule in _rules(terms, one, two, resampled=True))
    return passed / draws if draws else None


def _cases_to_settle(terms: Terms, verdict: Verdict) -> tuple[int | None, str]:
    """About how many cases settle the ratio, or why there is no such number."""
    gate, cases = terms.gate, terms.comparison.cases
    if not all(rule.passed for rule in verdict.rules if rule.kind not in RATIOS):
        return None, "the ratio is not what is in doubt"
    if gate.against == "absolute":
        return None, "no ratio is a rule"
    one, two = pair_scores(cases[terms.arm], cases[BASELINE])
    if gate.confidence is None or verdict.passed or not one:
        return cases_to_settle(one, two, gate.min_ratio, CONFIDENCE)
    found = pairs_needed(one, two, gate.min_ratio, (1 + gate.confidence) / 2, terms.seed)
    return found, "" if found else TOO_CLOSE.format("the ratio")


def _ratios(terms: Terms) -> Ratios | None:
    arms, arm = terms.comparison.arms, terms.arm
    paired = terms.comparison.students.get(arm)
    valid = _over(arms[arm].mean, arms[BASELINE].mean)
    if terms.gate.against == "absolute" or paired is None or valid is None:
        return None
    every = paired.ratio_all.value
    return None if every is None else Ratios(valid, paired.ratio.value, every)


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
