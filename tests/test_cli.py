"""The program from outside: what it loads, its exit codes, its messages, its default command."""

from __future__ import annotations

import json
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_eval import __version__

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench

REPOSITORY = Path(__file__).parents[1]
HEAVY = [
    "vllm",
    "torch",
    "transformers",
    "peft",
    "scipy",
    "numpy",
    "matplotlib",
    "ray",
    "rich",
    "yaml",
    "jinja2",
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, in the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def good(bench: Bench, answers: Answers) -> Bench:
    """A bench on which every answer is good."""
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    return bench


def test_help_is_there_before_a_reader_notices() -> None:
    def processor_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "vllm_eval", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(processor_seconds() for _ in range(5)) < 0.4


def test_importing_the_program_loads_nothing_heavy() -> None:
    code = f"import sys, vllm_eval.cli; print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert python("-c", code).stdout.strip() == "[]"


def test_help_names_both_the_commands_and_the_options_of_run(bench: Bench) -> None:
    shown = bench.call("--help")
    assert shown.code == 0
    assert all(word in shown.out for word in ("run", "--adapter", "--retries", "Exit codes"))


@pytest.mark.parametrize(
    "flag",
    [
        "--tag",
        "--base-model",
        "--adapter-path",
        "--dataset-path",
        "--output-dir",
        "--max-samples",
        "--seed",
        "--temperature",
        "--top-p",
        "--max-new-tokens",
        "--retries",
        "--load-4bit",
        "--bnb-compute-dtype",
        "--tensor-parallel-size",
        "--max-model-len",
        "--gpu-memory-utilization",
        "--quantization",
        "--enforce-eager",
        "--config",
        "-c",
    ],
)
def test_the_flags_keep_their_names(bench: Bench, flag: str) -> None:
    shown = bench.call("run", "--help")
    assert re.search(rf"(?<![\w-]){flag}\b", shown.out)


def test_the_version_is_printed(bench: Bench) -> None:
    shown = bench.call("--version")
    assert (shown.code, shown.out.split()[-1]) == (0, __version__)


def test_a_run_that_passes_exits_with_0(good: Bench) -> None:
    assert good.run().code == 0


def test_a_run_that_fails_exits_with_1(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.bad()}, {"arm": "baseline", "text": answers.text()})
    assert bench.run().code == 1


def test_a_run_that_no_case_is_answered_in_exits_with_3(bench: Bench) -> None:
    bench.dataset(2)
    bench.answers({"error": "gone"})
    assert bench.run().code == 3


def test_run_is_the_default_command(good: Bench) -> None:
    with_word, without = good.call("run", *good.arguments()), good.run()
    assert (with_word.code, without.code) == (0, 0)


def test_the_module_can_be_run(good: Bench) -> None:
    done = python("-m", "vllm_eval", *good.arguments())
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].split() == ["PASS", "pupil"]


def test_a_run_without_a_terminal_prints_no_escape_codes(good: Bench) -> None:
    done = python("-m", "vllm_eval", *good.arguments())
    assert "\x1b" not in done.stdout + done.stderr


def test_a_run_prints_arms_tiers_rules_and_the_folder(good: Bench) -> None:
    run = good.run()
    lines = run.out.splitlines()
    assert any(line.split()[:3] == ["baseline", "all", "2"] for line in lines)
    assert any(line.split()[:2] == ["simple", "2"] for line in lines)
    assert any("mean of pupil / mean of baseline" in line and "0.900" in line for line in lines)
    assert str(run.folder) in run.out


def test_a_run_with_many_cases_reports_its_progress(good: Bench) -> None:
    assert "4/4 done, 4 valid, 0 failed" in good.run().out


