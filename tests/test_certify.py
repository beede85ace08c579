"""A verdict with an error rate: every rule shown, one refuted, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.depth import count
from vllm_eval.compare.betting import Claim, bets, log_wealth, ratio_claim, trace
from vllm_eval.compare.claims import Table, make_claims, trace_rules
from vllm_eval.compare.gate import decide
from vllm_eval.compare.sample_size import two_digits
from vllm_eval.compare.summary import compare_arms
from vllm_eval.compare.verdict import Verdict
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import Outcome

Scores = Sequence[float | None]


def answers(arm: str, scores: Sequence[float | None], samples: int = 1) -> list[Outcome]:
    """Answers to case after case, so many to each; None for one that broke the contract."""
    return [
        Outcome(
            arm,
            f"K{n // samples:04}",
            None,
            n % samples,
            "format_error" if score is None else "success",
            None,
            score,
            1,
            first_valid=score is not None,
        )
        for n, score in enumerate(scores)
    ]


def verdicts(
    base: Sequence[float | None],
    *students: Sequence[float | None],
    samples: int = 1,
    **gate: Any,
) -> tuple[Verdict, ...]:
    names = [f"s{n}" for n in range(len(students))]
    outcomes = answers("baseline", base, samples)
    for name, scores in zip(names, students, strict=True):
        outcomes += answers(name, scores, samples)
    cases = [f"K{n:04}" for n in range(len(base) // samples)]
    comparison = compare_arms(outcomes, ["baseline", *names], drawn=cases)
    return decide(comparison, names, len(base), GateConfig(**{"certify": 0.95} | gate))


def states(verdict: Verdict) -> dict[str, str]:
    return {f"{rule.kind} {rule.arm}": rule.state for rule in verdict.rules}


def test_a_student_as_good_as_the_base_is_certified_by_enough_cases() -> None:
    (verdict,) = verdicts([0.9] * 60, [0.9] * 60)
    assert verdict.word == "PASS"
    assert set(states(verdict).values()) == {"", "shown"}
    assert verdict.p <= 0.05


def test_a_student_as_good_as_the_base_is_undecided_with_few_cases() -> None:
    (verdict,) = verdicts([0.9] * 10, [0.9] * 10)
    assert (verdict.word, verdict.passed) == ("UNDECIDED", False)
    assert states(verdict)["valid_rate baseline"] == "open"
    assert not verdict.notes  # a base that is not shown is not hopeless
    assert verdict.cases_to_settle is not None
    assert 20 < verdict.cases_to_settle < 60


def test_so_many_cases_as_it_says_do_settle_it() -> None:
    (verdict,) = verdicts([0.9] * 10, [0.9] * 10)
    more = verdict.cases_to_settle or 0
    assert verdicts([0.9] * more, [0.9] * more)[0].word == "PASS"


def test_so_many_noisy_cases_as_it_says_settle_it_in_four_of_five_runs() -> None:
    student = [0.6, 1.0, 0.7, 1.0, 0.9, 1.0, 0.8, 1.0, 0.9, 0.8]
    (verdict,) = verdicts([0.9] * 10, student)
    cases, generator = verdict.cases_to_settle or 0, np.random.default_rng(1)
    claims = (
        ratio_claim(generator.choice(student, cases), np.full(cases, 0.9), 0.9) for _ in range(300)
    )
    shown = [trace(claim, cases, 0.95)(cases).first_shown is not None for claim in claims]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.1)


def test_what_it_takes_is_never_fewer_cases_than_those_at_hand() -> None:
    """More were planned, so the bets are careful; bolder ones would have been enough."""
    outcomes = [*answers("baseline", [0.9] * 40), *answers("s0", [0.9] * 40)]
    comparison, gate = compare_arms(outcomes, ["baseline", "s0"]), GateConfig(certify=0.95)
    (verdict,) = decide(comparison, ["s0"], 40, gate, planned=5000)
    assert verdict.word == "UNDECIDED"
    assert (verdict.cases_to_settle or 0) >= 40


def test_a_student_that_is_far_worse_is_refuted() -> None:
    (verdict,) = verdicts([0.9] * 60, [0.5] * 60)
    assert verdict.word == "FAIL"
    assert states(verdict)["ratio s0"] == "refuted"
    (rule,) = (rule for rule in verdict.rules if rule.kind == "ratio")
    assert rule.reason.startswith("refuted at 0.95")


def test_one_refuted_rule_is_enough_to_fail() -> None:
    scores: Scores = [0.9, 0.9, None] * 40
    (verdict,) = verdicts([0.9] * 120, scores, min_ratio=0.5)
    assert states(verdict)["ratio s0"] == "shown"
    assert states(verdict)["valid_rate s0"] == "refuted"
    assert verdict.word == "FAIL"


def test_a_missing_answer_fails_and_leaves_nothing_undecided() -> None:
    outcomes = [*answers("baseline", [0.9] * 10), *answers("s0", [0.9] * 9)]
    comparison = compare_arms(outcomes, ["baseline", "s0"])
    assert decide(comparison, ["s0"], 10, GateConfig(certify=0.95))[0].word == "FAIL"


def test_failing_where_the_base_is_strong_does_not_help_to_be_certified() -> None:
    """The spec's ratio over valid cases is perfect; with failures as 0 the student lost a tenth."""
    base: Scores = [0.9] * 400
    (verdict,) = verdicts(base, [None if n % 8 == 0 else 0.9 for n in range(400)], min_valid_rate=0)
    (rule,) = (rule for rule in verdict.rules if rule.kind == "ratio")
    assert rule.value == pytest.approx(1.0)
    assert rule.state != "shown"
    assert not verdict.passed


