"""A run that was cut off goes on where it stood: nothing lost, nothing twice, no other run joined."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run

KEYS = ("arm", "concept_id", "attempt", "final", "status", "reason", "score", "seed")


@dataclass(frozen=True)
class Cut:
    """A finished run, and the means to make it one that was cut off."""

    bench: Bench
    folder: Path
    whole: bytes

    @property
    def journal(self) -> Path:
        return self.folder / "attempts.jsonl"

    def at(self, lines: int, torn: bytes = b"") -> Cut:
        """Leave so many whole lines of the journal, then `torn`, and no result file."""
        kept = self.whole.splitlines(keepends=True)[:lines]
        self.journal.write_bytes(b"".join(kept) + torn)
        for path in [*self.folder.glob("*_*.json"), *self.folder.glob("*.zip")]:
            path.unlink()
        (self.folder / "comparison.json").unlink()
        return self

    def resume(self, *more: str) -> Run:
        return self.bench.call("--resume", str(self.folder), *more)


def outcomes(journal: bytes) -> list[tuple[str, ...]]:
    rows = (json.loads(line) for line in journal.splitlines())
    return sorted(tuple(str(row[key]) for key in KEYS) for row in rows)


@pytest.fixture
def cut(bench: Bench, answers: Answers) -> Cut:
    """Five cases; the student needs three attempts on K2 and never keeps K3."""
    bench.dataset(5)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K2", "arm": "pupil", "text": answers.bad()},
        {"concept_id": "K2", "arm": "pupil", "attempt": 3, "text": answers.text()},
        {"concept_id": "K3", "arm": "pupil", "text": answers.bad()},
    )
    folder = bench.run().folder
    return Cut(bench, folder, (folder / "attempts.jsonl").read_bytes())


@pytest.mark.parametrize("lines", [0, 1, 6, 10, 11, 12, 13, 14])
def test_a_resumed_run_ends_with_the_outcomes_of_an_uninterrupted_one(cut: Cut, lines: int) -> None:
    run = cut.at(lines).resume()
    assert run.code == 1  # the gate's word on this student, as without the interruption
    assert outcomes(cut.journal.read_bytes()) == outcomes(cut.whole)


def test_what_had_finished_is_not_asked_again(cut: Cut) -> None:
    before = cut.at(7).journal.read_bytes()
    cut.resume()
    assert cut.journal.read_bytes().startswith(before)


@pytest.mark.parametrize("torn", [b'{"arm":"pupil","conc', b"\0" * 50, b"{", b"\xff\xfe"])
def test_a_torn_last_line_is_owed_again(cut: Cut, torn: bytes) -> None:
    cut.at(7, torn).resume()
    assert outcomes(cut.journal.read_bytes()) == outcomes(cut.whole)


def test_the_result_files_of_a_resumed_run_are_complete(cut: Cut) -> None:
    run = cut.at(4).resume()
    assert run.result("student")["total_samples"] == 5
    assert run.result("comparison")["partial"] is False


def test_a_run_may_be_resumed_by_its_name(cut: Cut) -> None:
    cut.at(3)
    run = cut.bench.call("--resume", cut.folder.name, "--output-dir", str(cut.bench.output_dir))
    assert run.code == 1


def test_an_unfinished_run_like_this_one_is_offered_by_name(cut: Cut) -> None:
    cut.at(3)
    assert f"--resume {cut.folder}" in cut.bench.run().out


def test_a_finished_run_is_not_offered(cut: Cut) -> None:
    assert "--resume" not in cut.bench.run().out


def test_a_finished_run_that_is_resumed_stays_as_it_is(cut: Cut) -> None:
    assert cut.resume().code == 1
    assert cut.journal.read_bytes() == cut.whole


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seed", "7"], "seed"),
        (["--retries", "5"], "retries"),
        (["--temperature", "0.9"], "temperature"),
        (["--adapter", "other"], "adapters"),
        (["--max-samples", "2"], "max_samples"),
    ],
)
def test_another_configuration_is_refused_by_name(
    cut: Cut, arguments: list[str], named: str
) -> None:
    run = cut.at(3).resume(*arguments)
    assert run.code == 2
    assert f"{named} was " in run.err


@pytest.mark.parametrize(
    ("changed", "named"), [("cases.jsonl", "dataset"), ("script.jsonl", "script")]
)
def test_another_file_under_the_same_name_is_refused(cut: Cut, changed: str, named: str) -> None:
    path = cut.bench.folder / changed
    path.write_bytes(path.read_bytes() + b"\n")
    run = cut.at(3).resume()
    assert run.code == 2
    assert f"{named} was " in run.err


def test_another_threshold_of_the_gate_is_no_other_run(cut: Cut) -> None:
    gate = ["gate.min_valid_rate=0.5", "gate.min_ratio=0"]
    assert cut.at(3).resume(*(word for rule in gate for word in ("-c", rule))).code == 0


def test_a_journal_damaged_before_its_end_is_refused(cut: Cut) -> None:
    cut.at(7)
    lines = cut.journal.read_bytes().splitlines(keepends=True)
    cut.journal.write_bytes(b"".join([*lines[:3], b"damaged\n", *lines[3:]]))
    before = cut.journal.read_bytes()
    run = cut.resume()
    assert run.code == 3
    assert "damaged" in run.err
    assert cut.journal.read_bytes() == before


def test_a_line_that_is_no_attempt_is_named(cut: Cut) -> None:
    cut.at(2, b'{"arm": "pupil"}\n')
    run = cut.resume()
    assert run.code == 3
    assert f"{cut.journal}, line 3" in run.err


def test_an_outcome_that_is_there_twice_is_no_basis_for_a_verdict(cut: Cut) -> None:
    first = cut.whole.splitlines(keepends=True)[0]
    run = cut.at(99, first).resume()
    assert run.code == 3
    assert "twice" in run.err


def test_a_second_process_on_one_run_is_refused(cut: Cut) -> None:
    cut.at(3)
    with cut.journal.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run = cut.resume()
    assert run.code == 2
    assert "another process" in run.err


def test_a_run_that_is_not_there_is_refused_by_name(cut: Cut) -> None:
    run = cut.bench.call("--resume", "gone")
    assert run.code == 2
    assert "no run at gone" in run.err


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}']
)
def test_a_manifest_that_cannot_be_used_is_refused(cut: Cut, content: str) -> None:
    (cut.at(3).folder / "manifest.json").write_text(content, encoding="utf-8")
    run = cut.resume()
    assert run.code == 2
    assert str(cut.folder) in run.err


def test_an_engine_that_dies_once_is_started_again_with_what_is_owed(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(5)
    dying = {"concept_id": "K3", "arm": "pupil", "text": answers.text(), "deaths": 1}
    bench.answers({"text": answers.text()}, dying | {"seconds": 0.1})
    run = bench.run()
    assert run.code == 0
    assert len(run.journal) == 10


def test_an_engine_that_always_dies_ends_the_run_with_its_journal(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(5)
    dying = {"concept_id": "K3", "arm": "pupil", "text": answers.text(), "deaths": 99}
    bench.answers({"text": answers.text()}, dying | {"seconds": 0.1})
    run = bench.run("-c", "max_engine_restarts=1")
    assert run.code == 3
    assert run.out.count("starting the scripted engine") == 2
    assert len(run.journal) == 9


def test_a_run_whose_engine_died_can_be_resumed(bench: Bench, answers: Answers) -> None:
    bench.dataset(5)
    dying = {"concept_id": "K3", "text": answers.text(), "seconds": 0.1, "deaths": 1}
    bench.answers({"text": answers.text()}, dying)
    died = bench.run("-c", "max_engine_restarts=0")
    again = bench.call("--resume", str(died.folder), "-c", "max_engine_restarts=1")
    assert (died.code, again.code) == (3, 0)
