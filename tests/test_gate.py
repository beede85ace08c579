"""The gate: a value on its threshold passes, anything missing fails with a reason."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.compare.gate import decide
from vllm_eval.compare.intervals import make_interval
from vllm_eval.compare.resampling import resample
from vllm_eval.compare.rules import NO_NUMBER
from vllm_eval.compare.summary import Comparison, compare_arms
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import Outcome, Status

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run
    from vllm_eval.compare.verdict import Verdict

DEFAULTS = GateConfig()


def outcomes(arm: str, scores: list[float], failed: int = 0, silent: int = 0) -> list[Outcome]:
    """So many valid cases with these scores, cases that broke the contract, and silent ones."""
    kinds: list[tuple[Status, float | None]] = [("success", score) for score in scores]
    kinds += [("format_error", 0.5)] * failed
    kinds += [("error", None)] * silent
    return [
        Outcome(arm, f"K{n}", None, 0, status, None, score, 1, status == "success")
        for n, (status, score) in enumerate(kinds)
    ]


def grade(base: list[Outcome], student: list[Outcome], **gate: Any) -> Verdict:
    level = gate.get("confidence", 0.95)
    comparison = compare_arms([*base, *student], ["baseline", "pupil"], confidence=level)
    return decide(comparison, ["pupil"], 10, GateConfig(**gate))[0]


def broken(verdict: Verdict) -> list[str]:
    return [rule.name for rule in verdict.rules if not rule.passed]


GOOD = outcomes("baseline", [0.8] * 10)
PUPIL = outcomes("pupil", [0.8] * 10)


def test_a_student_as_good_as_the_baseline_passes() -> None:
    verdict = grade(GOOD, PUPIL)
    assert (verdict.passed, verdict.word, broken(verdict)) == (True, "PASS", [])


@pytest.mark.parametrize(("failed", "passed"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("arm", ["baseline", "pupil"])
def test_a_valid_rate_of_nine_tenths_is_just_enough(arm: str, failed: int, passed: bool) -> None:
    arms = {"baseline": GOOD, "pupil": PUPIL}
    arms[arm] = outcomes(arm, [0.8] * (10 - failed), failed)
    verdict = grade(arms["baseline"], arms["pupil"])
    assert broken(verdict) == ([] if passed else [f"valid rate of {arm}"])


@pytest.mark.parametrize(("mean", "passed"), [(0.75, True), (0.7499, False), (0.76, True)])
def test_a_baseline_mean_of_three_quarters_is_just_enough(mean: float, passed: bool) -> None:
    verdict = grade(outcomes("baseline", [mean] * 10), PUPIL)
    assert broken(verdict) == ([] if passed else ["mean of baseline"])


@pytest.mark.parametrize(("mean", "passed"), [(0.72, True), (0.7199, False), (0.9, True)])
def test_nine_tenths_of_the_baseline_mean_is_just_enough(mean: float, passed: bool) -> None:
    verdict = grade(GOOD, outcomes("pupil", [mean] * 10))
    assert broken(verdict) == ([] if passed else ["mean of pupil / mean of baseline"])


@pytest.mark.parametrize("base", [0.76, 0.77, 0.83, 0.91, 0.99])
def test_rounding_never_fails_a_value_on_its_threshold(base: float) -> None:
    verdict = grade(outcomes("baseline", [base] * 10), outcomes("pupil", [base * 0.9] * 10))
    assert verdict.passed


def test_thresholds_are_configuration() -> None:
    pupil = outcomes("pupil", [0.5] * 5, failed=5)
    assert not grade(GOOD, pupil).passed
    assert grade(GOOD, pupil, min_valid_rate=0.5, min_ratio=0.6).passed


def test_a_rule_says_value_threshold_and_margin() -> None:
    rules = {rule.name: rule for rule in grade(GOOD, outcomes("pupil", [0.6] * 10)).rules}
    ratio = rules["mean of pupil / mean of baseline"]
    assert ratio.value == pytest.approx(0.75)
    assert ratio.threshold == 0.9
    assert ratio.margin == pytest.approx(-0.15)
    assert ratio.reason == "0.75 is below 0.9"


def test_a_rule_that_holds_has_no_reason() -> None:
    assert {rule.reason for rule in grade(GOOD, PUPIL).rules} == {""}


def test_the_score_of_a_case_that_failed_lifts_no_mean() -> None:
    verdict = grade(GOOD, outcomes("pupil", [0.7] * 9, failed=1))
    assert broken(verdict) == ["mean of pupil / mean of baseline"]


@pytest.mark.parametrize("arm", ["baseline", "pupil"])
def test_a_single_case_without_an_answer_fails(arm: str) -> None:
    arms = {"baseline": GOOD, "pupil": PUPIL}
    arms[arm] = outcomes(arm, [0.8] * 9, silent=1)
    verdict = grade(arms["baseline"], arms["pupil"])
    assert broken(verdict) == [f"cases of {arm} with an answer"]
    assert "1 of 10" in next(rule.reason for rule in verdict.rules if not rule.passed)


@pytest.mark.parametrize("arm", ["baseline", "pupil"])
def test_an_outcome_that_is_missing_fails(arm: str) -> None:
    arms = {"baseline": GOOD, "pupil": PUPIL}
    arms[arm] = arms[arm][:9]
    verdict = grade(arms["baseline"], arms["pupil"])
    assert broken(verdict) == [f"cases of {arm} with an answer"]


@pytest.mark.parametrize(
    ("base", "student"), [([], []), (GOOD, []), ([], PUPIL), (outcomes("baseline", [], 10), PUPIL)]
)
def test_an_arm_without_numbers_fails_with_a_reason(
    base: list[Outcome], student: list[Outcome]
) -> None:
    verdict = grade(base, student, min_valid_rate=0, min_baseline_mean=0, min_ratio=0)
    assert verdict.word == "FAIL"
    assert all(rule.reason for rule in verdict.rules if not rule.passed)


def test_a_student_nobody_knows_fails() -> None:
    verdict = decide(compare_arms(GOOD, ["baseline"]), ["ghost"], 10, DEFAULTS)[0]
    assert verdict.word == "FAIL"


def test_a_comparison_without_a_baseline_fails() -> None:
    assert not decide(Comparison({}, {}, {}), ["pupil"], 10, DEFAULTS)[0].passed


def test_a_baseline_of_zero_gives_no_ratio_and_fails() -> None:
    zero = outcomes("baseline", [0.0] * 10)
    verdict = grade(zero, PUPIL, min_baseline_mean=0, min_ratio=0)
    assert broken(verdict) == ["mean of pupil / mean of baseline"]


UNEVEN = outcomes("baseline", [0.75 + n / 100 for n in range(10)])
CLOSE = outcomes("pupil", [0.75, 0.71, 0.69, 0.74, 0.71, 0.76, 0.69, 0.80, 0.68, 0.78])
"""Mean 0.731, or 0.92 of the baseline's 0.795; the interval reaches below 0.9."""


