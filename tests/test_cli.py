"""The program from outside: what it loads, its exit codes, its messages, its default command."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.markup import escape
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from vllm_eval import __version__
from vllm_eval.commands import app
from vllm_eval.config.flags import KeyOption, key_options
from vllm_eval.config.settings import Config, GateConfig, Record, VllmArgs

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


COMMANDS = ["run", "check", "score", "compare", "report", "diagnose", "export", "bench"]


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
    """Held against the libraries that print it, because machines differ and are shared."""

    def processor_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = ("-c", "import typer.rich_utils, pydantic.types")
    pairs = [
        (processor_seconds("-m", "vllm_eval", "--help"), processor_seconds(*libraries))
        for _ in range(5)
    ]
    assert statistics.median(ours / theirs for ours, theirs in pairs) < 2


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


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_answers_h_and_help_with_the_same(bench: Bench, command: str) -> None:
    short, long = (bench.call(*command.split(), name) for name in ("-h", "--help"))
    assert (short.code, long.code) == (0, 0)
    assert short.out == long.out
    assert "Exit codes: " in short.out


@pytest.mark.parametrize("command", ["", "run"])
def test_help_groups_the_options_and_shows_three_examples(bench: Bench, command: str) -> None:
    shown = bench.call(*command.split(), "--help").out
    panels = ["What to evaluate", "How to ask", "Engine", "Gate", "Output"]
    assert re.findall(r"╭─ ([^─]+) ─", shown)[1:6] == panels
    assert len(re.findall(r"^ *python -m vllm_eval --", shown, re.MULTILINE)) == 3


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_at_80_columns_no_name_and_no_default_is_shortened(
    bench: Bench, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = bench.call(*command.split(), "--help").out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


KEYS = [pytest.param(option, id=".".join(option.path)) for option in key_options()]


@pytest.mark.parametrize("option", KEYS)
def test_an_option_has_the_default_and_the_help_of_its_key(option: KeyOption) -> None:
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    params = {param.name: param for param in command.commands["run"].params}
    shown = params[option.path[-1]]
    assert isinstance(shown, TyperOption)
    assert shown.help is not None
    text, _, default = shown.help.partition(" [dim]\\[default: ")
    *section, name = option.path
    records: dict[str, type[Record]] = {"gate": GateConfig, "engine_args": VllmArgs}
    record = records[section[0]] if section else Config
    key: Any = getattr(record(), name)
    field = record.model_fields[name]
    assert field.description
    assert text == " ".join(field.description.split())
    default = default.removesuffix("][/dim]")
    if key is None or key in ((), {}):
        assert default == option.flag.unset
    elif isinstance(key, bool):
        assert default.partition(";")[0] == ("on" if key else "off")
    elif "/" in str(key):
        assert "/".join(reversed(default.split(" in "))) == key
    else:
        assert default == str(key)


@pytest.mark.parametrize("command", ["run", "bench"])
def test_an_option_of_fixed_values_names_each_of_them_in_the_help(command: str) -> None:
    program = get_command(app)
    assert isinstance(program, TyperGroup)
    params = {param.name: param for param in program.commands[command].params}
    shown = {}
    for option in key_options():
        if literal := re.search(r"Literal\[(.*?)\]", str(option.field.annotation)):
            param = params[option.path[-1]]
            assert isinstance(param, TyperOption)
            shown[option.path[-1]] = f"{param.metavar} {param.help}"
            assert set(re.findall(r"\w+", literal[1])) <= set(
                re.findall(r"\w+", shown[option.path[-1]])
            )
    keys = {"prompt_format", "constrain", "engine", "bnb_compute_dtype", "against", "select"}
    assert set(shown) == keys


def test_every_option_shows_a_default_and_no_text_is_taken_for_markup() -> None:
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    own = [param for name in COMMANDS for param in command.commands[name].params]
    for param in own:
        if isinstance(param, TyperOption):
            assert param.help is not None
            text, default, rest = param.help.partition(" [dim]\\[default: ")
            assert default
            assert escape(text + rest.removesuffix("][/dim]")) == text + rest.removesuffix(
                "][/dim]"
            )


def test_an_option_that_is_not_given_leaves_the_file_its_say(good: Bench) -> None:
    mine = good.folder / "mine.yaml"
    mine.write_text("retries: 0\nrepair: true\nconstrain: none\ngate: {min_ratio: 0.5}\n", "utf-8")
    run = good.run("--config", str(mine), "--min-valid-rate", "0.8", "--no-repair")
    assert run.code == 0
    config = yaml.safe_load((run.folder / "config.yaml").read_text("utf-8"))
    assert (config["retries"], config["repair"]) == (0, False)
    assert (config["gate"]["min_ratio"], config["gate"]["min_valid_rate"]) == (0.5, 0.8)


def completions(*words: str) -> set[str]:
    """What a shell offers for the last of these words."""
    done = subprocess.run(
        [sys.executable, "-m", "vllm_eval"],
        env=os.environ
        | {"_VLLM_EVAL_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("vllm-eval", *words))}
        | {"COMP_CWORD": str(len(words))},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), {"run", "check", "score", "bench"}),
        (("--max-s",), {"--max-samples"}),
        (("--retries", "1", "--tens"), {"--tensor-parallel-size"}),
        (("--engine", "s"), {"scripted"}),
        (("bench", "--warm"), {"--warmup"}),
        (("check", "--config", "colab"), {"colab_t4"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    words: tuple[str, ...], offered: set[str]
) -> None:
    assert completions(*words) >= offered


def test_the_script_that_completes_is_shown_for_the_installed_program() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m vllm_eval --show-completion; true"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "complete -o default -F _vllm_eval_completion vllm-eval" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "-h"], ["--version"]])
def test_help_whose_reader_has_left_is_no_fail(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "vllm_eval", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


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
    assert done.stdout.splitlines()[-2].split() == ["PASS", "pupil"]


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
        (["reprot"], "Did you mean 'report'"),
        (["bench", "--fail-rate", "2"], "fail_rate"),
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
    assert run.err == f"error: {good.script}, line 2: needs a 'text' or an 'error'\n"


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


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_verdict_needs_no_open_streams(closed: str, more: list[str], good: Bench) -> None:
    command = shlex.join([sys.executable, "-m", "vllm_eval", *good.arguments(*more)])
    run = subprocess.run(["bash", "-c", f"{command} {closed}"], check=False, cwd=REPOSITORY)
    (folder,) = good.output_dir.iterdir()
    verdict = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["word"]
    assert (run.returncode, verdict) == (0, "PASS")


@pytest.mark.parametrize("reader", ["2>/dev/full", "2>&-", "2>&1 | true; exit ${PIPESTATUS[0]}"])
def test_bad_input_exits_with_2_even_if_nobody_can_be_told(reader: str, good: Bench) -> None:
    good.cases.unlink()
    command = shlex.join([sys.executable, "-m", "vllm_eval", *good.arguments()])
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    shell = ["bash", "-c", f"{command} {reader}"]
    run = subprocess.run(shell, check=False, cwd=REPOSITORY, env=buffered)
    assert run.returncode == 2


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


def test_the_page_on_the_command_line_names_every_command_and_option() -> None:
    page = (REPOSITORY / "docs/cli.md").read_text("utf-8")
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    for name in COMMANDS:
        assert f"| `{name}" in page
        for param in command.commands[name].params:
            if isinstance(param, TyperOption):
                assert all(f"`{option}`" in page for option in param.opts), param.name
