"""The verdict on each student, with reasons and margins. The gate fails closed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from vllm_eval.compare.betting import chance, p_of_all
from vllm_eval.compare.claims import Claims, make_claims, tables, trace_rules
from vllm_eval.compare.intervals import make_interval
from vllm_eval.compare.notes import notes_of
from vllm_eval.compare.paired import holm, pair_scores
from vllm_eval.compare.resampling import resample
from vllm_eval.compare.rules import (
    RatioAmong,
    add_evidence,
    certify_rules,
    level_among,
    make_rules,
)
from vllm_eval.compare.sample_size import (
    TOO_CLOSE,
    cases_to_certify,
    cases_to_settle,
    pairs_needed,
    two_digits,
)
from vllm_eval.compare.summary import Comparison, compare_arms
from vllm_eval.compare.verdict import Rule, Verdict, overall
from vllm_eval.config.settings import CONFIDENCE, GateConfig
from vllm_eval.records import BASELINE, Outcome

RATIOS = ("ratio", "ratio_low")


def grade(
    outcomes: Sequence[Outcome],
    arms: Sequence[str],
    expected: int,
    gate: GateConfig,
    *,
    drawn: Collection[str] | None,
    seed: int,
) -> tuple[Comparison, tuple[Verdict, ...]]:
    """Compare the arms, and decide on the students; `drawn` are the ids of the cases in order."""
    comparison = compare_arms(outcomes, arms, confidence=gate.interval_level, drawn=drawn)
    students, planned = [arm for arm in arms if arm != BASELINE], len(drawn) if drawn else None
    return comparison, decide(comparison, students, expected, gate, planned=planned, seed=seed)


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

    With `gate.confidence`, the intervals of several students hold together at that level
    (Bonferroni). With `gate.certify`, a student passes only if every rule is shown at that level,
    and fails if one is refuted. The chance of a wrong PASS is below 1 - level, also that of any
    among several students (Holm 1979); that of a wrong FAIL is below 1 - level for each rule.

    Source: `product_owner.md`, "Aggregates and gate": PASS only if all rules hold. Rules beyond
    those of that page count only where the configuration sets them.
    """
    about = (expected, gate, planned, seed, len(students))
    terms = [_Terms(comparison, arm, *about) for arm in students]
    verdicts = correct([_decide(each) for each in terms])
    return tuple(_with_cases(*both) for both in zip(terms, verdicts, strict=True))


def correct(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Correct the p-values for several students, by which a PASS may become UNDECIDED."""
    found = []
    for verdict, p in zip(verdicts, holm([verdict.p for verdict in verdicts]), strict=True):
        lost = verdict.certified == "PASS" and p > 1 - verdict.level
        one = replace(verdict, p_corrected=p)
        if lost:
            one = replace(one, certified="UNDECIDED")
        if lost and any(rule.state for rule in verdict.rules):
            note = (
                f"Every rule is shown at {verdict.level:g} for this student alone, but not among "
                f"{len(verdicts)} students: {chance(p)}, corrected."
            )
            one = replace(one, word="UNDECIDED", notes=(*verdict.notes, note))
        found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class _Terms:
    """What one student is graded by."""

    comparison: Comparison
    arm: str
    expected: int
    gate: GateConfig
    planned: int | None
    seed: int
    students: int
    """How many are graded together."""

    @property
    def ratio(self) -> RatioAmong:
        """What `gate.confidence` is about."""
        found = self.comparison.students.get(self.arm)
        interval = found.ratio if found else None
        if found and self.gate.confidence is not None and self.students > 1:
            cases, level = self.comparison.cases, level_among(self.gate.confidence, self.students)
            pairs = pair_scores(cases[self.arm], cases[BASELINE])
            interval = make_interval(*pairs, "ratio", level)
        return RatioAmong(interval, self.students)

    @property
    def claims(self) -> Claims:
        cases = self.comparison.cases
        return make_claims(*tables(cases[self.arm], cases[BASELINE]), self.gate, self.arm)


def _decide(terms: _Terms) -> Verdict:
    """The verdict on one student, as if it were the only one."""
    comparison, gate, arm = terms.comparison, terms.gate, terms.arm
    arms, cases, level = comparison.arms, comparison.cases, gate.level
    sides = arms.get(BASELINE), arms.get(arm)
    rules = make_rules(gate, arm, *sides, terms.expected, terms.ratio)
    if missing := [name for name in (BASELINE, arm) if name not in cases]:
        return Verdict(arm, "FAIL", rules, unsettled=f"there is no answer of {missing[0]}")
    count = len(cases[arm].keys() | cases[BASELINE].keys())
    traces = trace_rules(terms.claims, terms.planned or count, level)
    found = {key: after(count) for key, after in traces.items()}
    rules = add_evidence(rules, found)
    tested = tuple(map(_closed, certify_rules(rules, level)))
    certified = overall(rule for rule in tested if rule.kind != "ratio_low")
    rules = rules if gate.certify is None else tested
    p = p_of_all(found.values())
    return Verdict(
        arm=arm,
        word=overall(rules),
        rules=rules,
        pass_chance=_pass_chance(terms),
        p=p,
        p_corrected=p,
        level=level,
        certified=certified,
        notes=tuple(notes_of(comparison, arm, gate, rules)),
    )


def _with_cases(terms: _Terms, verdict: Verdict) -> Verdict:
    """The verdict with how many cases would settle what is in doubt."""
    if verdict.unsettled:
        return verdict
    if terms.gate.certify is None:
        settle, why = _cases_to_settle(terms, verdict)
    elif verdict.word == "UNDECIDED":
        strict = 1 - (1 - verdict.level) / terms.students  # which Holm asks of the first of them
        settle, why = cases_to_certify(strict, verdict.rules, terms.claims, terms.seed)
    else:
        settle, why = None, ""
    return replace(verdict, cases_to_settle=settle and two_digits(settle), unsettled=why)


def _closed(rule: Rule) -> Rule:
    """At the end a rule without a number fails, whatever the evidence."""
    return replace(rule, state="") if rule.value is None and rule.evidence else rule


def _pass_chance(terms: _Terms) -> float | None:
    """Leaves out what a rule says of other cases."""
    comparison, names = terms.comparison, (BASELINE, terms.arm)
    base, student = (comparison.arms[name] for name in names)
    cases = comparison.cases[BASELINE], comparison.cases[terms.arm]
    gate, passed = terms.gate.model_copy(update={"confidence": None}), []
    for one, two in resample((base, student), cases, terms.seed):
        rules = make_rules(gate, terms.arm, one, two, terms.expected)
        passed.append(all(rule.passed for rule in rules))
    return sum(passed) / len(passed) if passed else None


def _cases_to_settle(terms: _Terms, verdict: Verdict) -> tuple[int | None, str]:
    """About how many cases settle the ratio, or why there is no such number."""
    gate, cases = terms.gate, terms.comparison.cases
    if not all(rule.passed for rule in verdict.rules if rule.kind not in RATIOS):
        return None, "the ratio is not what is in doubt"
    if gate.against == "absolute":
        return None, "no ratio is a rule"
    one, two = pair_scores(cases[terms.arm], cases[BASELINE])
    if gate.confidence is None or verdict.passed or not one:
        return cases_to_settle(one, two, gate.min_ratio, CONFIDENCE)
    level = (1 + level_among(gate.confidence, terms.students)) / 2
    found = pairs_needed(one, two, gate.min_ratio, level, terms.seed)
    return found, "" if found else TOO_CLOSE.format("the ratio")