def test_the_ratio_over_valid_cases_stays_a_rule_beside_the_evidence() -> None:
    # Where the base fails, its 0 lifts the ratio with failures as 0, but not the spec's.
    base: Scores = [None if n % 5 == 0 else 1.0 for n in range(200)]
    options: dict[str, Any] = {
        "min_baseline_valid_rate": 0.5,
        "min_baseline_mean": 0.5,
        "min_valid_rate": 0.5,
    }
    (verdict,) = verdicts(base, [0.85] * 200, **options)
    (rule,) = (rule for rule in verdict.rules if rule.kind == "ratio")
    assert (rule.state, rule.passed) == ("shown", False)
    assert verdict.word == "UNDECIDED"


def test_several_samples_of_a_case_are_no_several_cases() -> None:
    (many,) = verdicts([0.9] * 60, [0.9] * 60)
    (few,) = verdicts([0.9] * 60, [0.9] * 60, samples=6)
    assert (many.word, few.word) == ("PASS", "UNDECIDED")


def test_among_several_students_a_pass_takes_more_evidence() -> None:
    good: Scores = [0.9] * 34
    (alone,) = verdicts(good, good)
    assert alone.word == "PASS"
    together = verdicts(good, *[good] * 6)
    assert {verdict.word for verdict in together} == {"UNDECIDED"}
    assert "6 students" in together[0].notes[-1]
    assert together[0].p_corrected == pytest.approx(6 * together[0].p)


def test_the_spread_and_the_lowest_case_are_about_the_cases_at_hand() -> None:
    (verdict,) = verdicts([0.9] * 60, [0.9] * 60, min_case_score=0.5, max_student_std=0.2)
    assert verdict.word == "PASS"
    (failed,) = verdicts([0.9] * 60, [0.9] * 59 + [0.4], min_case_score=0.5)
    assert failed.word == "FAIL"


def test_each_optional_rule_on_a_mean_is_shown_too() -> None:
    options: dict[str, Any] = {
        "min_student_mean": 0.7,
        "max_abs_difference": 0.3,
        "min_ratio_all": 0.8,
    }
    (verdict,) = verdicts([0.9] * 80, [0.9] * 80, **options)
    assert verdict.word == "PASS"
    for name in ("student_mean s0", "distance s0", "ratio_all s0"):
        assert states(verdict)[name] == "shown"


def test_a_student_too_far_from_the_baseline_in_either_direction_is_refuted() -> None:
    for student in (0.5, 1.0):
        (verdict,) = verdicts([0.75] * 200, [student] * 200, max_abs_difference=0.1)
        assert states(verdict)["distance s0"] == "refuted"


def test_a_rule_that_nothing_could_break_is_shown_at_once() -> None:
    options: dict[str, Any] = {"min_valid_rate": 0, "min_ratio": 0, "min_baseline_mean": 0}
    for score in (0.9, 0.0):
        (verdict,) = verdicts([0.9] * 2, [score] * 2, **options)
        assert verdict.word == "PASS"


def test_a_valid_rate_of_one_can_be_refuted_but_never_shown() -> None:
    (clean,) = verdicts([0.9] * 200, [0.9] * 200, min_valid_rate=1)
    assert states(clean)["valid_rate s0"] == "open"
    (failed,) = verdicts([0.9] * 200, [0.9] * 199 + [None], min_valid_rate=1)
    assert states(failed)["valid_rate s0"] == "refuted"


