"""Many cases: memory, a sample for readers, the table for everything else."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from pyarrow import parquet

from tests.conftest import Answers
from tests.report_runs import FAILING, make_run
from vllm_eval.conclude.case_rows import (
    MOST_FAILED,
    MOST_LOSSES,
    MOST_ROWS,
    CaseCell,
    CaseRow,
    sample_rows,
)
from vllm_eval.conclude.conclude import conclude, reopen
from vllm_eval.report.stored_run import load_run, read_details
from vllm_eval.store.journal import Journal, read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Bench
    from vllm_eval.records import Status


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    """Every final attempt, in an order that does not depend on when it ended."""
    keys = ("arm", "concept_id", "status", "score", "attempt", "seed")
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    return sorted(tuple(line[key] for key in keys) for line in lines if line["final"])


@pytest.fixture
def retried(bench: Bench, answers: Answers) -> Path:
    """A run of twenty cases and two arms, each answer valid at its third attempt."""
    bench.dataset(20)
    bench.answers({"text": answers.bad()}, {"attempt": 3, "text": answers.text()})
    return bench.run().folder


def test_the_report_reads_every_attempt_of_every_case(retried: Path) -> None:
    details = list(read_details(load_run(retried)))
    numbers = [[a.attempt for a in made] for case in details for made in case.attempts.values()]
    assert numbers == [[1, 2, 3]] * 40


def test_the_table_has_every_outcome_once(bench: Bench, retried: Path) -> None:
    done = bench.call("export", str(retried), str(bench.folder / "out.parquet"))
    assert (done.code, "40 rows" in done.out) == (0, True)
    rows = parquet.read_table(bench.folder / "out.parquet").to_pylist()
    keys = ("arm", "concept_id", "status", "score", "attempt", "seed")
    assert sorted(tuple(row[key] for key in keys) for row in rows) == outcomes(retried)
    assert all(sum(json.loads(row["parts"]).values()) == row["score"] * 120 for row in rows)


def test_the_table_has_every_attempt_where_asked(bench: Bench, retried: Path) -> None:
    bench.call("export", str(retried), str(bench.folder / "out.parquet"), "--attempts")
    rows = parquet.read_table(bench.folder / "out.parquet", columns=["final"]).to_pylist()
    assert [row["final"] for row in rows].count(False) == 80


def test_only_a_run_can_be_exported(bench: Bench) -> None:
    done = bench.call("export", str(bench.folder), str(bench.folder / "out.parquet"))
    assert done.code == 2
    assert not (bench.folder / "out.parquet").exists()


def made(count: int, failed: int = 0, lost: int = 0) -> list[CaseRow]:
    """Rows of a student: the first ones failed, the next ones lose ever more."""

    def row(number: int) -> CaseRow:
        status: Status = "format_error" if number < failed else "success"
        loss = (failed - number - 1) / count if failed <= number < failed + lost else 0.0
        cell = CaseCell(status, None, 0.5, 1, 1, 1, 1, None if number < failed else loss)
        return CaseRow(f"K{number:06}", None, {"pupil": cell})

    return [row(number) for number in range(count)]


def test_up_to_the_limit_every_row_is_kept() -> None:
    rows = made(MOST_ROWS)
    assert sample_rows(rows) == rows


def test_a_sample_is_in_order_and_as_large_as_it_may_be() -> None:
    kept = sample_rows(made(10 * MOST_ROWS, failed=50))
    assert len(kept) == MOST_ROWS
    assert kept == sorted(kept, key=lambda row: row.concept_id)


def test_a_sample_holds_all_failures_that_have_room() -> None:
    kept = sample_rows(made(10 * MOST_ROWS, failed=MOST_FAILED))
    assert [row.concept_id for row in kept[:MOST_FAILED]] == [
        f"K{n:06}" for n in range(MOST_FAILED)
    ]


def test_of_too_many_failures_a_sample_holds_some_of_every_stretch() -> None:
    kept = sample_rows(made(10 * MOST_ROWS, failed=4 * MOST_FAILED))
    failed = [int(row.concept_id[1:]) for row in kept if row.arms["pupil"].status != "success"]
    assert failed == list(range(0, 4 * MOST_FAILED, 4))


def test_a_sample_holds_the_largest_losses() -> None:
    kept = {row.concept_id for row in sample_rows(made(10 * MOST_ROWS, lost=3 * MOST_LOSSES))}
    assert kept >= {f"K{n:06}" for n in range(2 * MOST_LOSSES, 3 * MOST_LOSSES)}


def test_a_sample_holds_the_examples_of_failures() -> None:
    """Those that spreading would pass over, repaired cases among them."""
    rows = made(10 * MOST_ROWS, failed=4 * MOST_FAILED)
    examples = {"K000001", "K000002", f"K{9 * MOST_ROWS + 1:06}"}
    assert not {row.concept_id for row in sample_rows(rows)} & examples
    kept = sample_rows(rows, examples)
    assert len(kept) <= MOST_ROWS
    assert {row.concept_id for row in kept} >= examples
    assert sum(row.arms["pupil"].status != "success" for row in kept) == MOST_FAILED - 1


def test_the_rest_of_a_sample_is_spread_evenly() -> None:
    places = [int(row.concept_id[1:]) for row in sample_rows(made(5 * MOST_ROWS))]
    assert places == list(range(0, 5 * MOST_ROWS, 5))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A concluded run of more cases than a reader is shown."""
    folder = tmp_path_factory.mktemp("many")
    yield make_run(folder, [*FAILING[2:], {"text": "no block"}], MOST_ROWS + 100)
    shutil.rmtree(folder)


def test_a_large_comparison_says_that_its_cases_are_a_sample(many: Path) -> None:
    comparison = json.loads((many / "comparison.json").read_text())
    assert comparison["cases_total"] == comparison["arms"]["pupil"]["cases"] == MOST_ROWS + 100
    assert comparison["cases_sampled"] is True
    assert len(comparison["cases"]) == MOST_FAILED


def test_the_reports_of_a_large_run_say_so_and_show_the_sample(bench: Bench, many: Path) -> None:
    assert bench.call("report", str(many)).code == 0
    stated = f"{MOST_FAILED:,} of {MOST_ROWS + 100:,} cases"
    assert f"a sample of {stated}" in (many / "report.md").read_text()
    page = (many / "report.html").read_text()
    assert stated in page
    tests = ET.parse(many / "junit.xml").findall(".//testsuite[@name='cases of pupil']/testcase")
    assert len(tests) == MOST_FAILED


def peak_bytes(folder: Path, count: int) -> int:
    """Most memory Python takes to conclude a run of so many cases, each of them answered alike."""
    _, first = next(read_journal(folder / "attempts.jsonl"))
    row = json.loads((folder / "cases.jsonl").read_text().splitlines()[0])
    names = [f"N{number}" for number in range(count)]
    texts = (json.dumps(row | {"concept_id": name}) for name in names)
    (folder / "cases.jsonl").write_text("\n".join(texts) + "\n")
    (folder / "attempts.jsonl").unlink()
    with closing(Journal(folder / "attempts.jsonl")) as journal:
        for arm in ("baseline", "pupil"):
            journal.append([replace(first, arm=arm, concept_id=name) for name in names])
    tracemalloc.start()
    try:
        assert conclude(reopen(folder)).comparison.arms["pupil"].cases == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_case_more_takes_names_and_numbers_and_no_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [{"text": Answers().text() + "x" * 5_000}], 1)
    conclude(reopen(folder))  # imports its libraries, once
    few, many = peak_bytes(folder, 200), peak_bytes(folder, 1_200)
    assert 100 < (many - few) / 1_000 < 1_500
