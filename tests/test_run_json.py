"""`run --json`: one object on standard output, and nothing else there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.checkpoints import train
from vllm_eval.report.stored_run import OUTLINE

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench


def start(bench: Bench, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vllm_eval", *bench.arguments("--json", *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def one_object(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(text)
    assert isinstance(loaded, dict)
    return loaded


def test_a_script_gets_the_selected_student_and_nothing_else(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    run = bench.run("--json", "--select", "best", "--adapter", "other")
    found = one_object(run.out)
    assert (found["word"], found["passed"], found["exit_code"]) == ("PASS", True, run.code)
    assert found["selected"]["arm"] == "other"
    assert Path(found["folder"]) == run.folder
    assert list(found) == ["folder", "word", "passed", "exit_code", *OUTLINE]
    assert "PASS  selected other" in run.err


def test_a_script_gets_the_path_of_the_checkpoint_to_ship(bench: Bench, answers: Answers) -> None:
    """All but the first are as good as one another: of these the earliest is taken."""
    bench.dataset(6)
    bench.answers({"text": answers.text()}, {"arm": "checkpoint-100", "text": answers.bad()})
    given = train(bench.folder / "exp1", 100, 200, 300, final=True)
    arguments = [str(given) if word == "pupil" else word for word in bench.arguments()]
    found = one_object(bench.call(*arguments, "--select", "best", "--json").out)
    selected = found["selected"]
    assert Path(selected["path"]) == (given / "checkpoint-200").resolve()
    assert (selected["step"], selected["training"]) == (200, str(given.resolve()))
    assert selected["tied_with"] == ["checkpoint-300", "exp1"]
    (curve,) = found["curve"]
    assert [p["arm"] for p in curve["points"] if p["selected"]] == ["checkpoint-200"]


def test_what_is_printed_is_what_is_stored(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"arm": "baseline", "text": answers.text()}, {"text": answers.bad()})
    run = bench.run("--json", "--retries", "0")
    stored = json.loads((run.folder / "comparison.json").read_text("utf-8"))
    found = one_object(run.out)
    assert {key: found[key] for key in OUTLINE} == {key: stored[key] for key in OUTLINE}
    assert (run.code, found["exit_code"], found["selected"]) == (1, 1, None)


def test_bad_input_leaves_standard_output_empty(bench: Bench) -> None:
    bench.answers({"text": "never asked"})
    run = bench.run("--json")
    assert (run.code, run.out) == (2, "")
    assert "cases.jsonl" in run.err


def test_a_run_that_has_evaluated_nothing_leaves_standard_output_empty(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    bench.answers({"arm": "baseline", "error": "gone"}, {"text": answers.text()})
    run = bench.run("--json")
    assert (run.code, run.out) == (3, "")


def test_the_streams_of_a_process_are_kept_apart(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    process = start(bench)
    out, err = process.communicate(timeout=120)
    assert one_object(out)["exit_code"] == process.returncode == 0
    assert "Gate for pupil" in err


def test_an_interrupted_run_is_one_object_too(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    last = {"concept_id": "K2", "text": answers.text(), "seconds": 60}
    bench.answers({"text": answers.text()}, last)
    process = start(bench)
    journal = "*/attempts.jsonl"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in bench.output_dir.glob(journal)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    found = one_object(out)
    assert (found["word"], found["exit_code"], process.returncode) == ("NOT FINISHED", 130, 130)
    assert found["pending"] > 0
    assert (found["selected"], found["unselected"]) == (None, "answers are still pending")


@pytest.mark.engine
def test_nothing_of_the_engine_reaches_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_eval", "--config", "demo", "--max-samples", "3"]
    command += ["--json", "--output-dir", str(tmp_path), "--no-report"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    found = one_object(made.stdout)
    assert found["exit_code"] == made.returncode, made.stderr
    assert found["selected"]["path"].endswith("po_student_demo")