def test_the_evidence_depends_on_the_order_drawn_and_not_on_that_of_finishing() -> None:
    scores: Scores = [0.9, 0.6, 0.8, None, 1.0] * 10
    base: Scores = [0.8] * 50
    cases = [f"K{n:04}" for n in range(50)]
    found = []
    outcomes = [*answers("baseline", base), *answers("s0", scores)]
    for finished in (outcomes, outcomes[::-1], outcomes[::2] + outcomes[1::2]):
        comparison = compare_arms(finished, ["baseline", "s0"], drawn=cases)
        found.append(decide(comparison, ["s0"], 50, GateConfig(certify=0.95)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("planned", [10, 34, 200])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_false_claim_is_shown_at_some_case_in_at_most_five_percent_of_runs(
    share: float, planned: int
) -> None:
    """Rare zeros, and a true ratio on the bound: what fools a t test most."""
    draws = count(2000, deep=20_000)
    generator = np.random.default_rng(planned)
    worth = min(0.9 / (1 - share), 1.0)
    student = np.where(generator.random((draws, planned)) < share, 0.0, worth)
    base = np.full(planned, worth * (1 - share) / 0.9)
    wealth = np.exp(log_wealth(ratio_claim(student, base, 0.9), bets(planned, 0.95)))
    shown = wealth.max(axis=-1) >= 20
    assert shown.mean() <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    for run in range(20):
        found = trace(ratio_claim(student[run], base, 0.9), planned, 0.95)(planned)
        assert (found.first_shown is not None) == shown[run]


def test_the_wealth_after_the_last_case_is_one_on_average_if_the_claim_just_fails() -> None:
    x = np.random.default_rng(1).choice([0.0, 1.0], (200_000, 6), p=[0.1, 0.9])
    ends = np.exp(log_wealth(Claim(x, 0.0, 1.0, 0.9), bets(6, 0.95))[:, -1])
    assert ends.mean() == pytest.approx(1.0, abs=0.01)


def test_what_is_shown_at_some_case_stays_shown() -> None:
    x = np.array([1.0] * 60 + [0.0] * 30)
    early, late = (trace(Claim(x[:cases], 0.0, 1.0, 0.5), 90, 0.95)(cases) for cases in (60, 90))
    assert late.first_shown == early.first_shown is not None
    assert late.p_shown == early.p_shown <= 0.05
    assert late.e_shown < early.e_shown


def test_of_a_rule_that_is_both_shown_and_refuted_the_first_counts() -> None:
    good, bad = [0.9] * 400, [0.0] * 40
    for student, state in ((good[:60] + bad * 3, "shown"), (bad[:9] + good, "refuted")):
        (verdict,) = verdicts([0.9] * len(student), student)
        (rule,) = (rule for rule in verdict.rules if rule.kind == "ratio")
        assert rule.evidence is not None
        assert None not in (rule.evidence.first_shown, rule.evidence.first_refuted)
        assert (rule.state, verdict.passed) == (state, False)


def test_a_distance_is_refuted_at_the_stated_level_though_there_are_two_ways_to_refute_it() -> None:
    """Equal arms and a bound of 0: refuted wrongly in at most 5 % of runs. Each way takes 4 %."""
    generator, gate = np.random.default_rng(3), GateConfig(certify=0.95, max_abs_difference=0)
    runs, wrong = count(1500, deep=10_000), 0
    for _ in range(runs):
        base, student = (Table(generator.choice([0.0, 1.0], 60), np.ones(60)) for _ in range(2))
        traces = trace_rules(make_claims(student, base, gate), 60, 0.95)
        found = traces["distance", "student"](60)
        assert (found.first_refuted is not None) == (found.p_refuted <= 0.05)
        wrong += found.first_refuted is not None
    assert wrong / runs <= 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


def test_a_run_without_any_case_is_no_pass_and_no_crash() -> None:
    comparison = compare_arms([], ["baseline", "s0"])
    (verdict,) = decide(comparison, ["s0"], 10, GateConfig(certify=0.95))
    assert verdict.word == "FAIL"
    assert verdict.cases_to_settle is None


def test_what_it_takes_counts_the_other_students() -> None:
    good: Scores = [0.9] * 34
    together = verdicts(good, *[good] * 6)
    more: Scores = [0.9] * (together[0].cases_to_settle or 0)
    assert len(more) > 34
    assert {verdict.word for verdict in verdicts(more, *[more] * 6)} == {"PASS"}


def test_an_estimated_number_of_cases_has_two_digits_and_is_not_rounded_down() -> None:
    assert [two_digits(n) for n in (7, 58, 100, 113, 6489)] == [7, 58, 100, 120, 6500]


def test_what_more_cases_cannot_settle_is_said() -> None:
    (verdict,) = verdicts([0.9] * 60, [0.9] * 60, min_valid_rate=1)
    assert verdict.word == "UNDECIDED"
    assert "no number of cases shows so high a bound" in verdict.unsettled


def test_arms_without_a_common_valid_case_are_told_apart_in_a_note() -> None:
    base: Scores = [1.0, None] * 10
    student: Scores = [None, 1.0] * 10
    (verdict,) = verdicts(base, student, certify=None, min_valid_rate=0.5)
    assert verdict.word == "PASS"
    assert "no case is valid in both" in verdict.notes[0]


def test_an_unknown_score_leaves_the_valid_rates_to_be_shown() -> None:
    outcomes = [*answers("baseline", [0.9] * 60), *answers("s0", [0.9] * 60)]
    outcomes = [replace(outcome, score=None) for outcome in outcomes]
    comparison = compare_arms(outcomes, ["baseline", "s0"])
    (verdict,) = decide(comparison, ["s0"], 60, GateConfig(certify=0.95))
    assert states(verdict)["valid_rate s0"] == "shown"
    assert states(verdict)["ratio s0"] == "open"
    assert not verdict.passed


def test_a_level_at_which_both_sides_could_be_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="certify"):
        GateConfig(certify=0.4)


def test_without_certify_the_evidence_is_there_and_decides_nothing() -> None:
    (verdict,) = verdicts([0.9] * 10, [0.9] * 10, certify=None)
    assert verdict.word == "PASS"
    assert set(states(verdict).values()) == {""}
    assert 0.05 < verdict.p < 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"confidence": 0.9}, "confidence"),
        ({"against": "absolute"}, "min_student_mean"),
        ({"against": "absolute", "min_student_mean": 0.5, "min_ratio_all": 1}, "min_ratio_all"),
    ],
)
def test_rules_that_do_not_fit_together_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GateConfig(**{"certify": 0.95} | options)


