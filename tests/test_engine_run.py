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

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine


def start(output_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_eval", "--config", "demo"]
    command += ["--output-dir", str(output_dir), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def load(output_dir: Path, name: str) -> dict[str, Any]:
    (path,) = output_dir.glob(f"*/{name}")
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """All sixty demo cases, both arms, three attempts each."""
    output_dir = tmp_path_factory.mktemp("demo")
    return output_dir, start(output_dir, "--max-samples", "60")


Demo = tuple["Path", subprocess.CompletedProcess[str]]


def test_the_demo_passes_its_gate(demo: Demo) -> None:
    output_dir, done = demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("PASS  po_student_demo")
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


def test_every_real_record_ends_as_success_or_as_a_named_error(
    shared_data: Path, tmp_path: Path
) -> None:
    """Whatever the demo model makes of prompts it was never trained for."""
    records = shared_data / "product_owner_val.jsonl"
    flags = ("--dataset-path", str(records), "--max-samples", "34", "--retries", "0")
    done = start(tmp_path, *flags, "--max-new-tokens", "160")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for arm in ("baseline", "student"):
        rows = load(tmp_path, f"{arm}_*.json")["results"]
        assert len(rows) == 34
        assert all(row["status"] == "success" or row["reason"] for row in rows)


def test_a_prompt_that_cannot_fit_is_an_error_of_its_case_alone(tmp_path: Path) -> None:
    rows = [
        {"concept_id": "long", "concept": "x " * 9000, "requirements_yaml": "title: x"},
        {"concept_id": "short", "concept": "A portal", "requirements_yaml": "title: x"},
    ]
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--dataset-path", str(cases), "--retries", "0", "--prompt-format", "chat")
    start(tmp_path / "out", *flags)
    found = {r["concept_id"]: r for r in load(tmp_path / "out", "baseline_*.json")["results"]}
    assert (found["long"]["status"], found["long"]["reason"]) == ("error", "prompt_too_long")
    assert "max_model_len" in found["long"]["error"]
    assert found["short"]["status"] != "error"


def test_an_unknown_engine_option_is_named_with_its_neighbour(tmp_path: Path) -> None:
    done = start(tmp_path, "-c", "engine_args.max_modle_len=100")
    assert done.returncode == 2
    assert "no option 'max_modle_len'; did you mean 'max_model_len'?" in done.stderr
