"""A run whose best student decides: word and exit code, and where the selected one is named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

import vllm_eval
from tests.conftest import Answers, Bench, Run
from tests.report_runs import open_run
from vllm_eval.report.html import write_html
from vllm_eval.report.junit import write_junit
from vllm_eval.report.markdown import render_summary, write_markdown
from vllm_eval.report.mlflow_log import _tags
from vllm_eval.report.next_steps import next_steps
from vllm_eval.store import manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GOOD = Answers().text()
STUDENTS = ("--adapter", "second", "--adapter", "third")


@pytest.fixture
def mixed(bench: Bench, answers: Answers) -> Bench:
    """Of three students, `second` is as good as the base, and the others break the contract."""
    bench.dataset(4)
    passing = ({"arm": arm, "text": GOOD} for arm in ("baseline", "second"))
    bench.answers({"text": answers.bad()}, *passing)
    return bench


def comparison(run: Run) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.folder / "comparison.json").read_text("utf-8"))
    return loaded


def test_one_student_that_passes_is_enough_for_the_best(mixed: Bench) -> None:
    run = mixed.run(*STUDENTS, "--select", "best", "--retries", "0")
    found = comparison(run)
    assert (run.code, found["word"], found["passed"]) == (0, "PASS", True)
    assert found["selected"]["arm"] == "second"
    assert found["selected"]["why"].endswith("it is the only one of 3 that passes.")


def test_every_student_must_pass_by_default_and_the_best_is_named_all_the_same(
    mixed: Bench,
) -> None:
    run = mixed.run(*STUDENTS, "--retries", "0")
    found = comparison(run)
    assert (run.code, found["word"], found["select"]) == (1, "FAIL", "all")
    assert found["selected"]["arm"] == "second"
    assert "selected second" not in run.out
    hint = "\n".join(next_steps(open_run(run.folder)))
    assert "1 of 3 students passes." in hint
    assert f"--resume {run.folder} --select best" in hint


def test_the_first_line_of_the_verdict_names_the_selected_one(mixed: Bench) -> None:
    lines = mixed.run(*STUDENTS, "--select", "best", "--retries", "0").out.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("files in "))
    assert lines[place + 1] == "PASS  selected second"
    assert lines[place + 2].startswith("  `second` is selected: ")


def test_without_a_passing_student_none_is_selected_and_that_is_said(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(4)
    bench.answers({"arm": "baseline", "text": GOOD}, {"text": answers.bad()})
    run = bench.run(*STUDENTS, "--select", "best", "--retries", "0")
    found = comparison(run)
    assert (run.code, found["selected"], found["unselected"]) == (1, None, "no student passes")
    assert "FAIL  no student passes" in run.out
    assert "**No student is selected**: no student passes." in render_summary(open_run(run.folder))


def test_a_finished_run_is_decided_by_its_best_when_it_is_resumed_so(mixed: Bench) -> None:
    given = (*STUDENTS, "--retries", "0")
    first = mixed.run(*given)
    again = mixed.run(*given, "--resume", str(first.folder), "--select", "best")
    assert (first.code, again.code) == (1, 0)
    assert comparison(again)["word"] == "PASS"


def test_stored_answers_are_scored_by_their_best(mixed: Bench) -> None:
    folder = str(mixed.run(*STUDENTS, "--retries", "0").folder)
    assert mixed.call("score", folder).code == 1
    best = mixed.call("score", folder, "--select", "best")
    assert best.code == 0
    assert "PASS  selected second" in best.out


def test_the_evidence_of_runs_is_weighed_for_the_best(mixed: Bench) -> None:
    folder = str(mixed.run(*STUDENTS, "--retries", "0", "--select", "best").folder)
    mixed.dataset(4)
    asked = mixed.call("report", folder, "--certify", "0.5", "--output-dir", str(mixed.output_dir))
    every = mixed.call("report", folder, "--certify", "0.5", "--select", "all")
    assert (asked.code, every.code) == (4, 1)
    assert "UNDECIDED  no student passes" in asked.out


def test_whom_a_report_is_about_needs_a_level(mixed: Bench) -> None:
    refused = mixed.call("report", "any", "--select", "best")
    assert refused.code == 2
    assert "--certify" in refused.err


def test_a_student_that_never_answers_does_not_stop_the_best(bench: Bench) -> None:
    bench.dataset(3)
    bench.answers({"text": GOOD}, {"arm": "third", "error": "no such adapter"})
    best = bench.run(*STUDENTS, "--select", "best")
    assert (best.code, comparison(best)["word"]) == (0, "PASS")
    left = json.loads((best.folder / "evidence.json").read_text("utf-8"))["students"]
    assert {student["arm"] for student in left} == {"pupil", "second"}


@pytest.mark.parametrize(
    "silent", [["baseline"], ["pupil", "second", "third"]], ids=["baseline", "all students"]
)
def test_a_run_without_any_answer_of_the_base_or_the_students_has_evaluated_nothing(
    bench: Bench, silent: list[str]
) -> None:
    bench.dataset(3)
    bench.answers({"text": GOOD}, *({"arm": arm, "error": "gone"} for arm in silent))
    run = bench.run(*STUDENTS, "--select", "best")
    assert run.code == 3
    assert "no case of" in run.err


def test_by_default_a_student_that_never_answers_stops_the_run(bench: Bench) -> None:
    bench.dataset(3)
    bench.answers({"text": GOOD}, {"arm": "third", "error": "no such adapter"})
    assert bench.run(*STUDENTS).code == 3


def with_path(folder: Path, path: str) -> vllm_eval.Result:
    """The run as if its selected student had a folder."""
    recorded = json.loads((folder / "manifest.json").read_text("utf-8"))
    recorded["adapters"] = {"second": {"path": path, "rank": 8, "step": 200, "training": "runs/x"}}
    (folder / "manifest.json").write_text(json.dumps(recorded), encoding="utf-8")
    (folder / "comparison.json").unlink()
    return vllm_eval.show(folder)


def test_every_report_names_the_selected_one_with_its_path(mixed: Bench, tmp_path: Path) -> None:
    folder = mixed.run(*STUDENTS, "--select", "best", "--retries", "0").folder
    path = "runs/x/<b>checkpoint-200</b>"
    result = with_path(folder, path)
    run, escaped = result.run, "runs/x/&lt;b&gt;checkpoint-200&lt;/b&gt;"
    page = write_html(run, tmp_path / "page.html").read_text("utf-8")
    assert "Good enough to ship: " in page
    for shown in (page, result._repr_html_()):
        assert f"in <code><bdi>{escaped}</bdi></code>" in shown
    for text in (write_markdown(run, tmp_path / "page.md").read_text("utf-8"), render_summary(run)):
        assert f"**Selected: `second`** in `{path}`. `second` is selected: " in text
    suites = ET.parse(write_junit(run, tmp_path / "junit.xml")).getroot()
    properties = {p.get("name"): p.get("value") for p in suites.iter("property")}
    assert properties == {"selected": "second", "selected.path": path, "selected.step": "200"}
    assert _tags(run)["selected.path"] == path
    assert f"PASS  selected second ({path})" in repr(result)


def test_in_python_the_selected_one_is_a_record(mixed: Bench) -> None:
    folder = mixed.run(*STUDENTS, "--retries", "0").folder
    selected = with_path(folder, "runs/x/checkpoint-200").selected
    assert selected is not None
    assert (selected.arm, selected.path, selected.step) == ("second", "runs/x/checkpoint-200", 200)


@pytest.mark.parametrize(
    "about",
    [None, [], {"path": 7, "step": "200", "training": {}}, {"step": True}],
    ids=["null", "a list", "other types", "a switch"],
)
def test_a_manifest_of_other_types_tells_nothing_of_an_adapter(
    mixed: Bench, about: Mapping[str, object] | None
) -> None:
    folder = mixed.run(*STUDENTS, "--retries", "0").folder
    recorded = json.loads((folder / "manifest.json").read_text("utf-8"))
    found = manifest.origins(recorded | {"adapters": {"second": about}})["second"]
    assert (found.path, found.step, found.training) == (None, None, None)
