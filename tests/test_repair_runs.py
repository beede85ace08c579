"""`--repair` beside the strict result: in a run, its files, when it goes on, and in `score`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.careless import GOOD

if TYPE_CHECKING:
    from tests.conftest import Bench, Run

COLON = GOOD.replace("vision, and", "vision: and")
OPEN = GOOD.removesuffix("```\n")
TOO_FEW = COLON.replace("- Set a target for the pages\n", "")
TASK = """\
name: said
version: "1"
prompt: prompt.j2
module: said.py
inputs: {concept: {}}
blocks: {SAID: {keys: {words: {}}}}
metric: {said: {points: 1, measure: said}}
"""
STRICT = ("arms", "tiers", "reasons", "students", "ranking", "verdicts", "passed", "failures")


@pytest.fixture
def careless(bench: Bench) -> Bench:
    """Four cases; of the baseline's answers K1 and K2 can be repaired, K3 breaks a rule besides."""
    bench.dataset(4)
    bench.answers(
        {"text": GOOD},
        {"arm": "baseline", "concept_id": "K1", "text": COLON},
        {"arm": "baseline", "concept_id": "K2", "text": OPEN},
        {"arm": "baseline", "concept_id": "K3", "text": TOO_FEW},
    )
    return bench


def comparison(run: Run) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.folder / "comparison.json").read_text("utf-8"))
    return loaded


def rows(run: Run, name: str = "baseline") -> dict[str, dict[str, Any]]:
    return {row["concept_id"]: row for row in run.result(name)["results"]}


def test_the_strict_result_is_the_same_with_and_without(careless: Bench) -> None:
    plain, repaired = (careless.run("--retries", "1", *more) for more in ((), ("--repair",)))
    assert plain.code == repaired.code == 1
    first, second = (
        json.loads(path.read_text("utf-8"))
        for path in sorted(careless.output_dir.glob("*/comparison.json"))
    )
    assert {key: first[key] for key in STRICT} == {key: second[key] for key in STRICT}
    assert (first["repair"] | {"asked": True}) == second["repair"]
    assert not first["repair"]["asked"]


def test_repairs_are_counted_beside_it(careless: Bench) -> None:
    run = careless.run("--repair", "-c", "gate.min_valid_rate=0.75")
    found = comparison(run)
    baseline = found["repair"]["arms"]["baseline"]
    assert (found["arms"]["baseline"]["valid"], baseline["summary"]["valid"]) == (1, 3)
    assert baseline["repaired"] == 2
    assert baseline["by_repair"] == {"close_fence": 1, "quote_colons": 1}
    assert baseline["by_reason"] == {"invalid_review_yaml": 1, "missing_yaml_blocks": 1}
    assert found["repair"]["arms"]["pupil"]["repaired"] == 0
    assert baseline["summary"]["mean"] > 0
    assert baseline["summary"]["mean_all"] > found["arms"]["baseline"]["mean_all"]


def test_the_gates_word_with_repairs_is_told_and_does_not_count(careless: Bench) -> None:
    run = careless.run("--repair", "-c", "gate.min_valid_rate=0.75", "--retries", "0")
    found = comparison(run)
    assert (found["passed"], found["repair"]["passed"]) == (False, True)
    assert found["repair"]["verdicts"][0]["verdict"] == "PASS"
    assert run.code == 1


def test_a_repaired_case_is_its_own_status_and_keeps_its_failure(careless: Bench) -> None:
    run = careless.run("--repair")
    result, found = run.result("baseline"), rows(run)
    assert [found[f"K{n}"]["status"] for n in (1, 2, 3, 4)] == [
        *("repaired", "repaired", "format_error", "success")
    ]
    row = found["K1"]
    assert row["repairs"] == ["quote_colons"]
    assert row["reason"] == "invalid_review_yaml"
    assert row["raw_response"] == COLON
    assert "narrative: 'The" in row["repaired_response"]
    assert row["score"] < row["repaired_score"] <= 1
    assert row["history"][-1]["status"] == "format_error"
    assert (result["valid_samples"], result["repaired_samples"]) == (1, 2)
    assert rows(run, "student")["K1"]["status"] == "success"


def test_the_journal_and_files_without_the_option_know_no_repair(careless: Bench) -> None:
    run = careless.run()
    assert {row["status"] for row in run.journal} == {"success", "format_error"}
    assert "repair" not in json.dumps(run.result("baseline")["results"])


def test_a_case_shows_what_would_mend_it(careless: Bench) -> None:
    cases = {row["concept_id"]: row["arms"] for row in comparison(careless.run())["cases"]}
    assert cases["K1"]["baseline"]["repairs"] == ["quote_colons"]
    assert cases["K1"]["baseline"]["status"] == "format_error"
    assert cases["K3"]["baseline"]["repairs"] == cases["K1"]["pupil"]["repairs"] == []


def test_a_truncated_answer_is_not_closed(careless: Bench) -> None:
    run = careless.run("--repair")
    journal = run.folder / "attempts.jsonl"
    lines = journal.read_text("utf-8").splitlines()
    cut = [line.replace('"truncated":false', '"truncated":true') for line in lines]
    assert cut != lines
    journal.write_text("\n".join(cut) + "\n", "utf-8")
    (run.folder / "comparison.json").unlink()
    careless.call("report", str(run.folder))
    assert comparison(run)["repair"]["arms"]["baseline"]["by_repair"] == {"quote_colons": 1}
    assert rows(run)["K2"]["status"] == "format_error"