def test_a_run_leaves_no_file_open(good: Bench) -> None:
    code = "from vllm_eval.cli import main; import sys; main(sys.argv[1:])"
    done = python("-X", "dev", "-c", code, *good.arguments())
    assert done.returncode == 0
    assert "ResourceWarning" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--retires", "1"], "--retries"),
        (["--seed", "x"], "--seed"),
        (["nonsense"], "nonsense"),
        (["--seed"], "--seed"),
    ],
)
def test_bad_usage_exits_with_2_and_names_the_flag(
    bench: Bench, arguments: list[str], said: str
) -> None:
    run = bench.call(*arguments)
    assert run.code == 2
    assert said in run.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--retries", "-1"], "command line: retries"),
        (["--top-p", "0"], "command line: top_p"),
        (["--temperature", "nan"], "command line: temperature"),
        (["--engine", "tgi"], "command line: engine"),
        (["-c", "retrys=1"], "did you mean 'retries'?"),
        (["--config", "gone.yaml"], "gone.yaml: no such file"),
        (["--profile", "gone"], "gone: no such file"),
        (["--task", "poet"], "task: there is no task 'poet'"),
        (["--prompt-template", "gone.j2"], "gone.j2"),
        (["--dataset-path", "gone.jsonl"], "gone.jsonl"),
        (["--script", "gone.jsonl"], "gone.jsonl"),
        (["--adapter", "pupil"], "two arms would be called 'pupil'"),
        (["--output-dir", "/dev/null/x"], "/dev/null/x"),
        (["-c", "adapters=[]", "--profile", "none", "-c", "script=null"], None),
    ],
)
def test_bad_input_exits_with_2_and_names_what_is_wrong(
    good: Bench, arguments: list[str], said: str | None
) -> None:
    run = good.run(*arguments)
    if said is None:  # flags beat settings: nothing is wrong
        assert run.code == 0
        return
    assert run.code == 2
    assert said in run.err
    assert "Traceback" not in run.err


def test_without_an_adapter_the_flag_is_named(good: Bench) -> None:
    run = good.call("--engine", "scripted", "--script", str(good.script), "--profile", "none")
    assert run.code == 2
    assert "--adapter" in run.err


def test_without_a_script_the_flag_is_named(good: Bench) -> None:
    arguments = good.arguments()
    del arguments[2:4]
    run = good.call(*arguments)
    assert run.code == 2
    assert "--script" in run.err


def test_a_line_of_the_data_set_is_named(good: Bench) -> None:
    good.write(good.cases, ['{"concept": "c", "requirements_yaml": "a: 1"}', "{"])
    run = good.run()
    assert run.code == 2
    assert f"{good.cases}, line 2: " in run.err


def test_a_line_of_the_script_is_named(good: Bench) -> None:
    good.write(good.script, ['{"concept_id": "*", "text": "t"}', '{"concept_id": "*"}'])
    run = good.run()
    assert run.code == 2
    assert f"{good.script}, line 2: " in run.err


def test_what_is_wrong_is_found_before_a_run_folder_is_made(good: Bench) -> None:
    for broken in (["--dataset-path", "gone"], ["--script", "gone"], ["--task", "gone"]):
        good.run(*broken)
    assert not good.output_dir.exists()


def test_a_record_in_a_message_cannot_steer_the_terminal(good: Bench) -> None:
    row = '{"concept_id": "\\u001b[2J\\u202e", "concept": "c", "requirements_yaml": "a: 1"}'
    good.write(good.cases, [row, row])
    run = good.run()
    assert run.code == 2
    assert not set("\x1b\u202e") & set(run.err)


def test_an_interrupt_exits_with_130_and_keeps_what_had_finished(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    slow = {"concept_id": "K2", "text": answers.text(), "seconds": 30}
    bench.answers({"text": answers.text()}, slow)
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vllm_eval.cli import main; main(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *bench.arguments()],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as program:
        deadline = time.monotonic() + 30
        while not any(p.stat().st_size for p in bench.output_dir.glob("*/attempts.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=20)
    assert program.returncode == 130
    (journal,) = bench.output_dir.glob("*/attempts.jsonl")
    assert journal.read_text("utf-8").count('"concept_id":"K1"') == 2
    comparison = json.loads((journal.parent / "comparison.json").read_text("utf-8"))
    assert (comparison["partial"], comparison["passed"]) == (True, False)


@pytest.mark.parametrize("body", ["{{ concept.title.size }}", "{{ 1 // 0 }}"])
def test_a_template_that_fails_on_a_case_is_named(good: Bench, body: str) -> None:
    path = good.folder / "mine.j2"
    path.write_text(body, encoding="utf-8")
    run = good.run("--prompt-template", str(path))
    assert run.code == 2
    assert f"error: prompt_template: {path}" in run.err
    assert "Traceback" not in run.err


def test_a_path_with_a_nul_is_bad_input(good: Bench) -> None:
    arguments = [a for a in good.arguments() if a not in ("--dataset-path", str(good.cases))]
    run = good.call(*arguments, "-c", 'dataset_path="a\\0b"')
    assert run.code == 2


def test_a_check_whose_reader_has_left_keeps_its_own_exit_code(bench: Bench) -> None:
    command = [sys.executable, "-m", "vllm_eval", "check", "--json", *bench.arguments()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 2
