"""`--baseline RUN`: the baseline's answers of an earlier run are taken, and only where they may be."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval import evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run


@pytest.fixture
def earlier(bench: Bench, answers: Answers) -> Path:
    """A run of `pupil` over three cases; the baseline needs a second attempt at K2."""
    bench.dataset(3)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K2", "arm": "baseline", "attempt": 1, "text": answers.bad()},
        {"concept_id": "K3", "arm": "second", "text": answers.bad()},
    )
    assert bench.run("--tag", "earlier").code == 0
    (folder,) = bench.output_dir.iterdir()
    return folder


def again(bench: Bench, earlier: Path, *more: str) -> Run:
    """A run of another adapter with the baseline of the earlier one."""
    arguments = bench.arguments("--baseline", str(earlier), "--tag", "later", *more)
    arguments[arguments.index("pupil")] = "second"
    return bench.call(*arguments)


def later(bench: Bench) -> Path:
    (folder,) = bench.output_dir.glob("later*")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "attempts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def comparison(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_bytes())
    return found


def test_it_asks_only_the_student(bench: Bench, earlier: Path) -> None:
    run = again(bench, earlier)
    journal = lines(later(bench))
    assert "baseline: 3 of 3 answers of" in run.out
    assert {(line["arm"], line["reused"]) for line in journal} == {
        ("baseline", True),
        ("second", False),
    }
