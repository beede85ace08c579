"""The notebooks as their users run them: whole, top to bottom, and again after a lost session.

Parameters point at the demo model and the CPU engine, put in the way papermill does: a cell after
the one tagged `parameters`. Single cells run in a Python of their own. Not covered: installing,
mounting Drive.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

from scripts import notebook_cells
from scripts.notebooks import COLAB, KAGGLE, LIGHTNING, PLATFORMS, cells, generate
from vllm_eval.config.machine import Gpu, Machine
from vllm_eval.config.profiles import choose

if TYPE_CHECKING:
    from scripts.notebooks import Platform

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = [f"{platform.file}.ipynb" for platform in PLATFORMS]
DEMO_OPTIONS = ["--config", "demo", "--retries", "0"]
DEMO = {
    "ADAPTER": "package:demo/po_student_demo",
    "DATASET": "package:demo/cases.jsonl",
    "OPTIONS": DEMO_OPTIONS,
    "MAX_SAMPLES": 2,
    "INSTALL": False,
}
WAIT_S = 300


def read(file: Path | str) -> Any:
    return nbformat.read(FOLDER / file, as_version=4)  # type: ignore[no-untyped-call]


def test_the_files_are_those_that_the_script_makes() -> None:
    made = generate()
    assert sorted(made) == sorted(path.name for path in FOLDER.iterdir() if path.is_file())
    for name, content in made.items():
        assert (FOLDER / name).read_text("utf-8") == content, f"{name}: run scripts/notebooks"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_and_holds_no_output(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.file)
def test_every_parameter_is_used_and_every_cell_is_python(platform: Platform) -> None:
    code = [text for kind, text in cells(platform) if kind != "markdown"]
    shell = re.compile(r"^(\s*)[!%].*", re.MULTILINE)
    parameters = ast.parse(code[0])
    names = [node.targets[0].id for node in parameters.body if isinstance(node, ast.Assign)]  # type: ignore[attr-defined]
    assert len(names) == len(parameters.body)
    rest = "\n".join(code[1:])
    assert all(re.search(rf"\b{name}\b", rest) for name in names)
    for text in code[1:]:
        ast.parse(shell.sub(r"\1pass", text))


@pytest.mark.parametrize(
    ("platform", "gpus", "quantised"), [(COLAB, 1, True), (KAGGLE, 2, False), (LIGHTNING, 1, True)]
)
def test_a_notebook_says_whether_its_platforms_profile_quantises(
    platform: Platform, gpus: int, quantised: bool
) -> None:
    t4 = Gpu("Tesla T4", 15360, "7.5", "580.82.07")
    machine = Machine("Linux", "3.12.3", 2, 12_000, (t4,) * gpus, platform=platform.name)
    assert ("quantised to 4 bits" in choose(machine).reason) is quantised
    title = cells(platform)[0][1]
    assert ("the base is quantised to 4 bits" in title) is quantised
    assert ("nothing is quantised" in title) is not quantised


def test_the_instructions_hold_every_cell_of_the_lightning_notebook() -> None:
    page = (FOLDER / "LIGHTNING_AI_INSTRUCTIONS.md").read_text("utf-8")
    place = 0
    for kind, text in cells(LIGHTNING):
        block = text if kind == "markdown" else f"```python\n{text}\n```"
        assert block in page[place:]
        place = page.index(block, place)


EXECUTE = "import sys; from nbclient.cli import main; sys.exit(main(sys.argv[1:]))"


def session(platform: Platform, folder: Path, **more: object) -> tuple[Path, subprocess.Popen[str]]:
    """A notebook being run in `folder`, with parameters as papermill gives them."""
    notebook = read(f"{platform.file}.ipynb")
    given = DEMO | {"OUTPUT_DIR": str(folder / "results")} | more
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    place = tags.index(["parameters"]) + 1
    cell = nbformat.v4.new_code_cell("\n".join(lines))  # type: ignore[no-untyped-call]
    notebook.cells.insert(place, cell)
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
    command = [sys.executable, "-c", EXECUTE, str(path), "--inplace", f"--timeout={WAIT_S}"]
    return path, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def run(platform: Platform, folder: Path, **more: object) -> Any:
    """A whole session; the notebook with its outputs."""
    path, process = session(platform, folder, **more)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    return read(path)


def printed(notebook: Any) -> str:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "".join(out.get("text", "") for out in outputs)


def shown(notebook: Any) -> str:
    """The report, as the notebook shows it."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "".join(out["data"].get("text/html", "") for out in outputs if "data" in out)


@pytest.mark.engine
@pytest.mark.parametrize(
    "platform",
    [
        pytest.param(KAGGLE, id="kaggle"),
        pytest.param(LIGHTNING, id="lightning", marks=pytest.mark.deep),
    ],
)
def test_a_notebook_runs_from_top_to_bottom(platform: Platform, tmp_path: Path) -> None:
    notebook = run(platform, tmp_path)
    assert only_run(tmp_path / "results")["pending"] == 0
    assert "po_student_demo" in shown(notebook)
    assert re.search(r"(PASS|FAIL)  po_student_demo\n", printed(notebook))
    assert f"saved in {tmp_path / 'results'}" in printed(notebook)


