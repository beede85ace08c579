"""`--resume auto`: a notebook's cell can be run again, and the newest run like it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench


@pytest.fixture
def auto(bench: Bench, answers: Answers) -> Bench:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    return bench


def cut_off(folder: Path) -> None:
    """Leave of a run what a killed process leaves."""
    journal = folder / "attempts.jsonl"
    first = journal.read_bytes().splitlines(keepends=True)[0]
    journal.write_bytes(first + b'{"torn')
    for made_at_the_end in ("comparison.json", "baseline_*", "student_*", "*.zip"):
        for path in folder.glob(made_at_the_end):
            path.unlink()


def test_a_first_run_is_a_new_one(auto: Bench) -> None:
    run = auto.run("--resume", "auto")
    assert run.code == 0
    assert "resume: no run like this one yet, so a new one" in run.out


def test_a_run_that_was_cut_off_goes_on(auto: Bench) -> None:
    folder = auto.run("--resume", "auto").folder
    begun = (folder / "attempts.jsonl").read_bytes().splitlines()[0]
    cut_off(folder)
    run = auto.run("--resume", "auto")
    assert (run.code, run.folder) == (0, folder)
    assert f"resume: {folder}" in run.out
    assert (folder / "attempts.jsonl").read_bytes().splitlines()[0] == begun
    assert len(run.journal) == 6


def test_a_finished_run_is_not_done_again(auto: Bench) -> None:
    folder = auto.run("--resume", "auto").folder
    before = (folder / "attempts.jsonl").read_bytes()
    run = auto.run("--resume", "auto")
    assert (run.code, run.folder) == (0, folder)
    assert (folder / "attempts.jsonl").read_bytes() == before


def test_another_run_is_never_taken_for_this_one(auto: Bench) -> None:
    cut_off(auto.run("--resume", "auto").folder)
    run = auto.run("--resume", "auto", "--seed", "7")
    assert run.code == 0
    assert len(list(auto.output_dir.iterdir())) == 2


def test_the_newest_of_several_goes_on(auto: Bench) -> None:
    auto.run("--tag", "old")
    (old,) = auto.output_dir.iterdir()
    auto.run("--tag", "new")
    (new,) = set(auto.output_dir.iterdir()) - {old}
    assert f"resume: {new}" in auto.run("--resume", "auto").out


def test_without_it_a_new_run_is_begun(auto: Bench) -> None:
    auto.run()
    auto.run()
    assert len(list(auto.output_dir.iterdir())) == 2