def test_with_a_confidence_the_interval_must_clear_the_ratio_not_only_the_mean() -> None:
    assert grade(UNEVEN, CLOSE).passed
    verdict = grade(UNEVEN, CLOSE, confidence=0.95)
    assert broken(verdict) == ["ratio of means of pupil, lower end at 0.95"]
    assert 0.5 < (verdict.rules[-1].value or 0) < 0.9


def test_a_lower_confidence_is_easier_to_reach() -> None:
    better = outcomes("pupil", [1.0] * 10)
    assert not grade(GOOD, better, confidence=0.95).passed
    assert grade(GOOD, better, confidence=0.5).passed


@pytest.mark.parametrize("cases", [10, 20, 30])
def test_a_constant_ratio_over_few_pairs_passes_no_level_of_confidence(cases: int) -> None:
    """With 12 % of a student's answers worth nothing, 10 cases look like this in 28 % of runs."""
    base, pupil = (outcomes(arm, [0.8] * cases) for arm in ("baseline", "pupil"))
    comparison = compare_arms([*base, *pupil], ["baseline", "pupil"])
    verdict = decide(comparison, ["pupil"], cases, GateConfig(confidence=0.95))[0]
    assert broken(verdict) == ["ratio of means of pupil, lower end at 0.95"]


def test_without_an_interval_the_confidence_rule_fails_with_the_reason() -> None:
    rule = grade(outcomes("baseline", [], 10), PUPIL, confidence=0.95).rules[-1]
    assert (rule.passed, rule.reason) == (False, "there is no pair of cases")


