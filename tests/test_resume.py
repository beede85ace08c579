"""A run that ended early goes on where it stopped, and only the same run may go on.

Covered: resuming, torn journals, refusals, interrupts, engine restarts, exactly one outcome.
Not covered: processes killed at random (test_killed.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.tasks.parse import loader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run


@pytest.fixture
def whole(bench: Bench, answers: Answers) -> Run:
    """A finished run of four cases; the student's K2 needs two attempts."""
    bench.dataset(4)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K2", "arm": "pupil", "attempt": 1, "text": answers.bad()},
    )
    return bench.run()


def cut(run: Run, lines: int, torn: bytes = b"") -> None:
    """Leave the folder as a process killed after `lines` attempts would have."""
    journal = run.folder / "attempts.jsonl"
    kept = journal.read_bytes().splitlines(keepends=True)[:lines]
    for path in run.folder.iterdir():
        if path.name not in ("cases.jsonl", "config.yaml", "manifest.json"):
            path.unlink()
    journal.write_bytes(b"".join(kept) + torn)


def outcomes(run: Run) -> dict[tuple[str, str], tuple[object, ...]]:
    keys = ("status", "score", "reason", "attempts", "raw_response")
    return {
        (arm, row["concept_id"]): tuple(row[key] for key in keys)
        for arm in ("baseline", "student")
        for row in run.result(arm)["results"]
    }


@pytest.mark.parametrize("lines", [0, 1, 3, 5, 8, 9])
def test_a_resumed_run_ends_with_the_outcomes_of_a_whole_one(
    bench: Bench, whole: Run, lines: int
) -> None:
    before = outcomes(whole)
    cut(whole, lines)
    again = bench.call("--resume", str(whole.folder))
    assert again.code == whole.code
    assert outcomes(again) == before


def test_what_was_finished_is_not_asked_again(bench: Bench, whole: Run) -> None:
    kept = (whole.folder / "attempts.jsonl").read_bytes().splitlines()[:5]
    cut(whole, 5)
    bench.call("--resume", str(whole.folder))
    lines = (whole.folder / "attempts.jsonl").read_bytes().splitlines()
    assert lines[:5] == kept
    assert len(lines) == 9


def test_a_retry_goes_on_with_the_next_attempt_and_its_reminder(bench: Bench, whole: Run) -> None:
    failed = next(n for n, row in enumerate(whole.journal) if row["status"] == "format_error")
    cut(whole, failed + 1)
    again = bench.call("--resume", str(whole.folder))
    assert [row["attempt"] for row in again.attempts("pupil", "K2")] == [1, 2]


@pytest.mark.parametrize("torn", [b'{"arm": "base', b"\0" * 300, b"{}"[:1]])
def test_a_torn_last_line_is_requeued(bench: Bench, whole: Run, torn: bytes) -> None:
    before = outcomes(whole)
    cut(whole, 4, torn)
    assert outcomes(bench.call("--resume", str(whole.folder))) == before


def test_a_journal_damaged_in_its_middle_is_an_error_that_says_where(
    bench: Bench, whole: Run
) -> None:
    journal = whole.folder / "attempts.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b'{"arm": 1}\n' + b"".join(lines[1:]))
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 3
    assert "attempts.jsonl, line 2: the journal is damaged" in run.err


def test_a_run_is_found_by_its_name_in_the_output_folder(bench: Bench, whole: Run) -> None:
    cut(whole, 2)
    name, folder = whole.folder.name, str(bench.output_dir)
    assert bench.call("--resume", name, "--output-dir", folder).code == whole.code


def test_resuming_a_folder_that_is_no_run_is_bad_input(bench: Bench) -> None:
    run = bench.call("--resume", str(bench.folder))
    assert run.code == 2
    assert "no manifest.json there" in run.err


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (("--seed", "7"), "seed was 42, is 7"),
        (("--retries", "5"), "retries was 2, is 5"),
        (("--temperature", "0.9"), "temperature was 0.2, is 0.9"),
        (("--adapter", "other"), "adapters was"),
    ],
)
def test_another_configuration_is_refused_with_what_differs(
    bench: Bench, whole: Run, flags: tuple[str, ...], key: str
) -> None:
    cut(whole, 2)
    run = bench.call("--resume", str(whole.folder), *flags)
    assert run.code == 2
    assert key in run.err


def test_another_data_set_at_the_same_path_is_refused(bench: Bench, whole: Run) -> None:
    cut(whole, 2)
    bench.dataset(4, concept="Something else")
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 2
    assert "dataset was" in run.err


