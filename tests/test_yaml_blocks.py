"""The second try without inline code, where a problem lies, and what a retry is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import po_inputs
from vllm_eval.errors import ConfigError
from vllm_eval.records import Case, Problem
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Answers
    from vllm_eval.tasks import Task

    Find = Callable[[str], Problem | None]


@pytest.fixture
def vision_problem(task: Task, case: Case, answers: Answers) -> Find:
    return lambda vision: task.grade(case, answers.text(vision=vision)).problem


@pytest.mark.parametrize(
    "vision",
    [
        "product_name: `lend`\nproduct_summary: A tool",
        "product_name: Lend\nproduct_summary: `{a: b}`",
        "product_name: Lend\nproduct_summary: A tool\nnon_goals:\n- `x` and `y`",
    ],
)
def test_inline_code_that_breaks_the_yaml_is_unwrapped(vision_problem: Find, vision: str) -> None:
    assert vision_problem(vision) is None


def test_inline_code_that_parses_is_kept(task: Task, case: Case, answers: Answers) -> None:
    narrative = "x" * 78 + "`y`"  # 81 characters as it stands, 79 without the backticks
    review = answers.review(narrative=narrative)
    assert task.grade(case, answers.text(review=review)).parts["review_specificity"] == 33 - 3


def test_a_backtick_without_a_partner_stays_a_problem(vision_problem: Find) -> None:
    problem = vision_problem("product_name: `lend\nproduct_summary: A tool")
    assert problem is not None
    assert problem.reason == "invalid_vision_yaml"


@pytest.mark.parametrize(
    ("vision", "line", "column"),
    [
        ("product_name: Lend\nproduct_summary: a: b", 2, 19),
        ("product_name: [1, 2\nproduct_summary: x", 2, 16),
        ('product_name: "Lend" er', 1, 22),
        ("a: 1\nb: 2\n\tc: 3", 3, 1),
        ("a: *missing", 1, 4),
        ("a: `x` {\nb: [", 1, 4),
    ],
)
def test_a_yaml_problem_has_its_line_and_column_in_the_block(
    vision_problem: Find, vision: str, line: int, column: int
) -> None:
    problem = vision_problem(vision)
    assert problem is not None
    assert (problem.block, problem.line, problem.column) == ("VISION", line, column)


def test_a_problem_of_the_review_names_that_block(task: Task, case: Case, answers: Answers) -> None:
    problem = task.grade(case, answers.text(review="a: b: c")).problem
    assert problem is not None
    assert (problem.block, problem.line, problem.column) == ("REVIEW", 1, 5)


def test_blocks_are_handed_out_as_written(task: Task, answers: Answers) -> None:
    assert task.blocks(answers.text("a: 1", "b: `2`")) == {
        "vision": "a: 1\n",
        "review": "b: `2`\n",
    }


def test_a_first_prompt_holds_concept_and_requirements_but_no_reminder(
    task: Task, case: Case
) -> None:
    prompt = task.prompt(case)
    assert (case.inputs["concept"] in prompt, "Return tools by bicycle" in prompt) == (True, True)
    assert "REMINDER" not in prompt


@pytest.mark.parametrize(
    ("vision", "named"),
    [("a: b: c", "line 1"), ("product_name: ''", "`product_name`"), ("[]", "mapping")],
)
def test_a_retry_names_what_was_wrong(
    task: Task, case: Case, vision_problem: Find, vision: str, named: str
) -> None:
    problem = vision_problem(vision)
    reminder = task.prompt(case, problem).partition("REMINDER:")[2]
    assert "VISION" in reminder
    assert named in reminder


def test_the_prompt_of_a_record_is_used_verbatim(task: Task) -> None:
    case = Case("K1", 1, None, po_inputs("c", "{}"), prompt="Say {{ it }} as is.")
    assert task.prompt(case) == "Say {{ it }} as is."


def test_a_retry_of_a_record_with_a_prompt_adds_the_reminder(task: Task) -> None:
    case = Case("K1", 1, None, po_inputs("c", "{}"), prompt="As is.")
    prompt = task.prompt(case, Problem("any", "the middle is missing"))
    assert prompt.startswith("As is.\n\nREMINDER: ")
    assert "the middle is missing" in prompt


def test_a_template_file_replaces_the_prompt(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "mine.j2"
    path.write_text("{{ concept_id }}|{{ tier }}|{{ concept }}", encoding="utf-8")
    assert open_task("product_owner", path).prompt(case) == "K1|simple|A tool library"


def test_a_template_without_a_place_for_the_reminder_gets_it_at_the_end(
    tmp_path: Path, case: Case
) -> None:
    path = tmp_path / "mine.j2"
    path.write_text("Go.", encoding="utf-8")
    prompt = open_task("product_owner", path).prompt(case, Problem("any", "no fence"))
    assert prompt.startswith("Go.\n\nREMINDER: ")
    assert "no fence" in prompt


def test_values_are_never_run_as_templates(task: Task) -> None:
    case = Case("K1", 1, None, po_inputs("{{ 7 * 6 }}", "{}"))
    assert "{{ 7 * 6 }}" in task.prompt(case)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{{ concept", "line 1"),
        (b"one\n{% if %}", "line 2"),
        (b"{{ budget }}", "'budget'"),
        (b"\xff\xfe", "not a usable template"),
    ],
)
def test_a_template_that_cannot_work_is_refused_by_name(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "mine.j2"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        open_task("product_owner", path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompt_template: .*gone\.j2"):
        open_task("product_owner", tmp_path / "gone.j2")


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'poet'.*'product_owner'"):
        open_task("poet")
