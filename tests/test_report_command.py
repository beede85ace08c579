"""`report RUN`: everything again, for whole and partial runs, and a history of several."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.report_runs import FAILING, WEAK, interrupt, make_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Bench

RENDERED = {"report.html", "report.md", "summary.md", "junit.xml", "plots/tiers.svg"}

HOLD_LOCK = """
import sys
from contextlib import closing
from pathlib import Path
from vllm_eval.store.journal import Journal
with closing(Journal(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_report_renders_everything_again_and_packs_it_last(bench: Bench, failing: Path) -> None:
    done = bench.call("report", str(failing))
    assert done.code == 0
    assert str(failing / "report.html") in done.out
    assert _files(failing) >= RENDERED
    (archive,) = failing.glob("eval_results_*.zip")
    packed = {name.partition("/")[2] for name in zipfile.ZipFile(archive).namelist()}
    needed = {"attempts.jsonl", "cases.jsonl", "comparison.json", "config.yaml", "manifest.json"}
    assert packed >= RENDERED | needed


def test_a_second_report_changes_no_result(bench: Bench, failing: Path) -> None:
    before = (failing / "comparison.json").read_bytes(), (failing / "attempts.jsonl").read_bytes()
    assert bench.call("report", str(failing)).code == 0
    after = (failing / "comparison.json").read_bytes(), (failing / "attempts.jsonl").read_bytes()
    assert after == before


@pytest.mark.parametrize("lines", [0, 1, 7])
def test_an_interrupted_run_is_reported_with_what_it_lacks(
    bench: Bench, failing: Path, tmp_path: Path, lines: int
) -> None:
    folder = interrupt(failing, lines).rename(tmp_path / "cut")
    done = bench.call("report", str(folder))
    assert done.code == 0, done.err
    pending = json.loads((folder / "comparison.json").read_text("utf-8"))["pending"]
    assert f"partial, {pending} answers are pending" in done.out
    assert _files(folder) >= RENDERED - ({"plots/tiers.svg"} if lines == 0 else set())
    assert "NOT FINISHED" in (folder / "report.md").read_text("utf-8")


def test_a_run_is_found_by_its_name(bench: Bench, failing: Path) -> None:
    done = bench.call("report", failing.name, "--output-dir", str(failing.parent))
    assert done.code == 0


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_no_run_is_bad_input(bench: Bench, name: str) -> None:
    done = bench.call("report", name)
    assert done.code == 2
    assert "no run at" in done.err


def test_a_damaged_run_is_bad_input_that_names_the_file(
    bench: Bench, failing: Path, tmp_path: Path
) -> None:
    folder = interrupt(failing, 3).rename(tmp_path / "cut")
    (folder / "cases.jsonl").unlink()
    done = bench.call("report", str(folder))
    assert done.code == 2
    assert "cases.jsonl" in done.err


def _copy(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place))


def _damage_journal(folder: Path) -> None:
    path = folder / "attempts.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"no": "attempt"}\n', *lines[2:]]))


def _shut(path: Path) -> None:
    """Not even root can write there."""
    path.unlink(missing_ok=True)
    path.mkdir()


def _drop_adapters(folder: Path) -> None:
    path = folder / "manifest.json"
    about = json.loads(path.read_text("utf-8"))
    del about["adapters"]
    path.write_text(json.dumps(about), encoding="utf-8")


@pytest.mark.parametrize("concluded", [False, True], ids=["pending", "whole"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_damage_journal, "attempts.jsonl, line 3: the journal is damaged"),
        (lambda folder: (folder / "attempts.jsonl").unlink(), "attempts.jsonl: is missing"),
        (lambda folder: _shut(folder / "report.html"), "report.html: Is a directory"),
    ],
    ids=["journal", "no journal", "no place for the report"],
)
def test_damage_is_bad_input_that_names_the_file(
    bench: Bench,
    failing: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    named: str,
    concluded: bool,
) -> None:
    folder = _copy(failing, tmp_path / "run")
    damage(folder)
    if not concluded:
        (folder / "comparison.json").unlink()
    done = bench.call("report", str(folder))
    assert done.code == 2
    assert named in done.err
    assert (folder / "attempts.jsonl").exists() == ("missing" not in named)


