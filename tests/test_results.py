"""What a run leaves behind: its folder, the files in it, and that they agree with each other."""

from __future__ import annotations

import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run

TIMESTAMP = r"\d{8}-\d{6}"


@pytest.fixture
def run(bench: Bench, answers: Answers) -> Run:
    """Four cases: the student needs a retry for K2, never keeps K3, and is not answered on K4."""
    bench.dataset(4)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K2", "arm": "pupil", "attempt": 1, "text": answers.bad()},
        {"concept_id": "K3", "arm": "pupil", "text": answers.text(review="a: b: c")},
        {"concept_id": "K4", "arm": "pupil", "error": "no blocks left"},
    )
    return bench.run("--tag", "mine")


def by_case(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["concept_id"]: row for row in result["results"]}


def comparison(run: Run) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.folder / "comparison.json").read_text("utf-8"))
    return loaded


def test_the_folder_is_named_for_tag_and_time(run: Run) -> None:
    assert re.fullmatch(rf"mine_{TIMESTAMP}", run.folder.name)


def test_without_a_tag_the_folder_is_named_for_the_adapter(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    assert re.fullmatch(rf"pupil_{TIMESTAMP}", bench.run().folder.name)


@pytest.mark.parametrize("tag", ["../../up", "/etc/x", "a b\n", "..", "ü\u202e"])
def test_no_tag_leads_out_of_the_output_folder(bench: Bench, answers: Answers, tag: str) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run("--tag", tag)
    assert run.folder.parent == bench.output_dir
    assert re.fullmatch(rf"[A-Za-z0-9._-]+_{TIMESTAMP}", run.folder.name)


def test_two_runs_never_share_a_folder(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    for _ in range(3):
        bench.run()
    assert len(list(bench.output_dir.iterdir())) == 3


def test_every_file_of_the_design_is_there(run: Run) -> None:
    names = {re.sub(TIMESTAMP, "TIME", path.name) for path in run.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "manifest.json",
        "attempts.jsonl",
        "baseline_TIME.json",
        "student_TIME.json",
        "comparison.json",
        "eval_results_TIME.zip",
    }


def test_no_unfinished_file_is_left(run: Run) -> None:
    assert list(run.folder.glob("*.part")) == []


def test_each_student_has_a_file_of_its_own_where_there_are_several(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    folder = bench.run("--adapter", "other").folder
    assert {re.sub(TIMESTAMP, "TIME", path.name) for path in folder.glob("student*")} == {
        "student_pupil_TIME.json",
        "student_other_TIME.json",
    }


def test_a_result_file_counts_total_valid_and_failed(run: Run) -> None:
    keys = ("total_samples", "valid_samples", "failed_samples")
    student, baseline = run.result("student"), run.result("baseline")
    assert [[result[key] for key in keys] for result in (student, baseline)] == [
        [4, 2, 2],
        [4, 4, 0],
    ]


def test_a_result_file_has_the_metrics_over_the_valid_cases(run: Run) -> None:
    metrics = run.result("student")["metrics"]
    assert metrics.keys() >= {"mean", "std", "min", "max"}
    assert (metrics["mean"], metrics["std"], metrics["min"], metrics["max"]) == (1, 0, 1, 1)


def test_a_result_file_has_the_configuration_it_came_from(run: Run) -> None:
    config = run.result("student")["config"]
    assert config == yaml.safe_load((run.folder / "config.yaml").read_text("utf-8"))


def test_every_case_has_the_keys_of_the_old_files(run: Run) -> None:
    keys = {"concept_id", "tier", "status", "score", "attempts", "error", "blocks", "raw_response"}
    assert all(row.keys() >= keys for row in run.result("student")["results"])


def test_the_cases_stand_in_the_order_drawn(bench: Bench, answers: Answers) -> None:
    bench.dataset(10)
    bench.answers(
        {"text": answers.text()}, {"concept_id": "K8", "text": answers.text(), "seconds": 0.2}
    )
    ids = [row["concept_id"] for row in bench.run("--seed", "42").result("student")["results"]]
    assert ids == [f"K{n}" for n in (8, 4, 3, 9, 6, 7, 10, 5, 1, 2)]


def test_max_samples_takes_the_first_of_the_draw(bench: Bench, answers: Answers) -> None:
    bench.dataset(10)
    bench.answers({"text": answers.text()})
    result = bench.run("--max-samples", "3").result("baseline")
    assert [row["concept_id"] for row in result["results"]] == ["K8", "K4", "K3"]


def test_each_way_a_case_can_end_has_its_status(run: Run) -> None:
    cases = by_case(run.result("student"))
    assert {name: (row["status"], row["reason"]) for name, row in cases.items()} == {
        "K1": ("success", None),
        "K2": ("success", None),
        "K3": ("format_error", "invalid_review_yaml"),
        "K4": ("error", "engine_error"),
    }


def test_attempts_are_counted_and_kept(run: Run) -> None:
    cases = by_case(run.result("student"))
    assert {name: row["attempts"] for name, row in cases.items()} == {
        "K1": 1,
        "K2": 2,
        "K3": 3,
        "K4": 0,  # the engine's errors are no attempts of the model
    }
    assert [a["status"] for a in cases["K2"]["history"]] == ["format_error", "success"]


def test_a_case_shows_the_answer_that_counted(run: Run, answers: Answers) -> None:
    case = by_case(run.result("student"))["K2"]
    assert case["raw_response"] == answers.text()
    assert yaml.safe_load(case["blocks"]["vision"]) == answers.vision()


def test_a_failed_case_says_what_was_wrong(run: Run) -> None:
    cases = by_case(run.result("student"))
    assert "REVIEW block is not valid YAML (line 1" in cases["K3"]["error"]
    assert cases["K4"]["error"] == "no blocks left"


def test_a_format_error_keeps_the_score_of_what_parsed(run: Run) -> None:
    # The REVIEW counts as empty: 30 x 9/16 schema and 30 vision points of 120.
    assert by_case(run.result("student"))["K3"]["score"] == pytest.approx(46.875 / 120, abs=1e-12)


def test_a_case_without_an_answer_has_no_score(run: Run) -> None:
    assert by_case(run.result("student"))["K4"]["score"] is None


def test_the_journal_holds_every_attempt_with_its_text(run: Run, answers: Answers) -> None:
    first, second = run.attempts("pupil", "K2")
    assert (first["attempt"], first["final"], first["raw_response"]) == (1, False, answers.bad())
    assert (second["attempt"], second["final"], second["raw_response"]) == (2, True, answers.text())
    assert len(run.journal) == 4 + 1 + 2 + 3 + 3


def test_a_journal_line_has_reason_tokens_and_timing(run: Run) -> None:
    line = run.attempts("pupil", "K3")[0]
    assert (line["reason"], line["block"], line["line"], line["column"]) == (
        *("invalid_review_yaml", "REVIEW", 1, 5),
    )
    assert min(line["prompt_tokens"], line["output_tokens"]) > 20
    assert line["finished_at"] >= line["total_s"] >= 0


def test_the_manifest_names_versions_hardware_and_data(run: Run) -> None:
    manifest = json.loads((run.folder / "manifest.json").read_text("utf-8"))
    text = json.dumps(manifest)
    assert manifest["schema_version"] == 1
    assert manifest["machine"]["cpus"] >= 1
    assert manifest["engine"]["engine"] == "scripted"
    assert all(word in text for word in ("vllm_eval", "product_owner", "cases.jsonl"))


def test_the_zip_holds_the_run(run: Run) -> None:
    (path,) = run.folder.glob("eval_results_*.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        inside = {name: archive.read(name) for name in archive.namelist()}
    outside = {p for p in run.folder.iterdir() if p.suffix in (".json", ".jsonl", ".yaml")}
    assert inside == {f"{run.folder.name}/{p.name}": p.read_bytes() for p in outside}


def test_the_comparison_the_verdict_printed_and_the_exit_code_agree(run: Run) -> None:
    verdict = comparison(run)["verdicts"][0]
    assert (run.code, verdict["verdict"], comparison(run)["passed"]) == (1, "FAIL", False)
    assert re.search(r"^FAIL +pupil$", run.out, re.MULTILINE)


def test_they_agree_on_a_run_that_passes_as_well(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    run = bench.run()
    verdict = comparison(run)["verdicts"][0]
    assert (run.code, verdict["verdict"], comparison(run)["passed"]) == (0, "PASS", True)
    assert re.search(r"^PASS +pupil$", run.out, re.MULTILINE)


def test_the_comparison_has_arms_tiers_and_reasons(run: Run) -> None:
    whole = comparison(run)
    assert whole["arms"]["pupil"]["first_valid"] == 1
    assert whole["tiers"]["pupil"]["simple"]["total"] == 4
    assert whole["reasons"]["pupil"] == {"engine_error": 1, "invalid_review_yaml": 1}


def test_the_comparison_and_the_result_files_agree(run: Run) -> None:
    arms, metrics = comparison(run)["arms"], run.result("student")["metrics"]
    assert {key: arms["pupil"][key] for key in metrics} == metrics


def outcomes(folder: Path) -> list[tuple[object, ...]]:
    lines = (folder / "attempts.jsonl").read_text("utf-8").splitlines()
    keys = ("arm", "concept_id", "attempt", "status", "reason", "score", "seed", "final")
    return sorted(tuple(map(str, map(json.loads(line).get, keys))) for line in lines)


def test_a_stored_configuration_can_be_run_again_to_the_same_outcomes(
    run: Run, bench: Bench
) -> None:
    before = run.folder
    again = bench.call("--config", str(before / "config.yaml"))
    (after,) = set(bench.output_dir.iterdir()) - {before}
    assert again.code == run.code
    assert outcomes(after) == outcomes(before)


def test_a_record_cannot_write_to_the_terminal(bench: Bench, answers: Answers) -> None:
    bench.dataset(2, tier="\x1b[2J\u202esimple\x07\x9b")
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert run.code == 0
    assert not set("\x1b\u202e\x07\x9b") & set(run.out + run.err)


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a\nb", "CON", "x" * 500, "\x1b[2J"])
def test_no_id_of_a_case_becomes_a_file_name(bench: Bench, answers: Answers, name: str) -> None:
    bench.dataset(1, concept_id=name)
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert run.code == 0
    assert by_case(run.result("student")).keys() == {name}
    assert all(path.parent == run.folder for path in run.folder.rglob("*"))


def test_answers_of_any_characters_are_kept(bench: Bench, answers: Answers) -> None:
    text = f"\0\x1b[2J\u202e{answers.text()}\U0001f9ea\r\n\u2028"
    bench.dataset(1)
    bench.answers({"text": text})
    assert by_case(bench.run().result("student"))["K1"]["raw_response"] == text


def test_the_verdict_says_when_the_base_was_quantised(bench: Bench, run: Run) -> None:
    path = run.folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["engine"]["quantization"] = "bitsandbytes"
    path.write_text(json.dumps(manifest), "utf-8")
    again = bench.call("--resume", str(run.folder))
    assert "FAIL  pupil  (all arms on a base quantised by bitsandbytes)" in again.out


def test_a_run_ends_with_its_report_unless_told_not_to(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    names = {path.name for path in bench.run("--report").folder.iterdir()}
    assert {"report.html", "report.md", "summary.md", "junit.xml", "plots"} <= names


def test_a_run_without_a_report_still_has_its_archive(run: Run) -> None:
    names = {path.name.partition("_")[0] for path in run.folder.iterdir()}
    assert "eval" in names
    assert "report.html" not in names


def test_a_run_without_any_answer_names_every_reason(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()}, {"arm": "pupil", "error": "no blocks left"})
    run = bench.run()
    assert (run.code, "no case of pupil has an answer (engine_error)" in run.err) == (3, True)
    rows = [row | {"reason": "other"} if row["concept_id"] == "K2" else row for row in run.journal]
    journal = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "attempts.jsonl").write_text(journal, "utf-8")
    again = bench.call("--resume", str(run.folder))
    assert "no case of pupil has an answer (engine_error, other)" in again.err
