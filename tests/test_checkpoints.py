"""From a trainer's output folder to the checkpoint that ships, with nothing made up.

A real trainer leaves checkpoints of the demo base, and the real engine compares them from their
parent folder. Where a rule is about one figure only, other tests hold it with scripted answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.deep]

CASES = "12"
STEPS = [50, 100, 150]
ARMS = [f"checkpoint-{step}" for step in STEPS]

Compared = tuple[dict[str, Any], dict[str, Any]]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def evaluate(output_dir: Path, *arguments: str) -> Compared:
    """What a run that passes prints, and its `comparison.json`."""
    shared = ["--config", "demo", "--max-cases", CASES, "--output-dir", str(output_dir)]
    done = call("vllm_eval", *shared, "--select", "best", "--json", "--no-report", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout)
    (path,) = output_dir.glob("*/comparison.json")
    return printed, json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training: three checkpoints, and the final adapter beside them."""
    folder = tmp_path_factory.mktemp("runs") / "exp1"
    steps = ["--steps", str(STEPS[-1]), "--checkpoints", str(len(STEPS))]
    done = call("scripts.demo_model.checkpoints", "--output", str(folder), *steps)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def compared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return evaluate(tmp_path_factory.mktemp("results"), "--adapter", str(trained))


def test_each_checkpoint_is_a_student_and_the_final_adapter_no_second_one(
    compared: Compared, trained: Path
) -> None:
    assert (trained / "adapter_model.safetensors").is_file()
    assert sorted(compared[1]["arms"]) == sorted(["baseline", *ARMS])


def test_the_curve_has_every_step_with_the_losses_of_the_trainer(compared: Compared) -> None:
    (curve,) = compared[1]["curve"]
    points = curve["points"]
    assert [(point["step"], point["arm"]) for point in points] == list(
        zip(STEPS, ARMS, strict=True)
    )
    for loss in ("loss", "eval_loss"):
        fallen = [point[loss] for point in points]
        assert fallen == sorted(fallen, reverse=True)
        assert fallen[-1] < fallen[0] / 2


def test_the_first_checkpoint_fails_and_the_run_passes_by_a_later_one(compared: Compared) -> None:
    printed, comparison = compared
    passed = {verdict["arm"]: verdict["passed"] for verdict in comparison["verdicts"]}
    selected = comparison["selected"]
    assert not passed["checkpoint-50"]
    assert passed[selected["arm"]]
    assert comparison["passed"]
    assert printed["selected"] == selected


def test_the_selected_path_is_that_checkpoints_folder(compared: Compared, trained: Path) -> None:
    selected = compared[0]["selected"]
    assert selected["path"] == str(trained / f"checkpoint-{selected['step']}")
    assert (trained / selected["arm"] / "adapter_config.json").is_file()


def test_a_later_run_takes_the_baseline_of_an_earlier_one(
    compared: Compared, trained: Path, tmp_path: Path
) -> None:
    """The canary of its own engine proves that the base is the same."""
    folder, last = Path(compared[0]["folder"]), str(trained / ARMS[-1])
    _, comparison = evaluate(tmp_path / "more", "--adapter", last, "--baseline", str(folder))
    assert comparison["arms"]["baseline"] == compared[1]["arms"]["baseline"]
    assert comparison["baseline_from"]["run"] == folder.name
    assert comparison["baseline_from"]["proof"] is not None
