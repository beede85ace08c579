"""What a reader sees of many students: a row each, and the best in full.

Covered: the terminal, HTML, Markdown and CI summary of four students and of eight. The order in
which many are asked is in `test_turns.py`, what they cost in `scripts/benchmark_adapters`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Answers, Bench, Run

    Compare = Callable[[int], Run]

CASES = 12


@pytest.fixture
def compare(bench: Bench, answers: Answers) -> Compare:
    """So many students; each fails in as many cases as its number says, and the last in all."""

    def make(count: int) -> Run:
        bench.dataset(CASES)
        fails = [
            {"arm": f"s{n}", "concept_id": f"K{case}", "text": "no"}
            for n in range(count)
            for case in range(1, 1 + (CASES if n == count - 1 else n))
        ]
        bench.answers({"text": answers.text()}, *fails)
        bench.output_dir = bench.folder / f"of{count}"
        given = [word for word in bench.arguments() if word not in ("--adapter", "pupil")]
        given.remove("--no-report")
        adapters = [word for n in range(count) for word in ("--adapter", f"s{n}")]
        return bench.call(*given, *adapters)

    return make


def rows(text: str) -> list[str]:
    """The lines that begin with a student's rank and name."""
    return [line for line in text.splitlines() if re.match(r"\W*\d+( tied)?\W+s\d\b", line)]


def test_four_students_are_each_shown_in_full(compare: Compare) -> None:
    run = compare(4)
    assert [f"Gate for s{n}" in run.out for n in range(4)] == [True] * 4
    markdown = (run.folder / "report.md").read_text("utf-8")
    assert "<details>" not in markdown
    assert 'class="student"' not in (run.folder / "report.html").read_text("utf-8")


def test_of_eight_the_terminal_has_a_row_each_and_the_best_in_full(compare: Compare) -> None:
    run = compare(8)
    assert re.findall(r"Gate for (\w+)", run.out) == ["s0"]
    assert [line.split()[:2] for line in rows(run.out.replace(" tied", ""))] == [
        [str(n + 1), f"s{n}"] for n in range(8)
    ]
    assert len(re.findall(r"^s\d: valid after", run.out, re.MULTILINE)) == 1
    last = rows(run.out)[-1]
    assert "FAIL" in last
    assert "valid rate of s7" in last


def test_eight_students_take_few_more_lines_than_four(compare: Compare) -> None:
    assert len(compare(8).out.splitlines()) < len(compare(4).out.splitlines())


def test_the_last_lines_name_the_verdict_on_the_run(compare: Compare) -> None:
    run = compare(8)
    assert run.code == 1
    (said,) = re.findall(r"^FAIL  8 students: (\d) PASS, (\d) FAIL", run.out, re.MULTILINE)
    words = [verdict["verdict"] for verdict in run.result("comparison")["verdicts"]]
    assert [int(count) for count in said] == [words.count("PASS"), words.count("FAIL")]
    assert re.search(r"^PASS  s0$", run.out, re.MULTILINE)


def test_graded_again_each_has_its_word_and_the_best_is_in_full(
    compare: Compare, bench: Bench
) -> None:
    scored = bench.call("score", str(compare(8).folder))
    assert re.findall(r"Gate for (\w+)", scored.out) == ["s0"]
    words = re.findall(r"^(?:PASS|FAIL|UNDECIDED)  (s\d)\b", scored.out, re.MULTILINE)
    assert sorted(words) == [f"s{n}" for n in range(8)]


def test_the_page_has_a_row_for_each_and_folds_all_but_the_best(compare: Compare) -> None:
    page = (compare(8).folder / "report.html").read_text("utf-8")
    assert [f'href="#student-{n}"' in page for n in range(1, 9)] == [True] * 8
    assert len(re.findall(r'id="student-\d"', page)) == 8
    assert page.count('<details class="student">') == 7
    best, first = page.index('id="student-1"'), page.index('<details class="student">')
    assert best < first


@pytest.mark.parametrize("name", ["report.md", "summary.md"])
def test_markdown_has_a_row_for_each_and_folds_all_but_the_best(
    compare: Compare, name: str
) -> None:
    text = (compare(8).folder / name).read_text("utf-8")
    assert len(rows(text.split("<details>")[0])) == 8
    assert text.count("<details>") == text.count("</details>") >= 2
    unfolded = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert [f"of s{n} with an answer" in unfolded for n in range(8)] == [True] + [False] * 7
