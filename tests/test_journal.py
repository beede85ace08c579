"""The journal and the manifest under damage: a full disk, foreign lines, files of no use."""

from __future__ import annotations

import json
import resource
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from vllm_eval.store.journal import Journal, read_journal

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run


@pytest.fixture
def whole(bench: Bench, answers: Answers) -> Run:
    """A finished run of two cases, cut to two lines of its journal."""
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    run = bench.run()
    (run.folder / "comparison.json").unlink()
    journal = run.folder / "attempts.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    return run


def test_a_full_disk_ends_the_run_with_a_journal_of_whole_lines(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(20)
    bench.answers(
        {"text": answers.text() + "x" * 5_000},
        {"arm": "pupil", "text": answers.text() + "x" * 5_000, "seconds": 0.1},
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # beyond it a write is refused
    try:
        full = bench.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.code == 3
    assert "attempts.jsonl: cannot write" in full.err
    assert {line["arm"] for line in full.journal} == {"baseline"}
    assert bench.call("--resume", str(full.folder)).code == 0


def test_what_json_cannot_hold_is_replaced(whole: Run) -> None:
    path = whole.folder / "attempts.jsonl"
    (_, attempt), *_ = read_journal(path)
    with closing(Journal(path)) as journal:
        journal.append([replace(attempt, raw_response="a\ud800b")])
    *_, (_, last) = read_journal(path)
    assert last.raw_response == "a?b"


def test_what_no_engine_has_seen_can_be_dropped_from_the_journal(whole: Run) -> None:
    path = whole.folder / "attempts.jsonl"
    (_, attempt), *_ = read_journal(path)
    with closing(Journal(path)) as journal:
        for sample in range(1, 4):
            journal.append([replace(attempt, sample=sample)])
        assert journal.drop(lambda attempt: attempt.sample in (1, 3)) == 2
        assert journal.drop(lambda attempt: attempt.sample in (1, 3)) == 0
        journal.append([replace(attempt, sample=4)])
    assert [attempt.sample for _, attempt in read_journal(path)] == [0, 0, 2, 4]


def test_nothing_is_written_for_no_attempts(whole: Run) -> None:
    path = whole.folder / "attempts.jsonl"
    before = path.read_bytes()
    with closing(Journal(path)) as journal:
        journal.append([])
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ['{"arm": "pupil"}', '{"arm"', "{}"])
def test_a_line_that_is_no_attempt_is_named(bench: Bench, whole: Run, line: str) -> None:
    path = whole.folder / "attempts.jsonl"
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 3
    assert f"{path}, line 3" in run.err


def test_a_journal_in_parts_is_refused_and_told_how_to_join_them(bench: Bench, whole: Run) -> None:
    (whole.folder / "attempts.0001.jsonl").write_bytes(b"")
    for command in (("--resume",), ("report",), ("score",)):
        run = bench.call(*command, str(whole.folder))
        assert run.code == 2
        assert "attempts.jsonl attempts.0001.jsonl" in " ".join(run.err.split())
        assert "append them" in run.err


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", "null", '{"schema_version": 99}', '{"schema_version": 1}']
)
def test_a_manifest_that_cannot_be_used_is_refused(bench: Bench, whole: Run, content: str) -> None:
    (whole.folder / "manifest.json").write_text(content, encoding="utf-8")
    run = bench.call("--resume", str(whole.folder))
    assert run.code == 2
    assert str(whole.folder) in run.err


def test_a_folder_of_strange_files_is_no_unfinished_run(
    bench: Bench, whole: Run, answers: Answers
) -> None:
    (whole.folder / "manifest.json").write_text("[1]", encoding="utf-8")
    run = bench.run()
    assert run.code == 0
    assert "--resume" not in run.out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("score", 5), ("score", "hi"), ("status", "weird"), ("final", "no"), ("attempt", -5)),
        *(("output_tokens", "abc"), ("arm", ["x"]), ("tier", 5), ("raw_response", None)),
    ],
)
def test_a_line_no_evaluation_could_have_written_is_named(
    bench: Bench, answers: Answers, key: str, value: object
) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run()
    journal = run.folder / "attempts.jsonl"
    first, second = journal.read_text("utf-8").splitlines()
    journal.write_text(f"{first}\n{json.dumps(json.loads(second) | {key: value})}\n", "utf-8")
    again = bench.call("--resume", str(run.folder))
    assert again.code == 3
    assert f"attempts.jsonl, line 2: the journal is damaged here: {key}" in again.err


def test_nothing_is_written_through_a_link_in_a_run_folder(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    victim = bench.folder / "victim.txt"
    victim.write_text("mine")
    (folder / "comparison.json.part").symlink_to(victim)
    assert bench.call("--resume", str(folder)).code == 0
    assert victim.read_text() == "mine"


def test_a_journal_that_is_a_link_is_refused(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    victim = bench.folder / "victim.txt"
    (folder / "attempts.jsonl").rename(victim)
    (folder / "attempts.jsonl").symlink_to(victim)
    run = bench.call("--resume", str(folder))
    assert run.code == 3
    assert "cannot open the journal" in run.err