def test_a_damaged_manifest_is_bad_input_that_names_it(
    bench: Bench, failing: Path, tmp_path: Path
) -> None:
    folder = interrupt(failing, 3).rename(tmp_path / "cut")
    _drop_adapters(folder)
    done = bench.call("report", str(folder))
    assert done.code == 2
    assert "manifest.json: damaged" in done.err


def test_one_bad_run_does_not_keep_the_others_from_their_reports(
    bench: Bench, failing: Path, tmp_path: Path
) -> None:
    bad, other = (_copy(failing, tmp_path / name) for name in ("bad", "other"))
    _damage_journal(bad)
    for folder in (bad, other):
        (folder / "comparison.json").unlink()
    page = tmp_path / "history.html"
    names = [str(bad), "nowhere", str(other), str(failing)]
    done = bench.call("report", *names, "--output", str(page))
    assert done.code == 2
    assert str(bad) in done.err
    assert "nowhere" in done.err
    assert "other" not in done.err
    assert (other / "report.html").is_file()
    assert page.read_text("utf-8").count('<a href="') == 2 * 2


def test_a_run_given_twice_is_one(bench: Bench, failing: Path, tmp_path: Path) -> None:
    page = tmp_path / "history.html"
    twice = [failing.name, str(failing), f"{failing}/../{failing.name}"]
    command = ["report", *twice, "--output-dir", str(failing.parent), "--output", str(page)]
    assert bench.call(*command).code == 0
    assert page.read_text("utf-8").count('<a href="') == 2


def test_a_run_that_another_process_works_on_is_left_alone(
    bench: Bench, failing: Path, tmp_path: Path
) -> None:
    """The other process is a real one, and holds the lock as a run does."""
    folder = interrupt(failing, 5).rename(tmp_path / "live")
    command = [sys.executable, "-c", HOLD_LOCK, str(folder / "attempts.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        before = _files(folder)
        done = bench.call("report", str(folder))
        assert _files(folder) == before
        other.communicate()
    assert done.code == 2
    assert "another process is at work" in done.err
    assert bench.call("report", str(folder)).code == 0


def test_a_student_named_like_the_baseline_keeps_its_place(bench: Bench, tmp_path: Path) -> None:
    other = make_run(tmp_path, [{"text": WEAK}], 2, ("pupil", "baseline_v2"))
    page = tmp_path / "history.html"
    assert bench.call("report", str(other), "--output", str(page)).code == 0
    names = re.findall(r">(baseline|baseline_v2|pupil)</text>", page.read_text("utf-8"))
    assert names == ["baseline", "pupil", "baseline_v2"]


def test_several_runs_become_one_page_over_time(
    bench: Bench, failing: Path, tmp_path: Path
) -> None:
    """A line for each adapter and one for the baseline; every run is linked to its report."""
    other = make_run(tmp_path, [{"text": WEAK}], 8, ("pupil", "other"))
    page = tmp_path / "pages" / "over_time.html"
    done = bench.call("report", str(failing), str(other), "--output", str(page))
    assert done.code == 0, done.err
    html = page.read_text("utf-8")
    links = re.findall(r'<a href="([^"]*)"', html)
    assert len(links) == 2 + 3
    assert all((page.parent / link).resolve().is_file() for link in links)
    drawn = html[html.index("<svg") : html.index("</svg>")]
    assert [name for name in ("baseline", "pupil", "other") if f">{name}</text>" in drawn] == [
        "baseline",
        "pupil",
        "other",
    ]
    assert "0.909" in html
    assert "different data sets" not in html


def test_runs_over_different_cases_are_marked(bench: Bench, failing: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path, [{"text": WEAK}], 3)
    done = bench.call("report", str(failing), str(other), "--output-dir", str(tmp_path))
    assert done.code == 0
    assert "different data sets" in (tmp_path / "history.html").read_text("utf-8")


def test_a_page_that_cannot_be_written_is_bad_input(bench: Bench, failing: Path) -> None:
    place = failing / "report.md" / "page.html"
    bench.call("report", str(failing))
    done = bench.call("report", str(failing), "--output", str(place))
    assert done.code == 2
    assert "--output" in done.err
