"""`score` on parts of a run: the gate does not pass on data that is missing, and says why."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.rescore.stored import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run


@pytest.fixture
def good(bench: Bench, answers: Answers) -> Run:
    """Three cases, two samples of each, all valid in both arms."""
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    return bench.run("--samples-per-case", "2")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    whole = json.loads(path.read_text("utf-8"))
    change(whole)
    path.write_text(json.dumps(whole), "utf-8")


def kill(run: Run, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave what a killed run leaves: a journal of some attempts and no result file."""
    rows = [row for row in run.journal if keep(row)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "attempts.jsonl").write_text(text, "utf-8")
    for pattern in ("baseline*.json", "student*.json", "comparison.json"):
        for path in run.folder.glob(pattern):
            path.unlink()


def old_file(bench: Bench, answers: Answers, name: str, **head: object) -> Path:
    """A file of the predecessor that holds K1 and K2."""
    rows = [
        {"concept_id": f"K{n}", "status": "success", "score": 1.0, "raw_response": answers.text()}
        for n in (1, 2)
    ]
    path = bench.folder / name
    path.write_text(json.dumps({**head, "results": rows}), "utf-8")
    return path


def test_the_journal_of_a_whole_run_passes(good: Run, bench: Bench) -> None:
    kill(good, lambda row: True)
    scored = bench.call("score", str(good.folder))
    assert (scored.code, "\nPASS  pupil\n" in scored.out) == (0, True)


def test_of_a_run_whose_result_file_is_too_large_the_journal_is_graded(
    good: Run, bench: Bench
) -> None:
    (large,) = good.folder.glob("baseline*.json")
    os.truncate(large, MAX_BYTES + 1)  # a hole: no disk is taken
    scored = bench.call("score", str(good.folder))
    assert (scored.code, "\nPASS  pupil\n" in scored.out) == (0, True)
    assert bench.call("compare", str(good.folder), str(good.folder)).code == 0


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (lambda row: row["concept_id"] != "K3", "holds 4 of 6 outcomes of pupil"),
        (lambda row: row["sample"] == 0, "holds 3 of 6 outcomes of baseline"),
        (lambda row: row["arm"] == "baseline", "holds 0 of 6 outcomes of pupil"),
        (lambda row: row["arm"] == "pupil", "holds 0 of 6 outcomes of baseline"),
    ],
)
def test_the_journal_of_a_killed_run_does_not_pass(
    good: Run, bench: Bench, keep: Callable[[dict[str, Any]], bool], words: str
) -> None:
    kill(good, keep)
    scored = bench.call("score", str(good.folder))
    assert scored.code == 1
    assert words in scored.out
    assert "\nFAIL  pupil\n" in scored.out
    assert bench.call("score", str(good.folder), "--json").code == 1


def test_only_the_cases_that_were_drawn_are_pending(bench: Bench, answers: Answers) -> None:
    bench.dataset(5)
    bench.answers({"text": answers.text()})
    run = bench.run("--max-samples", "2")
    kill(run, lambda row: True)
    assert bench.call("score", str(run.folder)).code == 0


def test_without_a_manifest_the_configuration_says_what_is_pending(good: Run, bench: Bench) -> None:
    kill(good, lambda row: row["concept_id"] != "K3")
    (good.folder / "manifest.json").unlink()
    scored = bench.call("score", str(good.folder))
    assert scored.code == 1
    assert "holds 4 of 6 outcomes" in scored.out


def test_files_that_say_they_are_partial_do_not_pass(good: Run, bench: Bench) -> None:
    files = [*good.folder.glob("baseline*"), *good.folder.glob("student*.json")]
    edit(files[1], lambda whole: whole.update(partial=True))
    scored = bench.call("score", *map(str, files))
    assert scored.code == 1
    assert 'says "partial": true' in scored.out


def test_results_that_were_taken_out_of_a_file_are_missed(good: Run, bench: Bench) -> None:
    for path in good.folder.glob("[bs]*.json"):
        edit(path, lambda whole: whole["results"].pop())
    scored = bench.call("score", str(good.folder))
    assert scored.code == 1
    assert "says 6 total_samples but holds 5" in scored.out


def test_an_older_file_that_lacks_some_of_its_total_does_not_pass(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(3)
    names = ("baseline.json", "student.json")
    files = [str(old_file(bench, answers, name, total_samples=2)) for name in names]
    data = ("--dataset-path", str(bench.cases))
    assert bench.call("score", *files, *data).code == 0
    files = [str(old_file(bench, answers, name, total_samples=3)) for name in names]
    scored = bench.call("score", *files, *data)
    assert scored.code == 1
    assert "baseline.json says 3 total_samples but holds 2" in scored.out


def test_a_run_folder_with_partial_results_is_graded_by_its_journal(
    good: Run, bench: Bench
) -> None:
    for path in good.folder.glob("[bs]*.json"):
        edit(path, lambda whole: whole.update(partial=True, results=whole["results"][:2]))
    edit(good.folder / "comparison.json", lambda whole: whole.update(partial=True))
    scored = bench.call("score", str(good.folder))
    assert (scored.code, "attempts.jsonl  pupil, 6 answers" in scored.out) == (0, True)


def with_settings(bench: Bench, answers: Answers, name: str, **settings: object) -> str:
    config = {"task": "product_owner", "engine": "vllm", "dataset_path": "x", "gate": {}}
    return str(old_file(bench, answers, name, config=config | settings))


@pytest.mark.parametrize("turned", [False, True])
def test_stored_thresholds_that_differ_are_refused_in_any_order(
    bench: Bench, answers: Answers, turned: bool
) -> None:
    bench.dataset(2)
    strict = with_settings(bench, answers, "baseline.json", gate={"min_ratio": 1.5})
    files = [strict, with_settings(bench, answers, "student.json")]
    words = ["score", *(reversed(files) if turned else files), "--dataset-path", str(bench.cases)]
    scored = bench.call(*words)
    assert (scored.code, scored.out) == (2, "")
    message = " ".join(scored.err.split())
    assert "config.gate.min_ratio differs" in message
    assert "--config or -c gate.min_ratio=" in message
    assert bench.call(*words, "-c", "gate.min_ratio=0.9").code == 0
    assert bench.call(*words, "-c", "gate.min_ratio=1.1").code == 1


def test_stored_seeds_that_differ_are_refused(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    files = [with_settings(bench, answers, "baseline.json", seed=1)]
    files.append(with_settings(bench, answers, "student.json", seed=2))
    words = ["score", *files, "--dataset-path", str(bench.cases)]
    scored = bench.call(*words)
    assert scored.code == 2
    assert "config.seed differs" in scored.err
    assert bench.call(*words, "-c", "seed=3").code == 0


def test_thresholds_may_differ_where_there_is_no_verdict(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    files = [with_settings(bench, answers, "a.json", gate={"min_ratio": 1.5})]
    files.append(with_settings(bench, answers, "b.json"))
    assert bench.call("score", *files, "--dataset-path", str(bench.cases)).code == 0
