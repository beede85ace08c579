"""The example task, through nothing but what is documented: `vllm_eval.tasks` and the program.

Its answers, its reasons and its points are those that `examples/qa_test_plan/task.yaml` declares.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from vllm_eval.tasks import Case, Problem, Task, open_task

if TYPE_CHECKING:
    from tests.conftest import Bench, Run

FOLDER = Path(__file__).parents[1] / "examples" / "qa_test_plan"
REQUIREMENTS = """\
functional_requirements:
- {id: FR001, description: Buy a ticket}
- {id: FR002, description: Show it without a network}
non_functional_requirements:
- {id: NFR001, description: Ten seconds at most}
"""
PLAN: dict[str, Any] = {
    "title": "Bus tickets",
    "level": "system",
    "environment": {"devices": ["an old phone"], "accounts": []},
    "test_cases": [
        "FR001: a ticket is bought",
        "FR002: a ticket without a network is shown",
        "NFR001: buying takes ten seconds at most",
    ],
    "ready_by": "2026-03-01",
}
RISKS: dict[str, Any] = {
    "severity": "low",
    "risks": ["no network in a tunnel"],
    "mitigation": "Keep tickets on the phone.",
}


def answer(plan: object = PLAN, risks: object = RISKS) -> str:
    first, second = (yaml.safe_dump(block) for block in (plan, risks))
    return f"```yaml TEST_PLAN\n{first}```\n```yaml RISKS\n{second}```\n"


@pytest.fixture(scope="module")
def qa() -> Task:
    return open_task(str(FOLDER))


@pytest.fixture
def ticket() -> Case:
    inputs = {"feature": "Bus tickets", "requirements_yaml": REQUIREMENTS, "hints": ""}
    return Case("QA-001", 1, "simple", inputs)


def test_a_complete_plan_is_valid_and_worth_all_points(qa: Task, ticket: Case) -> None:
    graded = qa.grade(ticket, answer())
    assert (graded.problem, graded.score) == (None, 1.0)
    assert graded.parts == {"shape": 40, "coverage": 40, "negative_tests": 20}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"title": None}, "test_plan_missing_title"),
        ({"title": "word " * 13}, "test_plan_title_too_long"),
        ({"title": 7}, "test_plan_title_not_text"),
        ({"level": "smoke"}, "test_plan_level_not_choice"),
        ({"environment": ["a phone"]}, "test_plan_environment_not_dict"),
        ({"environment": {"devices": [], "accounts": []}}, "test_plan_environment_missing_devices"),
        ({"environment": {"devices": ["a"]}}, "test_plan_environment_missing_accounts"),
        ({"test_cases": "FR001"}, "test_plan_test_cases_not_list"),
        ({"test_cases": ["FR001: a", "b"]}, "test_plan_test_cases_too_few"),
        ({"test_cases": ["a", "b", "c"]}, "tests_name_no_requirement"),
        ({"test_cases": ["FR001: a", "FR001:  A", "b"]}, "repeated_test_case"),
        ({"ready_by": "soon"}, "test_plan_ready_by_not_date"),
        ({"ready_by": None}, None),
    ],
)
def test_a_broken_rule_of_the_plan_has_its_reason(
    qa: Task, ticket: Case, changes: dict[str, Any], reason: str | None
) -> None:
    problem = qa.grade(ticket, answer(PLAN | changes)).problem
    assert (problem.reason if problem else None) == reason


def test_a_block_that_is_missing_is_named(qa: Task, ticket: Case) -> None:
    problem = qa.grade(ticket, answer().replace("RISKS", "RISK")).problem
    assert problem is not None
    assert problem.reason == "missing_yaml_blocks"
    assert "RISKS" in problem.message


def test_coverage_counts_the_requirements_that_are_named(qa: Task, ticket: Case) -> None:
    cases = ["fr001: a refusal", "FR001: b without c", "FR001: d"]
    parts = qa.grade(ticket, answer(PLAN | {"test_cases": cases})).parts
    assert parts["coverage"] == pytest.approx(40 / 3)


def test_the_modules_measure_counts_in_proportion(qa: Task, ticket: Case) -> None:
    cases = ["FR001: not a", *(f"FR001: {n}" for n in range(5))]
    assert qa.grade(ticket, answer(PLAN | {"test_cases": cases})).parts["negative_tests"] == 10


def test_the_prompt_holds_the_inputs_and_a_retry_what_was_wrong(qa: Task, ticket: Case) -> None:
    first = qa.prompt(ticket)
    again = qa.prompt(ticket, Problem("any", "the title is too long"))
    assert "FEATURE: Bus tickets" in first
    assert "HINTS" not in first
    assert "both complete YAML blocks" in again.partition("the title is too long")[2]


def test_the_examples_cases_are_thirty_and_more() -> None:
    lines = (FOLDER / "cases.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(line)["id"] for line in lines}) >= 30


def arguments(bench: Bench, *more: str) -> list[str]:
    """A run without a data set of its own: the task brings its cases."""
    return [
        *("--engine", "scripted", "--script", str(bench.script), "--adapter", "pupil"),
        *("--output-dir", str(bench.output_dir), "--profile", "none", *more),
    ]


@pytest.fixture
def done(bench: Bench) -> Run:
    """Base and student over eight of the example's cases; the base leaves its risks out at first.

    What is right for one case is valid for all: their requirements bear the same ids.
    """
    bench.answers({"text": answer()}, {"arm": "baseline", "attempt": 1, "text": answer(risks={})})
    return bench.call(*arguments(bench, "--task", str(FOLDER), "--max-samples", "8"))


def test_a_whole_run_passes_and_keeps_what_it_was_about(done: Run) -> None:
    assert done.code == 0, done.err
    assert {row["tier"] for row in done.result("comparison")["cases"]} <= {
        *("simple", "medium", "corporate"),
    }
    failed = [row for row in done.journal if row["status"] == "format_error"]
    assert {(row["arm"], row["reason"]) for row in failed} == {
        ("baseline", "risks_missing_severity")
    }
    rows = [json.loads(line) for line in (done.folder / "cases.jsonl").read_text().splitlines()]
    assert all(row["concept_id"].startswith("QA-") and row["feature"] for row in rows)
    identity = done.result("manifest")["identity"]["task"]
    assert identity.startswith("qa_test_plan 1+")


def test_the_stored_answers_are_graded_the_same_with_the_task_named(
    bench: Bench, done: Run
) -> None:
    scored = bench.call("score", str(done.folder), "--task", str(FOLDER))
    assert scored.code == 0, scored.err
    assert "PASS  pupil" in scored.out


def test_a_run_is_reported_where_the_task_is_not(
    bench: Bench, done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(done.folder, elsewhere / "run")
    (elsewhere / "run" / "comparison.json").unlink()
    config = elsewhere / "run" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(FOLDER), "nowhere/task"), "utf-8")
    monkeypatch.chdir(elsewhere)
    reported = bench.call("report", "run")
    assert reported.code == 0, reported.err
    assert "risks_missing_severity" in (elsewhere / "run" / "report.html").read_text("utf-8")


@pytest.mark.engine
def test_the_real_engine_answers_it_and_constrained_answers_keep_the_shape(bench: Bench) -> None:
    """The demo model has never seen this task: what it says freely is no answer to it."""
    arguments = [
        *("--config", "demo", "-c", "prompt_template=null", "--task", str(FOLDER)),
        *("--dataset-path", str(FOLDER / "cases.jsonl"), "--output-dir", str(bench.output_dir)),
        *("--max-samples", "3", "--max-new-tokens", "1800", "--retries", "0", "--no-report"),
    ]
    run = bench.call(*arguments, "--constrain")
    assert run.code == 1, run.err
    free = [row for row in run.journal if not row["arm"].endswith("+constrained")]
    held = [row for row in run.journal if row["arm"].endswith("+constrained")]
    assert (len(free), len(held)) == (6, 6)
    assert {row["status"] for row in free} == {"format_error"}
    ended = [row for row in held if not row["truncated"]]
    assert {row["arm"] for row in ended} == {"baseline+constrained", "po_student_demo+constrained"}
    # What a module asks beyond the declaration, no grammar can hold.
    assert {row["reason"] for row in ended} <= {None, "repeated_test_case"}
