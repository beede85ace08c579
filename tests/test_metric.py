"""The metric's four parts, each at its steps, against numbers worked out by hand.

A complete answer of the builders earns 30 schema, 30 vision, 30 + and 30 + points; most tests
take one thing away and expect its points to go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import po_inputs
from vllm_eval.records import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.conftest import Answers
    from vllm_eval.tasks import Task

    Parts = Callable[..., Mapping[str, float]]

STEP = 30 / 16
"""Points of one of the sixteen schema checks."""


@pytest.fixture
def parts(task: Task, case: Case, answers: Answers) -> Parts:
    """The parts of an answer; keys of either block may be replaced, and the requirements."""

    def score(
        vision: object = None, review: object = None, requirements: str | None = None
    ) -> Mapping[str, float]:
        text = requirements if requirements is not None else case.inputs["requirements_yaml"]
        asked = Case("K1", 1, None, po_inputs("c", text))
        return task.grade(asked, answers.text(vision, review)).parts

    return score


def twenty(mentioned: int) -> tuple[dict[str, object], str]:
    """A review that mentions so many of twenty requirements, and the requirements."""
    ids = [f"Q{number:02}" for number in range(20)]
    lines = "".join(f"- {{id: {identifier}}}\n" for identifier in ids)
    return {"summary": [" ".join(ids[:mentioned])]}, f"constraints:\n{lines}"


def test_a_complete_answer_scores_the_sum_of_its_parts_over_120(
    task: Task, case: Case, answers: Answers
) -> None:
    grade = task.grade(case, answers.text())
    # 22 for coverage, 8 x 2/4 for two aligned, 3 + 3; summary 6, actions 12, 6 + 6, narrative 6
    assert grade.parts == {
        "schema": 30,
        "vision_completeness": 30,
        "requirements_alignment": 30,
        "review_specificity": 30,
    }
    assert grade.score == 1.0


@pytest.mark.parametrize("absent", ["VISION", "REVIEW"])
def test_an_answer_without_a_block_has_no_score(
    task: Task, case: Case, answers: Answers, absent: str
) -> None:
    assert task.grade(case, answers.text().replace(absent, "OTHER")).score is None


@pytest.mark.parametrize("vision", ["a: [", "[]", "words", "{}"])
def test_a_block_that_is_no_mapping_counts_as_empty(parts: Parts, vision: str) -> None:
    scored = parts(vision)
    assert (scored["schema"], scored["vision_completeness"]) == (15, 0)


def test_two_empty_blocks_earn_the_one_check_that_absence_passes(
    task: Task, case: Case, answers: Answers
) -> None:
    assert task.grade(case, answers.text("{}", "{}")).score == pytest.approx(STEP / 120, abs=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "lost"),
    [
        ("product_name", " ", 1),
        ("product_name", 7, 1),
        ("product_summary", " " + "x" * 40 + " ", 0),
        ("product_summary", " " + "x" * 39 + " ", 1),
        ("product_summary", ["x" * 50], 1),
        ("target_users", [], 1),
        ("target_users", "neighbours", 1),
        ("value_proposition", None, 1),
        ("key_capabilities", {"a": 1}, 1),
        ("success_metrics", [""], 0),
        ("non_goals", ["anything"], 0),
        ("non_goals", None, 1),
        ("last_updated", "2025-03-01", 0),
        ("last_updated", "2025-03-01T10:00:00Z", 0),
        ("last_updated", "2025-03-01T10:00:00+02:00", 0),
        ("last_updated", "yesterday", 1),
        ("last_updated", "2025-02-30", 1),
        ("last_updated", "", 1),
        ("last_updated", 20250301, 1),
        ("unknown", "more", 0),
    ],
)
def test_each_schema_check_of_a_vision_is_worth_a_sixteenth(
    parts: Parts, answers: Answers, key: str, value: object, lost: int
) -> None:
    schema = parts(answers.vision(**{key: value}))["schema"]
    assert schema == pytest.approx(30 - lost * STEP, abs=1e-12)


@pytest.mark.parametrize(
    ("written", "lost"),
    [("2025-03-01", 1), ("'2025-03-01'", 0), ("2025-03-01T10:00:00Z", 1), ("2025-3-1x", 1)],
)
def test_a_bare_date_that_yaml_reads_as_a_date_does_not_pass(
    parts: Parts, written: str, lost: int
) -> None:
    vision = f"product_name: x\nlast_updated: {written}"
    assert parts(vision)["schema"] == pytest.approx(15 + (2 - lost) * STEP, abs=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "lost"),
    [
        ("status", "needs_adjustment", 0),
        ("status", "misaligned", 0),
        ("status", "Aligned", 1),
        ("status", ["aligned"], 1),
        ("status", {}, 1),
        ("summary", [], 1),
        ("summary", "a text", 1),
        ("requirements_alignment", None, 3),
        ("requirements_alignment", {}, 3),
        ("requirements_alignment", [], 4),
        ("requirements_alignment", "x", 4),
        ("requirements_alignment", {"aligned": [], "gaps": [], "conflicts": {}}, 1),
        ("requirements_alignment", {"aligned": [], "gaps": []}, 1),
        ("recommended_actions", [], 1),
        ("narrative", "\n" + "x" * 40, 0),
        ("narrative", "\n" + "x" * 39, 1),
        ("narrative", ["x" * 50], 1),
    ],
)
def test_each_schema_check_of_a_review_is_worth_a_sixteenth(
    parts: Parts, answers: Answers, key: str, value: object, lost: int
) -> None:
    schema = parts(None, answers.review(**{key: value}))["schema"]
    assert schema == pytest.approx(30 - lost * STEP, abs=1e-12)


@pytest.mark.parametrize(
    "key", ["target_users", "value_proposition", "key_capabilities", "success_metrics"]
)
@pytest.mark.parametrize(
    ("value", "points"), [([], 0), (["a"], 3), (["a", "b"], 6), (list("abcdef"), 6), ("ab", 0)]
)
def test_a_vision_list_earns_six_for_two_and_three_for_one(
    parts: Parts, answers: Answers, key: str, value: object, points: int
) -> None:
    assert parts(answers.vision(**{key: value}))["vision_completeness"] == 24 + points


@pytest.mark.parametrize(
    ("length", "points"), [(0, 0), (59, 0), (60, 3), (119, 3), (120, 6), (500, 6)]
)
def test_the_product_summary_earns_by_its_stripped_length(
    parts: Parts, answers: Answers, length: int, points: int
) -> None:
    vision = answers.vision(product_summary=f"  {'x' * length}  ")
    assert parts(vision)["vision_completeness"] == 24 + points


@pytest.mark.parametrize(
    ("mentioned", "points"),
    [
        (0, 0),
        (1, 0.4),
        (9, 3.6),
        (10, 8),
        (11, 10),
        (13, 14),
        (14, 16),
        (15, 18),
        (16, 20),
        (17, 22),
        (20, 22),
    ],
)
def test_coverage_earns_by_its_steps(parts: Parts, mentioned: int, points: float) -> None:
    review, requirements = twenty(mentioned)
    scored = parts(None, review, requirements)["requirements_alignment"]
    assert scored == pytest.approx(points, abs=1e-12)


@pytest.mark.parametrize(("aligned", "points"), [(0, 0), (5, 2), (20, 8), (40, 8)])
def test_aligned_items_earn_eight_in_proportion_to_the_requirements(
    parts: Parts, aligned: int, points: float
) -> None:
    review = {"requirements_alignment": {"aligned": ["nothing"] * aligned}}
    scored = parts(None, review, twenty(0)[1])["requirements_alignment"]
    assert scored == pytest.approx(points, abs=1e-12)


@pytest.mark.parametrize("bucket", ["gaps", "conflicts"])
@pytest.mark.parametrize(("items", "points"), [([], 0), (["x"], 3), (["x", "y"], 3), ("x", 0)])
def test_gaps_and_conflicts_earn_three_for_being_there(
    parts: Parts, bucket: str, items: object, points: int
) -> None:
    review = {"requirements_alignment": {bucket: items}}
    assert parts(None, review, twenty(0)[1])["requirements_alignment"] == points


def test_the_alignment_part_is_capped_at_thirty(parts: Parts, answers: Answers) -> None:
    bucket = {"aligned": ["FR001 FR002 NFR001 C001"] * 4, "gaps": ["x"], "conflicts": ["y"]}
    review = answers.review(requirements_alignment=bucket)  # 22 + 8 + 3 + 3 = 36
    assert parts(None, review)["requirements_alignment"] == 30


def test_the_specificity_part_is_capped_at_thirty(parts: Parts, answers: Answers) -> None:
    bucket = {"aligned": [], "gaps": ["x"], "conflicts": ["y"]}
    review = answers.review(requirements_alignment=bucket, narrative="x" * 160)
    assert parts(None, review)["review_specificity"] == 30  # 6 + 12 + 6 + 6 + 6 = 36


@pytest.mark.parametrize(
    ("review", "points"),
    [
        ({}, 0),
        ({"summary": ["a"]}, 3),
        ({"summary": ["a", "b"]}, 6),
        ({"summary": "a text"}, 0),
        ({"recommended_actions": ["a"]}, 6),
        ({"recommended_actions": ["a", "b"]}, 12),
        ({"requirements_alignment": {"gaps": []}}, 2),
        ({"requirements_alignment": {"gaps": ["x"]}}, 6),
        ({"requirements_alignment": {"conflicts": []}}, 2),
        ({"requirements_alignment": {"conflicts": ["x"]}}, 6),
        ({"requirements_alignment": {"gaps": [], "conflicts": ["x"]}}, 8),
        ({"requirements_alignment": {"gaps": "x", "conflicts": None}}, 0),
        ({"requirements_alignment": {"aligned": ["x"]}}, 0),
        ({"requirements_alignment": ["x"]}, 0),
        ({"narrative": " " + "x" * 79 + " "}, 0),
        ({"narrative": "x" * 80}, 3),
        ({"narrative": "x" * 159}, 3),
        ({"narrative": "x" * 160}, 6),
    ],
)
def test_specificity_earns_by_its_steps(
    parts: Parts, review: dict[str, object], points: int
) -> None:
    assert parts(None, review or "{}")["review_specificity"] == points