def edit_identity(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    path = run.folder / "manifest.json"
    loaded = json.loads(path.read_text("utf-8"))
    change(loaded["identity"])
    path.write_text(json.dumps(loaded), "utf-8")


def test_another_yaml_loader_is_refused(bench: Bench, whole: Run) -> None:
    """It may grade the same answer differently."""
    cut(whole, 2)
    edit_identity(whole, lambda identity: identity.update(yaml="PyYAML 5.1, libyaml 0.1.7"))
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 2
    assert f"yaml was 'PyYAML 5.1, libyaml 0.1.7', is '{loader()}'" in " ".join(run.err.split())


@pytest.mark.parametrize("adapters", [None, ["pupil"]])
def test_a_manifest_whose_adapters_are_none_is_refused(
    bench: Bench, whole: Run, adapters: object
) -> None:
    cut(whole, 2)
    edit_identity(whole, lambda identity: identity.update(adapters=adapters))
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 2
    assert "adapters was" in run.err


@pytest.mark.parametrize("key", ["engine", "adapters"])
def test_a_manifest_with_a_text_for_a_mapping_is_damaged(
    bench: Bench, whole: Run, key: str
) -> None:
    cut(whole, 2)
    path = whole.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {key: "pupil"}), "utf-8")
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 2
    assert f"manifest.json: damaged ({key})" in run.err


@pytest.mark.parametrize("auto", [True, False])
def test_a_run_from_before_loaders_were_recorded_goes_on(
    bench: Bench, whole: Run, auto: bool
) -> None:
    before = outcomes(whole)
    cut(whole, 2)
    edit_identity(whole, lambda identity: identity.pop("yaml"))
    run = bench.run("--resume", "auto" if auto else str(whole.folder))
    assert (run.code, run.folder, outcomes(run)) == (whole.code, whole.folder, before)


def test_thresholds_may_differ_when_resuming(bench: Bench, whole: Run) -> None:
    cut(whole, 2)
    run = bench.call("--resume", str(whole.folder), "-c", "gate.min_ratio=2.0")
    assert run.code == 1
    assert "resumed with a different gate" in run.out
    assert "min_ratio: 2.0" in (whole.folder / "config.yaml").read_text("utf-8")


def test_an_unfinished_run_like_this_one_is_offered_by_name(bench: Bench, whole: Run) -> None:
    cut(whole, 2)
    name = whole.folder.name
    assert f"--resume {bench.output_dir / name}" in bench.run("--tag", "second").out


def test_a_finished_run_is_not_offered(bench: Bench, whole: Run) -> None:
    assert whole.code in (0, 1)
    assert "--resume" not in bench.run("--tag", "second").out


def test_a_second_process_on_the_same_run_is_refused(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text(), "seconds": 60})
    with background(bench) as process:
        folder = wait_for_journal(bench)
        run = bench.call("--resume", str(folder))
        process.kill()
    assert run.code == 2
    assert "another process is at work on this run" in run.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_finished_and_marks_the_files_as_partial(
    bench: Bench, answers: Answers, number: signal.Signals
) -> None:
    bench.dataset(3)
    bench.answers(
        {"text": answers.text()}, {"concept_id": "K2", "text": answers.text(), "seconds": 60}
    )
    with background(bench) as process:
        folder = wait_for_journal(bench, lines=4)
        process.send_signal(number)
        assert process.wait(timeout=20) == 130
    report = json.loads((folder / "comparison.json").read_text("utf-8"))
    assert (report["partial"], report["passed"], report["pending"]) == (True, False, 2)
    (student,) = folder.glob("student_*.json")
    partial = json.loads(student.read_text("utf-8"))
    assert (partial["partial"], partial["valid_samples"]) == (True, 2)