@pytest.mark.engine
def test_a_lost_session_goes_on_from_the_drive(tmp_path: Path) -> None:
    """Everything of the first machine is gone but what was copied to the Drive by then.

    A copy is made with each progress line: as the first answer ends, or every ten seconds. However
    fast the machine, one of them finds the first of these short answers and not yet the last.
    """
    drive, results = tmp_path / "drive", tmp_path / "results"
    short = [*DEMO_OPTIONS, "--max-new-tokens", "64"]
    more = {"KEEP_IN": str(drive), "KEEP_EVERY": 0, "MAX_SAMPLES": 30, "OPTIONS": short}
    planned = 30 * 2  # base and student
    one_by_one = [*short, "--max-num-seqs", "1", "--no-report"]
    _, lost = session(COLAB, tmp_path, **(more | {"OPTIONS": one_by_one}))
    lose(lost, drive)
    shutil.rmtree(results)
    before = journal(drive)
    assert 0 < len(before) < planned
    assert not list(drive.glob("*/comparison.json"))

    run(COLAB, tmp_path, **more)
    assert only_run(results)["pending"] == 0
    assert len(journal(results)) == planned
    assert journal(results)[: len(before)] == before
    assert journal(drive) == journal(results)
    assert only_run(drive) == only_run(results)
    assert len(list(drive.glob("*/eval_results_*.zip"))) == 1


def only_run(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/comparison.json")
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def journal(folder: Path) -> list[str]:
    (path,) = folder.glob("*/attempts.jsonl")
    return [line for line in path.read_text("utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def lose(process: subprocess.Popen[str], drive: Path) -> None:
    """Once the first answer is on the Drive, kill the kernel; program and engine end with it."""
    end = time.monotonic() + WAIT_S
    while not any(path.stat().st_size for path in drive.glob("*/attempts.jsonl")):
        assert process.poll() is None, "the session ended before it could be lost"
        assert time.monotonic() < end, "no answer within the time"
        time.sleep(0.05)
    notebook = psutil.Process(process.pid)
    kernel = notebook.children()
    programs = [each for each in notebook.children(recursive=True) if each not in kernel]
    assert programs
    for each in [*kernel, notebook]:
        each.kill()
    process.communicate()
    _, alive = psutil.wait_procs(programs, timeout=60)
    assert not alive, "the program outlives its kernel"


def start_tool(folder: Path, program: str, arguments: str) -> subprocess.Popen[str]:
    """The cell that runs the tool, with a shell script in the place of Python."""
    script = folder / "program"
    script.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    script.chmod(0o755)
    given = f"PYTHON, WORK = {str(script)!r}, {str(folder)!r}"
    # A shell cannot trap what was ignored when it began, as Ctrl-C is behind `nohup` or `&`.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = "\n".join([heed, given, notebook_cells.TOOL, f"run_tool({arguments})"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], **pipes, text=True)  # type: ignore[call-overload,no-any-return]


def test_stopping_the_cell_shows_how_the_program_ends_in_order(tmp_path: Path) -> None:
    program = "trap 'echo saving; exit 130' INT; echo begun; while :; do sleep 0.05; done"
    with start_tool(tmp_path, program, "'run', good=(0, 1)") as cell:
        assert cell.stdout is not None
        assert cell.stdout.readline() == "begun\n"
        cell.send_signal(signal.SIGINT)
        said, error = cell.communicate(timeout=30)
    assert said == "saving\n"
    assert "RuntimeError: vllm_eval ended with exit code 130" in error


def test_a_check_that_crashes_with_the_exit_code_of_a_fail_stops_the_notebook(
    tmp_path: Path,
) -> None:
    with start_tool(tmp_path, "echo No module named vllm_eval; exit 1", "'check'") as cell:
        _, error = cell.communicate(timeout=30)
    assert "RuntimeError: vllm_eval ended with exit code 1" in error


def test_a_repository_is_fetched_anew_whenever_the_cell_runs(tmp_path: Path) -> None:
    origin, scratch = tmp_path / "project", tmp_path / "scratch"
    git(tmp_path, "init", "-q", "-b", "main", str(origin))
    commit(origin, "first")
    fetch(REPOSITORY=str(origin), SCRATCH=str(scratch))
    assert (scratch / "project" / "adapter").read_text("utf-8") == "first"
    commit(origin, "retrained")
    git(origin, "branch", "other")
    fetch(REPOSITORY=str(origin), SCRATCH=str(scratch), BRANCH="other")
    assert (scratch / "project" / "adapter").read_text("utf-8") == "retrained"


def fetch(**given: str) -> None:
    """Run parameters and the cell that fetches, in IPython: it calls git as notebooks do."""
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    code = "\n".join([cells(COLAB)[1][1], *lines, notebook_cells.FETCH])
    subprocess.run([sys.executable, "-m", "IPython", "-c", code], check=True)


def commit(folder: Path, content: str) -> None:
    (folder / "adapter").write_text(content, encoding="utf-8")
    git(folder, "add", "adapter")
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    git(folder, *who, "commit", "-q", "-m", content)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def kept(folder: Path, target: Path) -> None:
    """Run the cell that copies, and then `keep`."""
    given = {"Path": Path, "OUTPUT_DIR": str(folder), "KEEP_IN": str(target), "KEEP_EVERY": 0}
    exec(f"{notebook_cells.KEEP}\nkeep(now=True)", given)


def test_a_file_that_grew_is_copied_again_whatever_its_time_says(tmp_path: Path) -> None:
    results, drive = tmp_path / "results", tmp_path / "drive"
    results.mkdir()
    for content in ("one", "one, two"):
        (results / "attempts.jsonl").write_text(content, encoding="utf-8")
        os.utime(results / "attempts.jsonl", (1, 1))
        kept(results, drive)
        assert [path.name for path in drive.iterdir()] == ["attempts.jsonl"]
        assert (drive / "attempts.jsonl").read_text("utf-8") == content


def test_a_drive_that_takes_nothing_is_named_and_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, drive = tmp_path / "results", tmp_path / "drive"
    results.mkdir()
    (results / "attempts.jsonl").write_text("one", encoding="utf-8")
    drive.write_text("not a folder", encoding="utf-8")
    kept(results, drive)
    assert "NOT COPIED" in capsys.readouterr().out