def test_repairs_are_counted_in_the_files_of_constrained_arms_too(careless: Bench) -> None:
    careless.answers(
        {"text": GOOD}, {"arm": "pupil+constrained", "concept_id": "K1", "text": COLON}
    )
    run = careless.run("--constrain", "--repair")
    assert rows(run, "student+constrained")["K1"]["status"] == "repaired"
    assert run.result("student+constrained")["repaired_samples"] == 1
    assert run.result("student_")["repaired_samples"] == 0


def test_a_run_rendered_again_keeps_its_repairs(careless: Bench) -> None:
    run = careless.run("--repair")
    before = rows(run)
    (run.folder / "comparison.json").unlink()
    assert careless.call("report", str(run.folder)).code == 0
    assert rows(run) == before
    assert comparison(run)["repair"]["asked"]


def test_repairs_can_be_asked_for_when_a_run_goes_on(careless: Bench) -> None:
    first = careless.run()
    again = careless.run("--resume", str(first.folder), "--repair")
    assert again.code == first.code
    assert rows(again)["K1"]["status"] == "repaired"


def test_answers_to_a_task_of_the_users_own_are_repaired_but_not_on_the_word_of_a_stored_run(
    careless: Bench,
) -> None:
    folder = careless.folder / "task"
    folder.mkdir()
    (folder / "task.yaml").write_text(TASK, "utf-8")
    (folder / "prompt.j2").write_text("Say it: {{ concept }}", "utf-8")
    (folder / "said.py").write_text("def said(blocks, case):\n    return 1.0\n", "utf-8")
    careless.answers({"text": "```yaml SAID\nwords: now: then\n```"})
    run = careless.run("--task", str(folder), "--repair")
    found = comparison(run)["repair"]
    assert (found["measured"], found["arms"]["pupil"]["repaired"]) == (True, 4)
    assert rows(run, "student")["K1"]["repaired_score"] == 1.0
    (run.folder / "comparison.json").unlink()
    assert careless.call("report", str(run.folder)).code == 0
    found = comparison(run)["repair"]
    assert (found["measured"], found["passed"], found["arms"]) == (False, None, {})
    assert "not measured" in (run.folder / "report.md").read_text("utf-8")
    assert "Not measured" in (run.folder / "report.html").read_text("utf-8")
    assert rows(run, "student")["K1"]["status"] == "format_error"
    shown = careless.call("diagnose", str(run.folder))
    assert "unknown" in shown.out
    assert "not measured" in shown.out


def test_score_takes_a_repaired_case_for_the_failure_it_is(careless: Bench) -> None:
    run = careless.run("--repair")
    scored = careless.call("score", str(run.folder))
    assert scored.code == run.code
    assert scored.out.count("validity as recorded") == 2
    assert "keep it repaired" not in scored.out
    assert "unknown status" not in scored.out


def test_score_makes_the_same_repairs_on_stored_answers(careless: Bench) -> None:
    run = careless.run("-c", "gate.min_valid_rate=0.75")
    scored = careless.call("score", str(run.folder), "--repair")
    assert scored.code == run.code == 1
    words = "2 of 3 that break the contract keep it after a repair: 1 close_fence, 1 quote_colons"
    assert words in scored.out
    assert "with repaired answers counted as valid the gate would say PASS" in scored.out


def test_scores_rows_name_the_repairs_where_they_are_asked_for(careless: Bench) -> None:
    run = careless.run()
    plain, asked = (
        [
            json.loads(line)
            for line in careless.call("score", str(run.folder), *more).out.split("\n")
            if line
        ]
        for more in (("--json",), ("--json", "--repair"))
    )
    assert all("repairs" not in row for row in plain)
    found = {(row["arm"], row["concept_id"]): row for row in asked}
    assert found["baseline", "K1"]["repairs"] == ["quote_colons"]
    assert found["baseline", "K1"]["reason"] == "invalid_review_yaml"
    assert found["baseline", "K1"]["repaired_score"] > found["baseline", "K1"]["score"]
    assert found["baseline", "K3"]["repairs"] == []
    assert found["pupil", "K1"]["repaired_score"] is None


def test_an_answer_not_said_to_have_ended_is_not_closed_by_score(careless: Bench) -> None:
    answers: list[dict[str, object]] = [
        {"concept_id": "K1", "status": "format_error", "raw_response": OPEN},
        {"concept_id": "K2", "status": "format_error", "raw_response": OPEN, "truncated": True},
        {"concept_id": "K3", "status": "format_error", "raw_response": OPEN, "truncated": False},
        {"concept_id": "K4", "status": "format_error", "raw_response": COLON},
    ]
    path = careless.write(careless.folder / "answers.jsonl", answers)
    dataset = ("--dataset-path", str(careless.cases))
    scored = careless.call("score", str(path), *dataset, "--repair", "--json")
    found = [json.loads(line)["repairs"] for line in scored.out.splitlines()]
    assert found == [[], [], ["close_fence"], ["quote_colons"]]
