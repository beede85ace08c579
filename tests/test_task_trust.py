"""Whose code is run: a task's module where the user names it, never on a stored run's word.

The modules here would leave a file behind.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.task_folders import GOOD, write_task

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench

TRACE = "from pathlib import Path\nPath({path!r}).write_text('it ran')\n"


@pytest.fixture
def stored(bench: Bench) -> tuple[Path, Path]:
    """A finished run of a task with a module, and where that module leaves a trace from now on."""
    folder, trace = write_task(bench.folder, module=""), bench.folder / "trace"
    bench.write(bench.cases, [{"id": "H1", "topic": "rain"}])
    bench.answers({"text": GOOD})
    assert bench.run("--task", str(folder)).code == 0
    write_task(bench.folder, module=TRACE.format(path=str(trace)))
    (run,) = bench.output_dir.iterdir()
    return run, trace


@pytest.mark.parametrize("command", ["report", "diagnose", "score"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_stored_run_names_is_never_run(
    bench: Bench, stored: tuple[Path, Path], command: str, whole: bool
) -> None:
    run, trace = stored
    if not whole:
        (run / "comparison.json").unlink()
    done = bench.call(command, str(run))
    assert not trace.exists()
    assert done.code == (2 if command == "score" else 0), done.err
    assert command != "score" or "give --task" in done.err


def test_resume_runs_a_module_only_where_the_user_names_it(
    bench: Bench, stored: tuple[Path, Path]
) -> None:
    run, trace = stored
    done = bench.call("--resume", str(run))
    assert (done.code, trace.exists()) == (2, False)
    assert "give --task" in done.err
    task = str(write_task(bench.folder, module=""))  # as it was
    assert bench.call("--resume", str(run), "--task", task, "--no-report").code == 0


def test_a_run_is_not_resumed_with_a_changed_task(bench: Bench, stored: tuple[Path, Path]) -> None:
    run, _ = stored
    task = json.loads((run / "manifest.json").read_text("utf-8"))["identity"]["task"]
    done = bench.call("--resume", str(run), "--task", str(bench.folder / "haiku"))
    assert done.code == 2
    assert f"task was '{task}'" in done.err


def test_answers_are_scored_anew_with_the_task_that_is_named(
    bench: Bench, stored: tuple[Path, Path]
) -> None:
    metric = {"shape": {"points": 1, "measure": "some"}}
    for points in (0.5, 0.25):  # a module that is changed between two calls of one process
        module = f"def some(blocks, case): return {points}"
        folder = write_task(bench.folder, module=module, metric=metric)
        done = bench.call("score", str(stored[0]), "--task", str(folder), "--json")
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert {row["score"] for row in rows} == {points}
