"""The whole job through the real engine, as a user starts it.

Covered: the demo's verdict and its promises, real records, chat format, log, foreign prompts.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.depth import count

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench, Run

pytestmark = pytest.mark.engine


def load(output_dir: Path, name: str) -> dict[str, Any]:
    (path,) = output_dir.glob(f"*/{name}")
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """All sixty demo cases, both arms, three attempts each."""
    output_dir = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "vllm_eval", "--config", "demo", "--max-samples", "60"]
    command += ["--output-dir", str(output_dir)]
    return output_dir, subprocess.run(command, capture_output=True, text=True, check=False)


Demo = tuple["Path", subprocess.CompletedProcess[str]]


def test_the_demo_passes_its_gate(demo: Demo) -> None:
    output_dir, done = demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nPASS  po_student_demo\n" in done.stdout
    assert load(output_dir, "comparison.json")["passed"] is True


def test_the_demo_base_fails_20_to_50_percent_of_first_attempts(demo: Demo) -> None:
    summary = load(demo[0], "comparison.json")["arms"]["baseline"]
    assert summary["total"] == 60
    assert 0.5 <= summary["first_valid_rate"] <= 0.8


def test_the_demo_student_fails_less_than_10_percent_of_first_attempts(demo: Demo) -> None:
    summary = load(demo[0], "comparison.json")["arms"]["po_student_demo"]
    assert summary["first_valid_rate"] > 0.9


def test_retries_bring_the_demo_base_to_at_least_90_percent(demo: Demo) -> None:
    assert load(demo[0], "comparison.json")["arms"]["baseline"]["valid_rate"] >= 0.9


def test_both_arms_share_one_batch(demo: Demo) -> None:
    """Each arm has its first token before any answer of either has ended."""
    (journal,) = demo[0].glob("*/attempts.jsonl")
    attempts = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    begun: dict[str, float] = {}
    for a in attempts:
        first_token = a["finished_at"] - a["total_s"] + a["ttft_s"]
        begun[a["arm"]] = min(first_token, begun.get(a["arm"], math.inf))
    assert begun.keys() == {"baseline", "po_student_demo"}
    assert max(begun.values()) < min(a["finished_at"] for a in attempts)


def test_the_engine_prints_into_its_log_and_not_to_the_terminal(demo: Demo) -> None:
    output_dir, done = demo
    (log,) = output_dir.glob("*/engine.log")
    assert "Initializing a V1 LLM engine" in log.read_text("utf-8")
    assert "INFO" not in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr


def call(bench: Bench, *more: str) -> Run:
    """The demo in the process of the tests, where vLLM may be imported already."""
    return bench.call("--config", "demo", "--output-dir", str(bench.output_dir), *more)


def test_every_real_record_ends_as_success_or_as_a_named_error(
    shared_data: Path, bench: Bench
) -> None:
    """Whatever the demo model makes of prompts it was never trained for."""
    records, asked = shared_data / "product_owner_val.jsonl", count(12, deep=34)
    flags = ("--dataset-path", str(records), "--max-samples", str(asked), "--retries", "0")
    done = call(bench, *flags, "--max-new-tokens", "160")
    assert done.code in (0, 1), done.out + done.err
    for arm in ("baseline", "student"):
        rows = done.result(f"{arm}_")["results"]
        assert len(rows) == asked
        assert all(row["status"] == "success" or row["reason"] for row in rows)


def test_a_prompt_that_cannot_fit_is_an_error_of_its_case_alone(bench: Bench) -> None:
    rows = [
        {"concept_id": "long", "concept": "x " * 9000, "requirements_yaml": "title: x"},
        {"concept_id": "short", "concept": "A portal", "requirements_yaml": "title: x"},
    ]
    cases = bench.write(bench.cases, rows)
    flags = ("--dataset-path", str(cases), "--retries", "0", "--prompt-format", "chat")
    run = call(bench, *flags)
    found = {row["concept_id"]: row for row in run.result("baseline_")["results"]}
    assert (found["long"]["status"], found["long"]["reason"]) == ("error", "prompt_too_long")
    assert "max_model_len" in found["long"]["error"]
    assert found["short"]["status"] != "error"


def test_an_unknown_engine_option_is_named_with_its_neighbour(bench: Bench) -> None:
    done = call(bench, "-c", "engine_args.max_modle_len=100")
    assert done.code == 2
    assert "no option 'max_modle_len'; did you mean 'max_model_len'?" in done.err
