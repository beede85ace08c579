"""The notebooks as their users run them: whole, top to bottom, and again after a lost session.

Parameters point at the demo model and the CPU engine, put in the way papermill does: a cell after
the one tagged `parameters`. Not covered: installing, cloning, mounting Drive.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil
import pytest

from scripts.notebooks import COLAB, KAGGLE, LIGHTNING, PLATFORMS, cells, generate
from vllm_eval.machine import Gpu, Machine
from vllm_eval.platforms import choose

if TYPE_CHECKING:
    from scripts.notebooks import Platform

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = [f"{platform.file}.ipynb" for platform in PLATFORMS]
DEMO = {
    "ADAPTER": "package:demo/po_student_demo",
    "DATASET": "package:demo/cases.jsonl",
    "OPTIONS": ["--config", "demo", "--retries", "0"],
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
@pytest.mark.parametrize("platform", [KAGGLE, LIGHTNING], ids=lambda platform: platform.file)
def test_a_notebook_runs_from_top_to_bottom(platform: Platform, tmp_path: Path) -> None:
    notebook = run(platform, tmp_path)
    assert only_run(tmp_path / "results")["owed"] == 0
    assert "po_student_demo" in shown(notebook)
    assert re.search(r"(PASS|FAIL)  po_student_demo\n", printed(notebook))
    assert f"saved in {tmp_path / 'results'}" in printed(notebook)


@pytest.mark.engine
def test_a_lost_session_goes_on_from_the_drive(tmp_path: Path) -> None:
    """Everything of the first machine is gone but what was copied to the Drive by then."""
    drive, results = tmp_path / "drive", tmp_path / "results"
    more = {"KEEP_IN": str(drive), "KEEP_EVERY": 0, "MAX_SAMPLES": 3}
    _, lost = session(COLAB, tmp_path, **more)
    lose(lost, drive)
    shutil.rmtree(results)
    before = journal(drive)
    assert before

    run(COLAB, tmp_path, **more)
    assert only_run(results)["owed"] == 0
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
    """Once the first answers are on the Drive, kill the session: kernel, program and engine."""
    end = time.monotonic() + WAIT_S
    while not any(path.stat().st_size for path in drive.glob("*/attempts.jsonl")):
        assert process.poll() is None, "the session ended before it could be lost"
        assert time.monotonic() < end, "no answer within the time"
        time.sleep(0.05)
    whole = psutil.Process(process.pid)
    for each in [*whole.children(recursive=True), whole]:
        each.kill()
    process.communicate()
