"""Every case with what each arm made of it, and how scores spread; on outcomes and in a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from vllm_eval.compare.summary import compare_arms
from vllm_eval.conclude.case_rows import BINS, CaseRow, case_rows, distribute
from vllm_eval.records import Outcome, Status

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench


def outcome(
    arm: str, case: str, status: Status = "success", score: float | None = 0.8, sample: int = 0
) -> Outcome:
    reason = None if status == "success" else f"{status} {sample}"
    return Outcome(arm, case, "simple", sample, status, reason, score, 1, status == "success")


def rows(*outcomes: Outcome) -> list[CaseRow]:
    order = {
        case: place for place, case in enumerate(dict.fromkeys(o.concept_id for o in outcomes))
    }
    return case_rows(outcomes, compare_arms(outcomes, ["baseline", "pupil"]), order, "baseline")


def test_a_student_differs_from_the_baseline_by_its_score_less_theirs() -> None:
    (row,) = rows(outcome("baseline", "K1", score=0.5), outcome("pupil", "K1", score=0.75))
    assert row.arms["pupil"].difference == 0.25
    assert row.arms["baseline"].difference is None


def test_without_both_scores_there_is_no_difference() -> None:
    (row,) = rows(outcome("baseline", "K1", "format_error", 0.1), outcome("pupil", "K1"))
    assert row.arms["pupil"].difference is None
    assert row.arms["baseline"].score is None


def test_a_case_has_the_status_of_its_worst_sample() -> None:
    (row,) = rows(
        outcome("pupil", "K1"),
        outcome("pupil", "K1", "format_error", sample=1),
        outcome("pupil", "K1", "error", None, sample=2),
    )
    assert (row.arms["pupil"].status, row.arms["pupil"].reason) == ("error", "error 2")
    assert (row.arms["pupil"].samples, row.arms["pupil"].valid) == (3, 1)


def test_an_arm_that_has_not_answered_a_case_is_left_out() -> None:
    (row,) = rows(outcome("pupil", "K1"))
    assert list(row.arms) == ["pupil"]


def test_cases_come_in_the_order_given() -> None:
    outcomes = [outcome("pupil", "K2"), outcome("pupil", "K1")]
    comparison = compare_arms(outcomes, ["baseline", "pupil"])
    found = case_rows(outcomes, comparison, {"K1": 0, "K2": 1}, "baseline")
    assert [row.concept_id for row in found] == ["K1", "K2"]


def test_a_distribution_holds_every_score_once() -> None:
    found = distribute([0.0, 0.049, 0.05, 0.5, 1.0])
    assert len(found.edges) == BINS + 1
    assert (found.counts[0], found.counts[1], found.counts[10], found.counts[-1]) == (2, 1, 1, 1)
    assert sum(found.counts) == 5


def test_quartiles_lie_between_the_values() -> None:
    assert distribute([0.0, 0.2, 0.4, 0.6, 1.0]).quartiles == pytest.approx((0.2, 0.4, 0.6))
    assert distribute([0.5]).quartiles is None


def test_a_run_writes_its_cases_beside_the_numbers(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()}, {"concept_id": "K2", "arm": "pupil", "text": "no"})
    comparison = json.loads((bench.run().folder / "comparison.json").read_text("utf-8"))
    cells = {row["concept_id"]: row["arms"]["pupil"] for row in comparison["cases"]}
    assert cells["K2"]["reason"] == "missing_yaml_blocks"
    assert cells["K1"]["difference"] == 0.0
    assert sum(comparison["distributions"]["baseline"]["counts"]) == 2