def test_a_student_that_learned_what_the_base_lacks_is_graded_by_itself() -> None:
    base: Scores = [None] * 60
    (against,) = verdicts(base, [0.9] * 60)
    assert against.word == "FAIL"
    assert "No student can pass against this baseline" in " ".join(against.notes)
    assert "gate.against: absolute" in " ".join(against.notes)
    (alone,) = verdicts(base, [0.9] * 60, against="absolute", min_student_mean=0.75)
    assert alone.word == "PASS"
    assert not alone.notes


def test_the_baseline_has_a_valid_rate_of_its_own() -> None:
    base: Scores = [None, 0.9] * 30
    options: dict[str, Any] = {"certify": None, "min_baseline_valid_rate": 0.4}
    assert verdicts(base, [0.9] * 60, **options)[0].word == "PASS"
    assert verdicts(base, [0.9] * 60, certify=None)[0].word == "FAIL"


def test_a_ratio_that_depends_on_which_cases_count_is_said_in_a_note() -> None:
    """The student passes at 1.0 over its own valid cases and loses every case valid in both."""
    base: Scores = [1.0] * 16 + [0.2] * 4
    student: Scores = [0.85] * 16 + [None] * 4
    (verdict,) = verdicts(base, student, certify=None, min_valid_rate=0.8)
    assert verdict.word == "PASS"
    assert "1.012 over the valid cases of each arm" in verdict.notes[0]
    assert "0.850 over the 16 cases valid in both, and 0.810 with failures" in verdict.notes[0]


def test_the_ratio_with_failures_as_zero_can_be_a_rule() -> None:
    student: Scores = [0.9] * 18 + [None] * 2
    options: dict[str, Any] = {"certify": None, "min_ratio_all": 0.95}
    (verdict,) = verdicts([0.9] * 20, student, **options)
    assert [rule.kind for rule in verdict.rules if not rule.passed] == ["ratio_all"]


def test_cases_to_settle_are_named_only_where_the_ratio_is_in_doubt() -> None:
    student: Scores = [0.7, 1.0] * 8 + [None] * 4
    (verdict,) = verdicts([0.9] * 20, student, certify=None)
    assert (verdict.cases_to_settle, verdict.unsettled) == (
        None,
        "the ratio is not what is in doubt",
    )
