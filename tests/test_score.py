"""`score`: stored answers, ours and the predecessor's, graded again and set against the record.

Covered: what is reproduced, what is found, what `--json` prints, verdicts and exit codes. What
files are taken and refused is in `test_score_input.py`; many answers in `test_score_many.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run

KEYS = [
    *("file", "arm", "concept_id", "tier", "valid", "reason", "score"),
    *("recorded_status", "recorded_score"),
]
UNPARSED = 46.875 / 120
"""Metric of an answer whose VISION is complete and whose REVIEW does not parse."""


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
    return bench.run()


@pytest.fixture
def good(bench: Bench, answers: Answers) -> Run:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    return bench.run()


def old_file(bench: Bench, rows: list[dict[str, Any]], name: str = "student_old.json") -> Path:
    """A result file as the predecessor wrote it."""
    path = bench.folder / name
    path.write_text(json.dumps({"config": {"tag": "x"}, "results": rows}, indent=2), "utf-8")
    return path


def old_row(answers: Answers, name: str = "K1", **changes: object) -> dict[str, Any]:
    row = {"concept_id": name, "tier": "simple", "status": "success", "score": 1.0}
    return row | {"raw_response": answers.text()} | changes


def score(bench: Bench, *words: object) -> Run:
    return bench.call("score", *map(str, words), "--dataset-path", str(bench.cases))


def objects(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.out.splitlines()]


def test_every_recorded_score_of_a_run_is_reproduced(run: Run, bench: Bench) -> None:
    (student,) = run.folder.glob("student*.json")
    rows = objects(score(bench, student, "--json"))
    assert len(rows) == 4
    for row in rows:
        assert row["score"] == pytest.approx(row["recorded_score"], abs=1e-9)


def test_every_recorded_status_of_a_run_is_reproduced(run: Run, bench: Bench) -> None:
    rows = objects(score(bench, run.folder, "--json"))
    assert all(row["valid"] == (row["recorded_status"] == "success") for row in rows)
    assert sum(row["valid"] for row in rows) == 4 + 2


def test_a_reproduced_file_says_so_and_exits_0(run: Run, bench: Bench) -> None:
    (student,) = run.folder.glob("student*.json")
    scored = score(bench, student)
    assert scored.code == 0
    assert "every recorded status and score is reproduced" in scored.out


def test_the_data_set_of_a_run_is_found_in_its_own_file(run: Run, bench: Bench) -> None:
    assert bench.call("score", str(run.folder)).code == 1  # the gate's word, as in the run
    assert run.code == 1


def test_the_journal_of_a_killed_run_is_graded_attempt_by_attempt(run: Run, bench: Bench) -> None:
    for path in run.folder.glob("*.json"):
        if path.name != "manifest.json":
            path.unlink()
    rows = objects(bench.call("score", str(run.folder), "--json"))
    recorded = [(r["arm"], r["concept_id"], r["status"], r["score"]) for r in run.journal]
    now = [(r["arm"], r["concept_id"], r["recorded_status"], r["score"]) for r in rows]
    assert now == recorded


def test_a_journal_and_the_result_files_come_to_the_same_verdict(run: Run, bench: Bench) -> None:
    from_files = score(bench, run.folder).out.splitlines()
    from_journal = score(bench, run.folder / "attempts.jsonl").out.splitlines()
    begin = next(n for n, line in enumerate(from_files) if line.startswith("Recorded"))
    assert from_files[begin:] == from_journal[-len(from_files[begin:]) :]


def test_a_review_that_does_not_parse_is_found_behind_its_fence(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    broken = answers.text(review="status: aligned\nsummary: a: b")
    rows = [old_row(answers), old_row(answers, "K2", raw_response=broken, score=UNPARSED)]
    scored = score(bench, old_file(bench, rows))
    assert scored.code == 1
    assert "1 recorded as success now fail: 1 invalid_review_yaml" in scored.out
    assert "K2: success -> invalid_review_yaml" in scored.out
    assert "line 2" in scored.out


def test_a_score_recorded_for_it_is_reproduced_all_the_same(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    broken = answers.text(review="a: b: c")
    path = old_file(bench, [old_row(answers, raw_response=broken, score=UNPARSED)])
    (row,) = objects(score(bench, path, "--json"))
    assert (row["valid"], row["reason"]) == (False, "invalid_review_yaml")
    assert row["score"] == pytest.approx(UNPARSED, abs=1e-9)


def test_an_answer_that_was_wrongly_refused_is_found(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    scored = score(bench, old_file(bench, [old_row(answers, status="format_error")]))
    assert scored.code == 1
    assert "1 recorded as failed now keep the contract" in scored.out


def test_a_score_that_changed_is_counted_with_its_distance(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    rows = [old_row(answers), old_row(answers, "K2", score=0.75)]
    scored = score(bench, old_file(bench, rows))
    assert scored.code == 1
    assert "1 of 2 recorded scores differ, by at most 0.250000" in scored.out


@pytest.mark.parametrize(("distance", "code"), [(9e-10, 0), (2e-9, 1)])
def test_a_score_is_reproduced_within_1e_9(
    bench: Bench, answers: Answers, distance: float, code: int
) -> None:
    bench.dataset(1)
    path = old_file(bench, [old_row(answers, score=1 - distance)])
    assert score(bench, path).code == code


def test_a_failure_recorded_with_0_is_reproduced_by_failing(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    row = old_row(answers, status="format_error", score=0.0, raw_response=answers.bad())
    assert score(bench, old_file(bench, [row])).code == 0


def test_another_reason_than_recorded_is_shown(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    row = old_row(answers, status="format_error", raw_response=answers.bad(), reason="bad fences")
    scored = score(bench, old_file(bench, [row | {"score": 0}]))
    assert "1 bad fences -> review_missing_narrative" in scored.out


@pytest.mark.parametrize("missing", [{}, {"raw_response": None}, {"raw_response": 7}])
def test_an_answer_without_its_text_never_passes(
    bench: Bench, answers: Answers, missing: dict[str, Any]
) -> None:
    bench.dataset(1)
    row = old_row(answers)
    del row["raw_response"]
    path = old_file(bench, [row | missing])
    (graded,) = objects(score(bench, path, "--json"))
    assert (graded["valid"], graded["reason"], graded["score"]) == (False, "no_raw_response", None)
    scored = score(bench, path)
    assert scored.code == 1
    assert "1 without a raw response, so not gradable" in scored.out


def test_an_empty_answer_misses_its_blocks(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    path = old_file(bench, [old_row(answers, raw_response="")])
    (row,) = objects(score(bench, path, "--json"))
    assert (row["reason"], row["score"]) == ("missing_yaml_blocks", None)


def test_json_prints_one_object_with_these_keys_for_each_answer(run: Run, bench: Bench) -> None:
    scored = score(bench, run.folder, "--json")
    assert [list(row) for row in objects(scored)] == [KEYS] * 8
    assert scored.err == "  8/8 answers graded\n"


def test_json_keeps_the_order_of_files_and_answers(bench: Bench, answers: Answers) -> None:
    bench.dataset(3)
    one = old_file(bench, [old_row(answers, f"K{n}") for n in (2, 1, 3)], "one.json")
    two = old_file(bench, [old_row(answers, f"K{n}") for n in (3, 1)], "two.json")
    rows = objects(score(bench, two, one, "--json"))
    assert [(row["file"], row["concept_id"]) for row in rows] == [
        *((str(two), "K3"), (str(two), "K1")),
        *((str(one), "K2"), (str(one), "K1"), (str(one), "K3")),
    ]


def test_json_holds_any_character_of_an_id(bench: Bench, answers: Answers) -> None:
    name = "\u2028\x1b[2J\U0001f9ea\n"
    bench.dataset(1, concept_id=name)
    rows = objects(score(bench, old_file(bench, [old_row(answers, name)]), "--json"))
    assert [row["concept_id"] for row in rows] == [name]


def test_no_id_writes_to_the_terminal(bench: Bench, answers: Answers) -> None:
    name = "\x1b[2J\u202e"
    bench.dataset(1, concept_id=name)
    scored = score(bench, old_file(bench, [old_row(answers, name, score=0.5)]))
    assert not set("\x1b\u202e") & set(scored.out + scored.err)


def test_a_baseline_and_a_student_get_the_gates_verdict(good: Run, bench: Bench) -> None:
    scored = score(bench, good.folder)
    assert scored.code == good.code == 0
    assert "\nPASS  pupil\n" in scored.out


def test_the_verdict_decides_even_where_all_is_reproduced(run: Run, bench: Bench) -> None:
    scored = score(bench, run.folder)
    assert scored.code == run.code == 1
    assert "\nFAIL  pupil\n" in scored.out


def test_a_verdict_that_falls_says_what_the_record_said(bench: Bench, answers: Answers) -> None:
    bench.dataset(4)
    fine = [old_row(answers, f"K{n}") for n in range(1, 5)]
    broken = answers.text(review="a: b: c")
    student = [*fine[:3], old_row(answers, "K4", raw_response=broken, score=UNPARSED)]
    arms = old_file(bench, fine, "baseline_1.json"), old_file(bench, student)
    scored = score(bench, *arms, "-c", "gate.min_ratio=0.8")
    assert scored.code == 1
    assert "on the recorded results the gate says PASS" in scored.out


def test_thresholds_can_be_given(good: Run, bench: Bench) -> None:
    assert score(bench, good.folder, "-c", "gate.min_ratio=1.01").code == 1


def test_thresholds_can_come_from_a_file(good: Run, bench: Bench) -> None:
    path = bench.folder / "strict.yaml"
    path.write_text("gate: {min_ratio: 1.01}\n", encoding="utf-8")
    assert score(bench, good.folder, "--config", path).code == 1


def test_the_thresholds_of_the_run_count_where_none_are_given(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    run = bench.run("-c", "gate.min_ratio=1.5")
    assert run.code == score(bench, run.folder).code == 1
    assert score(bench, run.folder, "-c", "gate.min_ratio=0.5").code == 0


def test_every_student_of_a_run_is_graded(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()}, {"arm": "other", "text": answers.bad()})
    folder = bench.run("--adapter", "other").folder
    scored = score(bench, folder)
    assert scored.code == 1
    assert ("PASS  pupil" in scored.out, "FAIL  other" in scored.out) == (True, True)


def test_a_student_that_lacks_a_case_does_not_pass(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    rows = [old_row(answers), old_row(answers, "K2")]
    scored = score(
        bench, old_file(bench, rows, "baseline.json"), old_file(bench, rows[:1], "student.json")
    )
    assert scored.code == 1
    assert "FAIL: 1 of 2" in scored.out


def test_there_is_no_verdict_on_two_students(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    files = [old_file(bench, [old_row(answers)], name) for name in ("a.json", "b.json")]
    scored = score(bench, *files)
    assert scored.code == 0
    assert "no verdict: it needs a baseline and a student" in scored.out


def test_samples_of_a_case_are_told_apart_by_their_order(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    rows = [old_row(answers), old_row(answers)]
    files = [old_file(bench, rows, name) for name in ("baseline.json", "student.json")]
    assert score(bench, *files).code == 0


def test_the_intervals_are_the_runs_own(bench: Bench, answers: Answers) -> None:
    bench.dataset(12)
    vision = answers.vision(non_goals=None)
    lines = [{"arm": "pupil", "concept_id": f"K{n}", "text": answers.text(vision)} for n in (1, 5)]
    bench.answers({"text": answers.text()}, *lines)
    run = bench.run("--seed", "7")
    (line,) = (line for line in run.out.splitlines() if line.startswith("over 12 pairs"))
    assert line in score(bench, run.folder).out.splitlines()


def test_different_tasks_are_not_scored_at_once(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    paths = []
    for task in ("product_owner", "poems"):
        config: dict[str, Any] = {"task": task, "engine": "vllm", "gate": {}, "dataset_path": "x"}
        paths.append(bench.folder / f"{task}.json")
        whole = {"config": config, "results": [old_row(answers)]}
        paths[-1].write_text(json.dumps(whole), "utf-8")
    scored = score(bench, *paths)
    assert scored.code == 2
    assert "config.task differs" in scored.err
    assert score(bench, *paths, "--task", "product_owner").code == 0


def test_the_known_answers_are_graded_as_known(bench: Bench, shared_data: Path) -> None:
    lines = (shared_data / "po_known_answers.jsonl").read_text("utf-8").splitlines()
    known = [json.loads(line) | {"concept_id": f"A{n}"} for n, line in enumerate(lines)]
    bench.write(bench.cases, known)
    rows = [{"concept_id": k["concept_id"], "raw_response": k["response"]} for k in known]
    found = objects(score(bench, old_file(bench, rows), "--json"))
    assert [(row["valid"], row["reason"]) for row in found] == [
        (k["valid"], k["reason"]) for k in known
    ]
    for row, k in zip(found, known, strict=True):
        assert row["score"] == (None if k["score"] is None else pytest.approx(k["score"], abs=1e-9))


def test_a_data_set_of_other_content_than_the_runs_is_noted(good: Run, bench: Bench) -> None:
    bench.dataset(3, concept="Another tool library")
    assert "made with a data set that differs" in score(bench, good.folder).out


def test_a_reader_that_leaves_does_not_change_the_exit_code(bench: Bench, answers: Answers) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    command = [sys.executable, "-m", "vllm_eval", "score", "--json", str(bench.run().folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 0