def test_an_interrupted_run_can_be_resumed_to_a_whole_one(bench: Bench, answers: Answers) -> None:
    """The second session meets the same script, so its slow answer takes its second again."""
    bench.dataset(3)
    slow = {"concept_id": "K2", "text": answers.text(), "seconds": 1.5}
    bench.answers({"text": answers.text()}, slow)
    with background(bench) as process:
        folder = wait_for_journal(bench, lines=4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    run = bench.call("--resume", str(folder))
    assert run.code == 0
    assert len(outcomes(run)) == 6


def test_an_engine_that_dies_is_started_again_with_what_is_pending(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(3)
    bench.answers(
        {"text": answers.text()}, {"concept_id": "K2", "text": answers.text(), "deaths": 2}
    )
    run = bench.run()
    assert run.code == 0
    assert run.out.count("starting the scripted engine") == 3
    assert len(run.journal) == 6


def test_an_engine_that_dies_too_often_ends_the_run_with_its_journal_intact(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(3)
    dies = {"concept_id": "K2", "text": answers.text(), "seconds": 0.2, "deaths": 2}
    bench.answers({"text": answers.text()}, dies)
    run = bench.run("-c", "max_engine_restarts=1")
    assert run.code == 3
    assert "the engine died" in run.err
    assert len(run.journal) == 4
    assert bench.call("--resume", str(run.folder), "-c", "max_engine_restarts=2").code == 0


def test_an_outcome_that_stands_twice_in_the_journal_ends_without_a_verdict(
    bench: Bench, whole: Run
) -> None:
    journal = whole.folder / "attempts.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[-1]]))
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 3
    assert "outcome twice" in run.err


def background(bench: Bench) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vllm_eval", *bench.arguments()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_journal(bench: Bench, lines: int = 0) -> Path:
    """The run folder, once its journal holds so many lines."""
    end = time.monotonic() + 30
    found: list[Any] = []
    while time.monotonic() < end:
        found = list(bench.output_dir.glob("*/attempts.jsonl"))
        if found and len(found[0].read_bytes().splitlines()) >= lines:
            return found[0].parent  # type: ignore[no-any-return]
        time.sleep(0.02)
    pytest.fail(f"no journal with {lines} lines within 30 s: {found}")


def test_what_only_decides_what_fits_may_differ_when_resuming(bench: Bench, whole: Run) -> None:
    """Our own advice for too little memory is to lower such options and to resume."""
    cut(whole, 2)
    flags = ("--max-num-seqs", "16", "--gpu-memory-utilization", "0.8")
    assert bench.call("--resume", str(whole.folder), *flags).code == whole.code


def refuse_two(run: Run, limit: int) -> None:
    """Leave the folder as a finished run would, whose limit was too short for both arms of K3."""
    journal = run.folder / "attempts.jsonl"
    refused = {"status": "error", "reason": "prompt_too_long", "error": "", "raw_response": ""}
    more: dict[str, object] = {"score": None, "parts": {}, "output_tokens": 0}
    rows = [row | (refused | more if row["concept_id"] == "K3" else {}) for row in run.journal]
    journal.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    path = run.folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["engine"]["max_model_len"] = limit
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_prompts_that_were_too_long_are_asked_again_with_a_longer_limit(
    bench: Bench, whole: Run
) -> None:
    """Our own advice is to raise --max-model-len."""
    before = outcomes(whole)
    refuse_two(whole, 900)
    again = bench.call("--resume", str(whole.folder), "--max-model-len", "2048")
    assert again.code == whole.code
    assert "asking 2 prompts again that were too long before" in again.out
    assert outcomes(again) == before
    assert len(again.journal) == 9


@pytest.mark.parametrize("flags", [(), ("--max-model-len", "900"), ("--max-model-len", "512")])
def test_prompts_that_were_too_long_are_not_asked_again_without_one(
    bench: Bench, whole: Run, flags: tuple[str, ...]
) -> None:
    refuse_two(whole, 900)
    before = (whole.folder / "attempts.jsonl").read_bytes()
    again = bench.call("--resume", str(whole.folder), *flags)
    assert "asked again" not in again.out
    assert (again.folder / "attempts.jsonl").read_bytes() == before


def test_another_engine_than_the_one_it_was_begun_with_is_refused(bench: Bench, whole: Run) -> None:
    cut(whole, 2)
    path = whole.folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["engine"]["vllm"] = "0.26.0"
    path.write_text(json.dumps(manifest))
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 2
    assert "begun with vllm '0.26.0'" in run.err


def test_a_reader_that_leaves_does_not_end_the_run(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text(), "seconds": 0.5})
    command = [sys.executable, "-m", "vllm_eval", *bench.arguments()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    process.stderr.close()
    assert list(bench.output_dir.glob("*/comparison.json"))


def test_a_partial_result_file_holds_the_cases_that_ended_and_no_others(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.bad(), "attempt": 1}, {"text": answers.text(), "seconds": 60})
    with background(bench) as process:
        folder = wait_for_journal(bench, lines=4)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    (path,) = folder.glob("student_*.json")
    partial = json.loads(path.read_text("utf-8"))
    assert (partial["total_samples"], partial["results"]) == (0, [])


OTHER_PROCESS = """
import json, sys
path, *arguments = sys.argv[1:]
waiting = [path]
def finish(event, given):
    if event == "open" and str(given[0]).endswith(".lock") and waiting:
        manifest = json.load(open(waiting.pop()))
        manifest["sessions"].append({"total_s": 7.0})
        json.dump(manifest, open(path, "w"))
sys.addaudithook(finish)
from vllm_eval import cli
cli.main(arguments)
"""


def test_a_run_that_another_process_ends_as_it_is_resumed_keeps_that_session(
    bench: Bench, whole: Run
) -> None:
    """The other one writes the manifest just before it lets go of the journal's lock."""
    path = whole.folder / "manifest.json"
    (first,) = json.loads(path.read_text("utf-8"))["sessions"]
    cut(whole, 5)
    command = [sys.executable, "-c", OTHER_PROCESS, str(path), "--resume", str(whole.folder)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == whole.code
    before, other, ours = json.loads(path.read_text("utf-8"))["sessions"]
    assert (before, other) == (first, {"total_s": 7.0})
    assert ours["total_s"] != 7.0
