"""`score` on many answers: over several processes, in order, with bounded memory.

100,000 answers are measured by `scripts/benchmark_scoring 1 100000`; here it is some thousands.
"""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import PRODUCT_OWNER
from vllm_eval.errors import DatasetError
from vllm_eval.inputs.cases import index_cases
from vllm_eval.rescore.answers import POOL_FROM, grade_all
from vllm_eval.rescore.stored import open_file, read_answers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Answers, Bench
    from vllm_eval.inputs.cases import Place
    from vllm_eval.rescore.answers import Graded, StoredAnswer

COUNT = 700


@pytest.fixture
def many(bench: Bench, answers: Answers) -> Path:
    """Every seventh of the answers breaks the contract."""
    bench.dataset(COUNT)
    rows = (
        {"concept_id": f"K{n}", "raw_response": answers.bad() if n % 7 == 0 else answers.text()}
        for n in range(1, COUNT + 1)
    )
    return bench.write(bench.folder / "student.jsonl", list(rows))


def pairs(bench: Bench, path: Path) -> Iterator[tuple[StoredAnswer, Place]]:
    places = index_cases(bench.cases, PRODUCT_OWNER).places
    for answer in read_answers(open_file(path)):
        yield answer, places[answer.concept_id]


def graded(bench: Bench, path: Path, total: int) -> list[tuple[str, Graded]]:
    every = grade_all("product_owner", pairs(bench, path), total, workers=2)
    return [(answer.concept_id, found) for answer, found in every]


def test_several_processes_grade_as_one_does_and_in_order(bench: Bench, many: Path) -> None:
    alone = graded(bench, many, total=1)
    assert graded(bench, many, total=COUNT) == alone
    assert [name for name, _ in alone] == [f"K{n}" for n in range(1, COUNT + 1)]
    assert sum(found.problem is not None for _, found in alone) == COUNT // 7


def test_a_case_that_cannot_be_used_ends_all_processes(bench: Bench, many: Path) -> None:
    lines = bench.cases.read_text("utf-8").splitlines()
    lines[500] = json.dumps({"concept_id": "K501", "concept": "x", "requirements_yaml": "a: b: c"})
    bench.write(bench.cases, lines)
    with pytest.raises(DatasetError, match="line 501"):
        graded(bench, many, total=COUNT)


def test_many_answers_are_scored_from_the_command_line(bench: Bench, many: Path) -> None:
    assert COUNT > POOL_FROM
    scored = bench.call("score", str(many), "--dataset-path", str(bench.cases), "--json")
    rows: list[dict[str, Any]] = [json.loads(line) for line in scored.out.splitlines()]
    assert [row["valid"] for row in rows] == [n % 7 != 0 for n in range(1, COUNT + 1)]


@pytest.mark.parametrize("name", ["attempts.jsonl", "student.json"])
def test_memory_does_not_grow_with_the_text_of_answers_one_a_line(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    rows = [{"concept_id": f"K{n}", "raw_response": "x" * 100_000} for n in range(500)]
    path = bench.write(tmp_path / name, rows)
    tracemalloc.start()
    stored = open_file(path)
    assert sum(len(answer.text or "") for answer in read_answers(stored)) == 50_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000


class Tty(io.StringIO):
    """A terminal that keeps what it was sent."""

    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(
    bench: Bench, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", tty := Tty())
    bench.call("score", str(many), "--dataset-path", str(bench.cases))
    assert f"{COUNT}/{COUNT}" in tty.getvalue()
    assert "\x1b[?25h" in tty.getvalue()  # the cursor is back


def test_progress_is_a_line_on_standard_error(bench: Bench, many: Path) -> None:
    scored = bench.call("score", str(many), "--dataset-path", str(bench.cases))
    assert scored.err.splitlines()[-1] == f"  {COUNT}/{COUNT} answers graded"