def test_among_several_students_the_intervals_hold_together() -> None:
    """With three students each one's is at 1 - 0.05 / 3; the rule says among how many it is."""
    names = ["pupil", "second", "third"]
    rows = [*UNEVEN, *(replace(o, arm=name) for name in names for o in CLOSE)]
    comparison = compare_arms(rows, ["baseline", *names])
    several = decide(comparison, names, 10, GateConfig(confidence=0.95))
    alone = decide(comparison, ["pupil"], 10, GateConfig(confidence=0.95))[0].rules[-1]
    (stricter,) = {verdict.rules[-1].value for verdict in several}
    mine, theirs = ([o.score or 0.0 for o in side] for side in (CLOSE, UNEVEN))
    assert stricter == make_interval(mine, theirs, "ratio", 1 - 0.05 / 3).low
    assert stricter is not None
    assert alone.value is not None
    assert stricter < alone.value
    assert several[0].rules[-1].name.endswith("of pupil, lower end at 0.95 among 3 students")
    assert alone.name.endswith("of pupil, lower end at 0.95")


def test_an_interval_of_another_confidence_is_no_answer() -> None:
    comparison = compare_arms([*GOOD, *PUPIL], ["baseline", "pupil"], confidence=0.8)
    rule = decide(comparison, ["pupil"], 10, GateConfig(confidence=0.95))[0].rules[-1]
    assert (rule.passed, rule.reason) == (False, "the interval was computed at 0.8")


@pytest.mark.parametrize(
    ("setting", "on_it", "beyond", "name"),
    [
        ("min_student_mean", 0.8, 0.8001, "mean of pupil"),
        ("min_case_score", 0.7, 0.7001, "lowest valid case of pupil"),
        ("max_student_std", 0.1, 0.0999, "std of pupil"),
        ("max_abs_difference", 0.05, 0.0499, "mean of pupil apart from baseline"),
    ],
)
def test_each_optional_rule_holds_on_its_threshold_and_fails_beyond(
    setting: str, on_it: float, beyond: float, name: str
) -> None:
    base, pupil = outcomes("baseline", [0.85] * 10), outcomes("pupil", [0.7, 0.9] * 5)
    assert broken(grade(base, pupil, **{setting: on_it})) == []
    assert broken(grade(base, pupil, **{setting: beyond})) == [name]


def test_a_rule_of_at_most_has_its_margin_below_the_threshold() -> None:
    rule = grade(GOOD, outcomes("pupil", [0.7, 0.9] * 5), max_student_std=0.08).rules[-1]
    assert (rule.bound, rule.reason) == ("at most", "0.1 is above 0.08")
    assert rule.margin == pytest.approx(-0.02)


def test_the_difference_counts_in_both_directions() -> None:
    assert broken(grade(GOOD, outcomes("pupil", [0.9] * 10), max_abs_difference=0.03))


def test_optional_rules_are_off_by_default() -> None:
    assert len(grade(GOOD, PUPIL).rules) == 6


def test_optional_rules_fail_where_their_numbers_are_missing() -> None:
    extra = {"min_student_mean": 0, "max_student_std": 1, "min_case_score": 0}
    verdict = grade(GOOD, outcomes("pupil", [], 10), **extra, max_abs_difference=1)
    assert all(rule.reason == NO_NUMBER for rule in verdict.rules[-4:])


def test_a_clear_pass_passes_on_every_resample_and_a_clear_fail_on_none() -> None:
    assert grade(GOOD, PUPIL).pass_chance == 1.0
    assert grade(GOOD, outcomes("pupil", [0.5] * 10)).pass_chance == 0.0


def test_a_close_call_passes_on_some_resamples() -> None:
    chance = grade(UNEVEN, CLOSE).pass_chance
    assert chance is not None
    assert 0.6 < chance < 0.99


def test_the_chance_on_validity_is_the_binomial_one() -> None:
    # One of ten cases failed: a resample passes where it holds that case at most once.
    verdict = grade(GOOD, outcomes("pupil", [0.8] * 9, failed=1))
    expected = 0.9**10 + 10 * 0.1 * 0.9**9
    assert verdict.pass_chance == pytest.approx(expected, abs=0.03)


def test_the_resamples_are_of_these_cases_and_leave_out_what_is_said_of_others() -> None:
    loose, strict = grade(UNEVEN, CLOSE), grade(UNEVEN, CLOSE, confidence=0.95)
    assert strict.pass_chance == loose.pass_chance


