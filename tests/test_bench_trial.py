"""One trial in this process: what each way of asking does with the same work.

Covered: equal work in every way, forced failures and their retries, order, what is left behind, a
worker's process. Not covered: real engines (test_bench.py).
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest

from vllm_eval.bench.rounds import Worker
from vllm_eval.bench.trial import WARM_CASES, Trial, Work, run_trial
from vllm_eval.config.layers import load_config
from vllm_eval.engines import open_engine
from vllm_eval.errors import ConfigError, EngineError
from vllm_eval.inputs.plan import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import Answers, Bench
    from vllm_eval.bench.contestants import Way
    from vllm_eval.config.settings import Config
    from vllm_eval.engines.protocol import Engine
    from vllm_eval.records import Request

WORK = Work(8, 8, fail_rate=0.4, attempts=3)


class Overheard:
    """Passes everything on to an engine, and notes what it was asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: list[Request] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def submit(self, requests: Sequence[Request]) -> None:
        self.asked += requests
        self.engine.submit(requests)


def configure(bench: Bench, answers: Answers, cases: int = 12) -> Config:
    bench.dataset(cases)
    bench.answers({"text": answers.text()})
    flags = {"engine": "scripted", "script": str(bench.script), "adapters": ["pupil"]}
    return load_config((), ["profile=none"], flags | {"dataset_path": str(bench.cases)})


def go(
    config: Config, folder: Path, way: Way, work: Work = WORK, *, warm: bool = False
) -> tuple[Trial, list[Request]]:
    plan = prepare(config)
    overheard = Overheard(open_engine(config, plan.arms, None, folder / "log"))
    trial = run_trial(plan, overheard, way, work, folder, warm=warm)  # type: ignore[arg-type]
    return trial, overheard.asked


@pytest.mark.parametrize("way", ["arms", "barrier"])
def test_every_way_asks_for_the_same(
    bench: Bench, answers: Answers, tmp_path: Path, way: Way
) -> None:
    config = configure(bench, answers)
    mixed, asked = go(config, tmp_path, "mixed")
    other, also = go(config, tmp_path, way)
    assert mixed.retries > 0
    assert {(r.id, r.prompt, r.seed) for r in also} == {(r.id, r.prompt, r.seed) for r in asked}
    sizes = [(t.requests, t.prompt_tokens, t.output_tokens) for t in (mixed, other)]
    assert sizes[0] == sizes[1]


def test_every_forced_failure_is_followed_by_an_attempt_while_there_are_any(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    _, asked = go(configure(bench, answers), tmp_path, "mixed")
    for request in asked:
        follows = f"{request.id.rpartition('/')[0]}/{request.attempt + 1}"
        due = WORK.fails(request) and request.attempt < WORK.attempts
        assert due == any(other.id == follows for other in asked)


def test_a_barrier_ends_a_round_before_the_next(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    _, asked = go(configure(bench, answers), tmp_path, "barrier")
    attempts = [request.attempt for request in asked]
    assert attempts == sorted(attempts)


def test_arms_are_asked_one_after_the_other(bench: Bench, answers: Answers, tmp_path: Path) -> None:
    _, asked = go(configure(bench, answers), tmp_path, "arms", Work(8, 8))
    assert [request.arm for request in asked] == ["baseline"] * 12 + ["pupil"] * 12


def test_a_warm_up_asks_only_the_first_cases(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    trial, _ = go(configure(bench, answers), tmp_path, "mixed", Work(8, 8), warm=True)
    assert trial.requests == 2 * WARM_CASES


def test_a_trial_leaves_no_file_behind(bench: Bench, answers: Answers, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    trial, _ = go(configure(bench, answers), folder, "mixed")
    assert list(folder.iterdir()) == []
    assert 0 < trial.grading_s < trial.seconds


def test_a_worker_says_what_it_has_opened_and_does_every_trial(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    with closing(Worker(configure(bench, answers), WORK, tmp_path / "log")) as worker:
        assert worker.about["engine"] == "scripted"
        assert 0 < worker.engine_s < worker.start_s
        sizes = [worker.trial("mixed", warm=warm).requests for warm in (True, False)]
        assert 2 * WARM_CASES <= sizes[0] < sizes[1]
        assert psutil.pid_exists(worker.pid or 0)
    assert not psutil.pid_exists(worker.pid or 0)


def test_a_worker_that_cannot_open_its_engine_says_why(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    config = configure(bench, answers).model_copy(update={"script": None})
    with pytest.raises(ConfigError, match="the scripted engine needs one"):
        Worker(config, WORK, tmp_path / "log")


def test_a_worker_whose_process_ends_is_no_error_of_its_engine(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    with closing(Worker(configure(bench, answers), WORK, tmp_path / "log")) as worker:
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(EngineError, match="the process of an engine ended; see "):
            worker.trial("mixed", warm=False)


def test_an_interrupt_ends_a_trial_and_then_its_worker(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    config = configure(bench, answers)
    bench.answers({"text": answers.text(), "seconds": 60})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind `nohup` or `&`
    with closing(Worker(config, WORK, tmp_path / "log")) as worker:
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            worker.trial("mixed", warm=False)
    assert not psutil.pid_exists(worker.pid or 0)
