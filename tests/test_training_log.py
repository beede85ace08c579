"""`trainer_state.json`: its losses where it has any, and never an error where it has not."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest

from tests.checkpoints import history, train, trainer_state
from tests.conftest import Answers
from vllm_eval.inputs.checkpoints import MAX_STATE_BYTES
from vllm_eval.inputs.training_log import MOST, Loss, TrainingLog, read_logs
from vllm_eval.records import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench


def read(training: Path, *steps: int, below: str = "") -> TrainingLog:
    """The log of a training run of which these checkpoints are compared, or folders in them."""
    adapters = [
        Adapter(
            name=f"checkpoint-{step}",
            path=training / f"checkpoint-{step}" / below,
            base_model=None,
            rank=8,
            sha256="",
            content="",
            step=step,
            training=training,
        )
        for step in steps
    ]
    return read_logs(adapters)[str(training)]


def test_the_latest_checkpoint_tells_the_whole_history(tmp_path: Path) -> None:
    trainer_state(tmp_path / "checkpoint-50", history(50))
    path = trainer_state(tmp_path / "checkpoint-100", history(100))
    log = read(tmp_path, 50, 100)
    assert (log.file, log.note) == (str(path), "")
    assert [one.step for one in log.losses] == list(range(10, 101, 10))
    assert log.losses[-1] == Loss(100, 1.25, 1.5)
    assert log.losses[3] == Loss(40, 1.7857, None)


def test_a_checkpoint_tells_it_whose_adapter_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    trainer_state(tmp_path / "checkpoint-50", history(50))
    path = trainer_state(tmp_path / "checkpoint-100", history(100))
    trainer_state(tmp_path.parent, history(200))
    assert read(tmp_path, 50, 100, below="default").file == str(path)


def test_the_training_folder_tells_it_where_it_reaches_further(tmp_path: Path) -> None:
    trainer_state(tmp_path / "checkpoint-50", history(50))
    trainer_state(tmp_path / "checkpoint-100", history(100))
    path = trainer_state(tmp_path, history(130))
    assert read(tmp_path, 50, 100).file == str(path)


def test_a_training_folder_left_from_an_earlier_training_is_not_believed(tmp_path: Path) -> None:
    trainer_state(tmp_path, history(50))
    path = trainer_state(tmp_path / "checkpoint-100", history(100))
    assert read(tmp_path, 50, 100).file == str(path)


def test_a_damaged_file_gives_way_to_that_of_the_checkpoint_before(tmp_path: Path) -> None:
    path = trainer_state(tmp_path / "checkpoint-50", history(50))
    trainer_state(tmp_path / "checkpoint-100", history(100)).write_text('{"log_hi')
    log = read(tmp_path, 50, 100)
    assert (log.file, log.note) == (str(path), "")


def test_without_a_file_there_are_no_losses_and_nothing_to_say(tmp_path: Path) -> None:
    assert read(tmp_path, 50, 100) == TrainingLog(None, (), "")


def test_losses_that_are_no_number_are_unknown(tmp_path: Path) -> None:
    odd = [float("nan"), float("inf"), 1e300, -(10**400), "1.5", None, True, [1.0], {"a": 1}]
    log = [{"step": n, "loss": value, "eval_loss": 0.5} for n, value in enumerate(odd)]
    trainer_state(tmp_path / "checkpoint-9", [*log, {"step": 9, "loss": 2}])
    losses = read(tmp_path, 1, 9).losses
    assert losses == (*(Loss(n, None, 0.5) for n in range(9)), Loss(9, 2.0, None))


def test_entries_without_a_step_that_counts_are_passed_over(tmp_path: Path) -> None:
    steps = ["10", None, True, -1, 1.5, 10**13, [1], float("nan")]
    odd: list[object] = [{"step": step, "loss": 1.0} for step in steps]
    odd += [None, "loss", 3, [], {}, {"loss": 1.0}, {"step": 7}]
    trainer_state(tmp_path / "checkpoint-9", [*odd, {"step": 9, "loss": 0.5}])
    assert read(tmp_path, 1, 9).losses == (Loss(9, 0.5, None),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"{}",
        b'{"log_history": {"step": 1, "loss": 2}}',
        b'{"log_history": [{"step": 1, "loss": NaN}]}',
        b'{"log_history": [' + b"9" * 10_000 + b"]}",
        b"[" * 200_000,
        b'{"log_history": "' + b"x" * MAX_STATE_BYTES + b'"}',
    ],
)
def test_a_file_that_cannot_be_used_is_a_note_and_never_an_error(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "checkpoint-100" / "trainer_state.json"
    path.parent.mkdir()
    path.write_bytes(content)
    log = read(tmp_path, 50, 100)
    assert (log.file, log.losses) == (None, ())
    assert log.note.startswith(f"{path}: ")


def test_nan_in_the_log_hides_neither_the_losses_nor_the_step(tmp_path: Path, bench: Bench) -> None:
    """The adapter at the end of a training run has no step in its name."""
    log = [{"step": 100, "loss": 1.5, "grad_norm": float("nan")}]
    given = train(tmp_path / "exp1", 50, final=True)
    trainer_state(given, log)
    bench.dataset(1)
    bench.answers({"text": Answers().text()})
    (curve,) = bench.run("--adapter", str(given)).result("comparison")["curve"]
    assert [(point["step"], point["loss"]) for point in curve["points"]] == [(50, None), (100, 1.5)]


def test_a_folder_in_the_file_s_place_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-100" / "trainer_state.json").mkdir(parents=True)
    assert read(tmp_path, 50, 100) == TrainingLog(None, (), "")


def test_a_long_history_is_thinned_and_keeps_its_ends_and_the_steps_compared(
    tmp_path: Path,
) -> None:
    log = [{"step": n, "loss": n / 1000} for n in range(1, 50_001)]
    log += [{"step": n, "eval_loss": n / 500} for n in range(25, 50_001, 25)]
    trainer_state(tmp_path / "checkpoint-50000", log)
    losses = read(tmp_path, 12_345, 50_000).losses
    assert len(losses) <= 2 * MOST + 2
    assert (losses[0].step, losses[-1]) == (1, Loss(50_000, 50.0, 100.0))
    assert Loss(12_345, 12.345, None) in losses
    gaps = [two.step - one.step for one, two in itertools.pairwise(losses)]
    assert max(gaps) < 600


def test_one_checkpoint_of_a_training_run_needs_no_losses(tmp_path: Path) -> None:
    trainer_state(tmp_path, history(100))
    alone = Adapter("a", tmp_path / "a", None, 8, "", "", 100, tmp_path)
    unknown = Adapter("b", tmp_path / "b", None, 8, "", "", None, tmp_path)
    assert read_logs([alone, unknown, Adapter("c", tmp_path / "c", None, 8, "", "")]) == {}


def test_what_is_read_is_the_same_from_the_manifest(tmp_path: Path) -> None:
    from dataclasses import asdict

    from vllm_eval.errors import InputError
    from vllm_eval.inputs.training_log import from_json

    trainer_state(tmp_path / "checkpoint-100", history(100))
    log = read(tmp_path, 50, 100)
    stored = json.loads(json.dumps({"run": asdict(log)}))
    assert from_json(stored) == {"run": log}
    stored["run"]["losses"][0]["loss"] = "low"
    with pytest.raises(InputError, match=r"manifest\.json: training is damaged \(losses\.0\.loss"):
        from_json(stored)
