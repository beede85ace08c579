"""Constrained arms beside free ones: who is graded, what is compared, where it is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run


def asked_both_ways(bench: Bench, answers: Answers, *more: str) -> Run:
    """Free answers of the student fail, constrained ones do not."""
    bench.dataset(4)
    bench.answers(
        {"arm": "baseline", "text": answers.text()},
        {"arm": "pupil", "text": answers.bad()},
        {"arm": "baseline+constrained", "text": answers.text()},
        {"arm": "pupil+constrained", "text": answers.text()},
    )
    return bench.run("--retries", "0", *more)


def constrained(run: Run) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((run.folder / "comparison.json").read_bytes())
    found = loaded["constrained"]
    assert isinstance(found, dict)
    return found


def test_the_gate_decides_on_the_free_arms_alone(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "--constrain")

    whole = json.loads((run.folder / "comparison.json").read_bytes())
    assert run.code == 1
    assert [verdict["arm"] for verdict in whole["verdicts"]] == ["pupil"]
    assert list(whole["arms"]) == ["baseline", "pupil"]
    assert {arm for row in whole["cases"] for arm in row["arms"]} == {"baseline", "pupil"}


def test_each_arm_is_held_against_its_constrained_variant(bench: Bench, answers: Answers) -> None:
    found = constrained(asked_both_ways(bench, answers, "--constrain"))

    pupil = found["arms"]["pupil"]  # type: ignore[index]
    assert found["mode"] == "beside"
    assert pupil["free"]["summary"]["valid"] == 0
    assert pupil["constrained"]["summary"]["valid"] == 4
    assert pupil["paired"]["gained"] == 4
    assert found["students"]["pupil"]["pairs"] == 4  # type: ignore[index]


def test_a_variant_has_a_result_file_of_its_own(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "--constrain")

    assert run.result("student_")["valid_samples"] == 0
    assert run.result("student+constrained_")["valid_samples"] == 4
    assert run.result("baseline+constrained_")["arm"] == "baseline+constrained"


def test_where_all_is_constrained_the_arms_keep_their_names(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "-c", "constrain=only")

    assert {line["arm"] for line in run.journal} == {"baseline", "pupil"}
    assert constrained(run)["mode"] == "only"


def test_junit_says_that_all_answers_were_constrained(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "-c", "constrain=only")
    assert bench.call("report", str(run.folder)).code == 0
    assert "gate of pupil, constrained answers" in (run.folder / "junit.xml").read_text()


def test_answers_that_must_not_end_are_not_constrained(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "--constrain", "-c", "ignore_eos=true")
    assert run.code == 2
    assert "leave out ignore_eos" in run.err


def test_without_being_asked_for_nothing_is_constrained(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers)

    assert {line["arm"] for line in run.journal} == {"baseline", "pupil"}
    assert constrained(run)["arms"] == {}


def test_a_run_is_not_continued_with_another_way_of_decoding(
    bench: Bench, answers: Answers
) -> None:
    run = asked_both_ways(bench, answers, "--constrain")

    again = bench.run("-c", "constrain=none", "--retries", "0", "--resume", str(run.folder))

    assert again.code == 2
    assert "constrain was 'beside', is 'none'" in again.err


def test_the_manifest_names_the_grammar(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "--constrain")

    identity = json.loads((run.folder / "manifest.json").read_bytes())["identity"]
    assert len(identity["grammar"]) == 64
    assert list(identity["adapters"]) == ["pupil"]


def test_reports_and_scores_of_a_run_with_variants_are_made(bench: Bench, answers: Answers) -> None:
    run = asked_both_ways(bench, answers, "--constrain")

    assert bench.call("report", str(run.folder)).code == 0
    assert (run.folder / "report.html").is_file()
    scored = bench.call("score", str(run.folder))
    assert scored.code == 1
    assert "FAIL" in scored.out
    assert "PASS" not in scored.out  # no verdict on what is constrained


@pytest.mark.parametrize("command", ["run", "check"])
def test_an_engine_that_cannot_constrain_is_refused_at_once(bench: Bench, command: str) -> None:
    bench.dataset(1)
    arguments = [
        *("--engine", "transformers", "--adapter", "package:demo/po_student_demo", "--constrain"),
        *("--base-model", "package:demo/base", "--dataset-path", str(bench.cases)),
        *("--output-dir", str(bench.output_dir), "--profile", "none"),
    ]
    if command == "check":
        arguments = ["check", *arguments]

    run = bench.call(*arguments)

    assert run.code == 2
    assert "--engine vllm" in run.err + run.out
