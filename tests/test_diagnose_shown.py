"""The diagnosis where it is read: the command, a run's last line, reports; with what stands beside.

Repairs and constrained answers are rendered here as well, from runs of the scripted engine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.malformed import GOOD
from tests.report_runs import FAILING, interrupt, make_run
from vllm_eval.report.stored_run import load_run
from vllm_eval.report.words import sentence
from vllm_eval.report.write import write_reports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run

COLON = GOOD.replace("- Set a response", "- Set one: a response: time")
"""A repair of its text makes it valid."""


@pytest.fixture
def mendable(bench: Bench, answers: Answers) -> Bench:
    """Of four answers of the student one fails in its text, which fails the gate, too."""
    bench.dataset(4)
    bench.answers({"text": GOOD}, {"concept_id": "K2", "arm": "pupil", "text": COLON})
    return bench


def test_a_repair_is_counted_and_decided_by_the_gate(mendable: Bench) -> None:
    run = mendable.run()
    assert run.code == 1
    found = json.loads(mendable.call("diagnose", str(run.folder), "--json").out)
    (repair,) = (one for one in found["remedies"] if one["name"] == "repair")
    assert (repair["arm"], repair["recovered"], repair["kind"]) == ("pupil", 1, "counted")
    assert (repair["valid_rate"], repair["passes"]) == (1, True)
    (group,) = found["clusters"]
    assert (group["cluster"], group["outcomes"], group["repaired"]) == ("unquoted_colon", 1, 1)


def test_the_command_shows_clusters_remedies_and_an_excerpt(mendable: Bench) -> None:
    run = mendable.run("--retries", "1")
    shown = mendable.call("diagnose", run.folder.name, "--output-dir", str(mendable.output_dir))
    assert shown.code == 0
    for said in ("a colon inside a text", "1 (counted)", "PASS", "--retries 2", "Set one: a resp"):
        assert said in shown.out


def test_a_run_that_fails_points_to_its_diagnosis(mendable: Bench, answers: Answers) -> None:
    run = mendable.run()
    assert f"python -m vllm_eval diagnose {run.folder}" in run.out.replace("\n", "")


def test_a_run_that_passes_does_not(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert "vllm_eval diagnose" not in run.out
    assert bench.call("diagnose", str(run.folder)).out.strip() == "no attempt failed"


def test_what_is_no_run_is_bad_input(bench: Bench) -> None:
    found = bench.call("diagnose", "nowhere")
    assert found.code == 2
    assert "nowhere" in found.err


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


def test_an_interrupted_run_is_diagnosed_from_what_it_has(failing: Path, bench: Bench) -> None:
    cut = interrupt(failing, 10)
    found = bench.call("diagnose", str(cut), "--json")
    assert found.code == 0
    whole = load_run(failing).comparison["diagnosis"]["attempts"]
    assert 0 < json.loads(found.out)["attempts"] < whole


def test_the_reports_hold_the_diagnosis(failing: Path) -> None:
    write_reports(load_run(failing))
    for name in ("report.html", "report.md"):
        text = (failing / name).read_text(encoding="utf-8")
        for said in ("a required key is missing or empty", "--constrain", "at most 1"):
            assert said in text


def test_asked_for_repairs_stand_beside_the_strict_figures(mendable: Bench) -> None:
    run = mendable.run("--repair")
    assert "With repairs (not counted above)" in run.out
    write_reports(load_run(run.folder))
    page, text, xml = (
        (run.folder / name).read_text(encoding="utf-8")
        for name in ("report.html", "report.md", "junit.xml")
    )
    assert "| `pupil` | 1 | `quote_colons` 1 | 4 (100%) |" in text
    assert "| `pupil` | 4 | 3 (75%) |" in text
    assert 'id="repair"' in page
    assert "a repair would make it valid: quote_colons" in xml


@pytest.fixture
def both_ways(bench: Bench) -> Run:
    """Held to the grammar the student loses K1, whose free answer fails, and wins K2."""
    bench.dataset(4)
    bench.answers(
        {"text": GOOD},
        {"concept_id": "K2", "arm": "pupil", "text": "no blocks"},
        {"concept_id": "K3", "arm": "baseline", "error": "out of memory"},
        {"concept_id": "K1", "arm": "pupil+constrained", "text": GOOD.replace("```yaml R", "R")},
    )
    run = bench.run("--constrain", "--retries", "0")
    write_reports(load_run(run.folder))
    return run


def test_what_the_grammar_did_in_the_run_is_measured(both_ways: Run) -> None:
    comparison = load_run(both_ways.folder).comparison
    diagnosis = comparison["diagnosis"]
    (found,) = (one for one in diagnosis["remedies"] if one["name"] == "constrain")
    assert (found["arm"], found["kind"], found["recovered"]) == ("pupil", "measured", 0)
    assert found["valid_rate"] == 0.75
    made = {group["arm"] for group in diagnosis["clusters"]}
    assert made == {"baseline", "pupil", "pupil+constrained"}


def test_free_and_constrained_answers_stand_side_by_side(both_ways: Run) -> None:
    assert "With constrained decoding (outside the verdict)" in both_ways.out
    page, text = (
        (both_ways.folder / name).read_text(encoding="utf-8")
        for name in ("report.html", "report.md")
    )
    assert 'id="constrained"' in page
    assert "| `pupil` | constrained | 3 (75%) | 3 (75%) |" in text
    assert "`pupil` constrained, against the constrained baseline" in text


def test_a_run_of_constrained_answers_alone_says_so(bench: Bench) -> None:
    bench.dataset(2)
    bench.answers({"text": GOOD}, {"concept_id": "K2", "arm": "pupil", "text": "no blocks"})
    run = bench.run("-c", "constrain=only")
    write_reports(load_run(run.folder))
    assert "every answer constrained to the task's grammar" in run.out
    for name in ("report.html", "report.md", "summary.md"):
        assert "Constrained answers." in (run.folder / name).read_text(encoding="utf-8")
    settings = [one["setting"] for one in load_run(run.folder).comparison["diagnosis"]["remedies"]]
    assert settings == ["--retries 3"]


def test_without_being_asked_for_repairs_stand_in_the_diagnosis_alone(mendable: Bench) -> None:
    run = mendable.run()
    write_reports(load_run(run.folder))
    assert "With repairs" not in run.out
    text = (run.folder / "report.md").read_text(encoding="utf-8")
    assert "With repairs" not in text
    assert "| `--repair` | `pupil` | 1 | 1 (counted) | 100% | PASS |" in text


@pytest.mark.parametrize(
    "words", ["see https://x.example", "@octocat", "[a](b)", "<b>", "a|b", "#1", "www.x.example"]
)
def test_a_stored_sentence_that_could_be_markup_becomes_code(words: str) -> None:
    assert sentence(f"of {words}, so").startswith(("`", "<code>"))


def test_where_no_setting_helps_no_answer_is_said_to_be_saved(bench: Bench) -> None:
    bench.dataset(2)
    bench.answers({"text": GOOD}, {"concept_id": "K2", "arm": "pupil", "error": "out of memory"})
    run = bench.run("--retries", "0")
    write_reports(load_run(run.folder))
    shown = bench.call("diagnose", str(run.folder)).out
    assert "no answer to grade in 3 of 3 failed attempts" in shown
    assert "stayed a failure" not in shown + (run.folder / "report.md").read_text("utf-8")


def test_a_run_without_its_cases_says_what_to_do(bench: Bench) -> None:
    bench.dataset(1)
    bench.answers({"text": GOOD})
    folder = bench.run().folder
    (folder / "comparison.json").unlink()
    (folder / "cases.jsonl").unlink()
    found = bench.call("diagnose", str(folder))
    assert found.code == 2
    assert "cases.jsonl" in found.err
    assert "evaluate again" in found.err


def test_a_report_is_made_where_constrained_answers_alone_failed(bench: Bench) -> None:
    bench.dataset(2)
    bench.answers({"text": GOOD}, {"arm": "pupil+constrained", "text": "no blocks"})
    run = bench.run("--constrain", "--retries", "0")
    assert run.code == 0
    write_reports(load_run(run.folder))
    assert "prose in place of the blocks" in (run.folder / "report.html").read_text("utf-8")
