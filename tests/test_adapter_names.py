"""What `--adapter` stands for: training runs, globs, names; and what each adapter is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.model_folders import write_adapter, write_json
from vllm_eval.config.settings import Config
from vllm_eval.inputs.arms import open_arms

if TYPE_CHECKING:
    from vllm_eval.inputs.arms import Opened
    from vllm_eval.records import Adapter


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint(path: str, alpha: int, **state: object) -> Path:
    """An adapter of its own scale, with what a trainer leaves in its folder."""
    folder = write_adapter(Path(path), lora_alpha=alpha)
    if state:
        write_json(folder / "trainer_state.json", state)
    return folder


def training(path: str, *steps: int) -> Path:
    """A training run's folder with a checkpoint at each step."""
    for step in steps:
        checkpoint(f"{path}/checkpoint-{step}", sum(path.encode()) + step, global_step=step)
    return Path(path)


def opened(*given: str, **more: object) -> Opened:
    found = open_arms(Config(adapters=given, **{"engine": "scripted"} | more))  # type: ignore[arg-type]
    assert not found.problems
    return found


def names(*given: str, **more: object) -> list[str]:
    """What the students are called."""
    return [arm.name for arm in opened(*given, **more).arms[1:]]


def adapters(*given: str) -> list[Adapter]:
    return [arm.adapter for arm in opened(*given).arms if arm.adapter]


def test_a_training_run_is_its_checkpoints_by_step() -> None:
    training("runs/exp1", 1000, 100, 20)
    assert names("runs/exp1") == ["checkpoint-20", "checkpoint-100", "checkpoint-1000"]
    found = adapters("runs/exp1")
    assert [one.step for one in found] == [20, 100, 1000]
    assert {one.training for one in found} == {Path("runs/exp1").resolve()}


def test_a_name_that_is_no_folder_stays_a_label_of_the_scripted_engine() -> None:
    assert names("pupil") == ["pupil"]
    assert adapters("pupil") == []