@pytest.mark.parametrize("pupil", [PUPIL[:9], outcomes("pupil", [0.8] * 9, silent=1)])
def test_where_an_answer_is_missing_no_resample_passes(pupil: list[Outcome]) -> None:
    assert grade(GOOD, pupil).pass_chance == 0.0


def test_the_same_outcomes_give_the_same_verdict_to_the_last_digit() -> None:
    assert grade(UNEVEN, CLOSE, confidence=0.9) == grade(UNEVEN[::-1], CLOSE[::-1], confidence=0.9)


def test_a_resample_of_the_cases_themselves_has_the_numbers_of_a_summary() -> None:
    """Every resample's mean, std, min and share lie within what its cases allow."""
    comparison = compare_arms(
        [*UNEVEN, *outcomes("pupil", [0.6, 0.9] * 4, 1, 1)], ["baseline", "pupil"]
    )
    arms = comparison.arms["baseline"], comparison.arms["pupil"]
    cases = comparison.cases["baseline"], comparison.cases["pupil"]
    for base, student in resample(arms, cases, seed=42):
        assert (base.total, student.total) == (10, 10)
        assert 0.75 <= (base.min or 0) <= (base.mean or 0) <= (base.max or 0) <= 0.8400001
        assert base.valid_rate == 1.0
        assert (student.std or 0) <= 0.1500001


@pytest.mark.parametrize(
    ("base", "student"), [([], []), (GOOD, []), (outcomes("baseline", [], 10), PUPIL)]
)
def test_a_verdict_is_json_without_nan_whatever_is_missing(
    base: list[Outcome], student: list[Outcome]
) -> None:
    verdict = grade(base, student, confidence=0.95)
    assert json.dumps(asdict(verdict), allow_nan=False)
    assert verdict.cases_to_settle is None
    assert verdict.unsettled


@pytest.fixture
def weak(bench: Bench, answers: Answers) -> None:
    """A script in which the student keeps the contract but is worth less than 0.9."""
    bench.dataset(3)
    empty = {"aligned": ["FR001"], "gaps": [], "conflicts": []}
    review = answers.review(
        requirements_alignment=empty,
        summary=["x"],
        narrative="short",
        recommended_actions=["a", "b"],
    )
    bench.answers({"text": answers.text()}, {"arm": "pupil", "text": answers.text(review=review)})


def verdicts(run: Run) -> list[dict[str, Any]]:
    comparison = json.loads((run.folder / "comparison.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = comparison["verdicts"]
    return found


def test_a_weak_student_fails_the_run(bench: Bench, weak: None) -> None:
    run = bench.run()
    assert (run.code, verdicts(run)[0]["verdict"]) == (1, "FAIL")


def test_a_lower_threshold_lets_it_pass(bench: Bench, weak: None) -> None:
    run = bench.run("-c", "gate.min_ratio=0.5")
    assert (run.code, verdicts(run)[0]["verdict"]) == (0, "PASS")


def test_each_of_several_students_has_its_own_verdict(bench: Bench, weak: None) -> None:
    run = bench.run("--adapter", "other")
    assert {v["arm"]: v["verdict"] for v in verdicts(run)} == {"pupil": "FAIL", "other": "PASS"}


def test_one_student_that_fails_fails_the_run(bench: Bench, weak: None) -> None:
    assert bench.run("--adapter", "other").code == 1


def test_confidence_is_a_flag(bench: Bench, answers: Answers) -> None:
    bench.dataset(10)
    bench.answers({"text": answers.text()})
    run = bench.run("--confidence", "0.9", "-c", "gate.min_ratio=0.5")
    names = [rule["name"] for rule in verdicts(run)[0]["rules"]]
    assert (run.code, names[-1]) == (0, "ratio of means of pupil, lower end at 0.9")
    assert "lower end at 0.9" in run.out


def test_confidence_cannot_be_had_from_one_case(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run("--confidence", "0.9")
    (verdict,) = verdicts(run)
    assert (run.code, verdict["rules"][-1]["passed"]) == (1, False)
    assert verdict["rules"][-1]["value"] < 0.1


@pytest.mark.parametrize("level", ["0", "1", "95"])
def test_a_confidence_that_is_no_share_is_refused(bench: Bench, level: str) -> None:
    run = bench.run("--confidence", level)
    assert run.code == 2
    assert "gate.confidence" in run.err
