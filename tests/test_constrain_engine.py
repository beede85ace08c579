"""Constrained arms on the real engine: one start, base and student, warm enough to go astray."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.depth import count
from vllm_eval import cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine
CASES, SAMPLES = count(10, deep=20), 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which all is constrained, at temperature 1 and without retries."""
    output: Path = tmp_path_factory.mktemp("constrained")
    with pytest.raises(SystemExit) as leave:
        cli.main(
            [
                *("--config", "demo", "--output-dir", str(output), "--no-report"),
                *("-c", "constrain=only", "--temperature", "1.0"),
                *("--retries", "0", "--max-samples", str(CASES)),
                *("--samples-per-case", str(SAMPLES)),
            ]
        )
    assert leave.value.code in (0, 1)
    (folder,) = output.iterdir()
    return folder


def attempts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("arm", ["baseline", "po_student_demo"])
def test_answers_that_end_before_the_limit_keep_the_contract(run: Path, arm: str) -> None:
    """At least 99 of 100, without a retry; free ones of the base fail every other time.

    So warm, so small a model sometimes loses its way and writes to the limit: that is not counted.
    """
    made = [attempt for attempt in attempts(run) if attempt["arm"] == arm]
    ended = [attempt for attempt in made if not attempt["truncated"]]

    valid = sum(attempt["status"] == "success" for attempt in ended)

    assert len(made) == CASES * SAMPLES
    assert len(ended) >= 0.5 * len(made)
    assert valid >= 0.99 * len(ended)


def test_the_run_says_that_all_its_answers_are_constrained(run: Path) -> None:
    comparison = json.loads((run / "comparison.json").read_bytes())

    assert comparison["constrained"]["mode"] == "only"
