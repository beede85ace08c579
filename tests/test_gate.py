"""The gate: a value on its threshold passes, anything missing fails with a reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.config import GateConfig
from vllm_eval.gate import judge_student
from vllm_eval.records import Outcome, Status
from vllm_eval.stats import Comparison, compare

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run
    from vllm_eval.gate import Verdict

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


def judge(base: list[Outcome], student: list[Outcome], **gate: float) -> Verdict:
    comparison = compare([*base, *student], ["baseline", "pupil"])
    return judge_student(comparison, "pupil", 10, GateConfig(**gate))


def broken(verdict: Verdict) -> list[str]:
    return [rule.name for rule in verdict.rules if not rule.passed]


GOOD = outcomes("baseline", [0.8] * 10)
PUPIL = outcomes("pupil", [0.8] * 10)


def test_a_student_as_good_as_the_baseline_passes() -> None:
    verdict = judge(GOOD, PUPIL)
    assert (verdict.passed, verdict.word, broken(verdict)) == (True, "PASS", [])


@pytest.mark.parametrize(("failed", "passed"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("arm", ["baseline", "pupil"])
def test_a_valid_rate_of_nine_tenths_is_just_enough(arm: str, failed: int, passed: bool) -> None:
    arms = {"baseline": GOOD, "pupil": PUPIL}
    arms[arm] = outcomes(arm, [0.8] * (10 - failed), failed)
    verdict = judge(arms["baseline"], arms["pupil"])
    assert broken(verdict) == ([] if passed else [f"valid rate of {arm}"])


@pytest.mark.parametrize(("mean", "passed"), [(0.75, True), (0.7499, False), (0.76, True)])
def test_a_baseline_mean_of_three_quarters_is_just_enough(mean: float, passed: bool) -> None:
    verdict = judge(outcomes("baseline", [mean] * 10), PUPIL)
    assert broken(verdict) == ([] if passed else ["mean of baseline"])


@pytest.mark.parametrize(("mean", "passed"), [(0.72, True), (0.7199, False), (0.9, True)])
def test_nine_tenths_of_the_baseline_mean_is_just_enough(mean: float, passed: bool) -> None:
    verdict = judge(GOOD, outcomes("pupil", [mean] * 10))
    assert broken(verdict) == ([] if passed else ["mean of pupil / mean of baseline"])


@pytest.mark.parametrize("base", [0.76, 0.77, 0.83, 0.91, 0.99])
def test_rounding_never_fails_a_value_on_its_threshold(base: float) -> None:
    verdict = judge(outcomes("baseline", [base] * 10), outcomes("pupil", [base * 0.9] * 10))
    assert verdict.passed


def test_thresholds_are_configuration() -> None:
    pupil = outcomes("pupil", [0.5] * 5, failed=5)
    assert not judge(GOOD, pupil).passed
    assert judge(GOOD, pupil, min_valid_rate=0.5, min_ratio=0.6).passed


def test_a_rule_says_value_threshold_and_margin() -> None:
    rules = {rule.name: rule for rule in judge(GOOD, outcomes("pupil", [0.6] * 10)).rules}
    ratio = rules["mean of pupil / mean of baseline"]
    assert ratio.value == pytest.approx(0.75)
    assert ratio.threshold == 0.9
    assert ratio.margin == pytest.approx(-0.15)
    assert ratio.reason == "0.7500 is below 0.9000"


def test_a_rule_that_holds_has_no_reason() -> None:
    assert {rule.reason for rule in judge(GOOD, PUPIL).rules} == {""}


def test_the_score_of_a_case_that_failed_lifts_no_mean() -> None:
    verdict = judge(GOOD, outcomes("pupil", [0.7] * 9, failed=1))
    assert broken(verdict) == ["mean of pupil / mean of baseline"]


@pytest.mark.parametrize("arm", ["baseline", "pupil"])
def test_a_single_case_without_an_answer_fails(arm: str) -> None:
    arms = {"baseline": GOOD, "pupil": PUPIL}
    arms[arm] = outcomes(arm, [0.8] * 9, silent=1)
    verdict = judge(arms["baseline"], arms["pupil"])
    assert broken(verdict) == [f"cases of {arm} with an answer"]
    assert "1 of 10" in next(rule.reason for rule in verdict.rules if not rule.passed)


@pytest.mark.parametrize("arm", ["baseline", "pupil"])
def test_an_outcome_that_is_missing_fails(arm: str) -> None:
    arms = {"baseline": GOOD, "pupil": PUPIL}
    arms[arm] = arms[arm][:9]
    verdict = judge(arms["baseline"], arms["pupil"])
    assert broken(verdict) == [f"cases of {arm} with an answer"]


@pytest.mark.parametrize(
    ("base", "student"), [([], []), (GOOD, []), ([], PUPIL), (outcomes("baseline", [], 10), PUPIL)]
)
def test_an_arm_without_numbers_fails_with_a_reason(
    base: list[Outcome], student: list[Outcome]
) -> None:
    verdict = judge(base, student, min_valid_rate=0, min_baseline_mean=0, min_ratio=0)
    assert verdict.word == "FAIL"
    assert all(rule.reason for rule in verdict.rules if not rule.passed)


def test_a_student_nobody_knows_fails() -> None:
    verdict = judge_student(compare(GOOD, ["baseline"]), "ghost", 10, DEFAULTS)
    assert verdict.word == "FAIL"


def test_a_comparison_without_a_baseline_fails() -> None:
    assert not judge_student(Comparison({}, {}, {}), "pupil", 10, DEFAULTS).passed


def test_a_baseline_of_zero_gives_no_ratio_and_fails() -> None:
    zero = outcomes("baseline", [0.0] * 10)
    verdict = judge(zero, PUPIL, min_baseline_mean=0, min_ratio=0)
    assert broken(verdict) == ["mean of pupil / mean of baseline"]


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
