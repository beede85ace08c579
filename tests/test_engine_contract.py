"""One contract for every engine: what `vllm_eval.engines.Engine` promises.

Covered: ids, isolation of bad requests, joining a running batch, timing, idle and timed polls.
Not covered: that answers come from the right weights (test_engine_arms.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.servers import FakeServer
from vllm_eval.config.layers import load_config
from vllm_eval.engines import open_engine
from vllm_eval.inputs.plan import prepare
from vllm_eval.records import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_eval.engines.protocol import Engine
    from vllm_eval.records import Completion

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own, not ours

ARMS = ("baseline", "po_student_demo")


MODELS = [pytest.param(name, marks=pytest.mark.engine) for name in ("vllm", "transformers")]
"""Engines that load the demo model."""


@pytest.fixture(scope="module", params=["scripted", "openai", *MODELS])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("engine")
    script = folder / "script.jsonl"
    script.write_text('{"concept_id": "*", "text": "one two three", "seconds": 0.05}\n')
    flags: dict[str, Any] = {
        "engine": request.param,
        "script": str(script),
        "max_new_tokens": 24,
        "batch_size": 4,
    }
    # To a server on loopback that only speaks the protocol; a real one is in test_openai_vllm.py.
    server = FakeServer(models={ARMS[0]: None, ARMS[1]: ARMS[0]}, seconds=0.05)
    if request.param == "openai":
        flags["base_url"] = [server.url]
    config = load_config(["demo"], flags=flags | {"temperature": 1.0})
    plan = prepare(config)
    opened = open_engine(config, plan.arms, plan.base_model, folder / "engine.log")
    yield opened
    opened.close()
    server.loopback.stop()


def ask(name: str, prompt: str = "Concept: a portal", arm: str = "baseline") -> Request:
    return Request(name, arm, name, 0, 1, prompt, seed=7)


def drain(engine: Engine) -> list[Completion]:
    found: list[Completion] = []
    while engine.busy:
        found += engine.poll()
    return found


def test_every_request_comes_back_once_under_its_own_id(engine: Engine) -> None:
    names = [f"case {number}/{arm}" for number in range(6) for arm in ARMS]
    engine.submit([ask(name, arm=name.partition("/")[2]) for name in names])
    assert sorted(done.request_id for done in drain(engine)) == sorted(names)


def test_a_completion_carries_tokens_and_times(engine: Engine) -> None:
    engine.submit([ask("timed")])
    (done,) = drain(engine)
    assert done.error is None
    assert 0 < done.output_tokens <= 24
    assert done.prompt_tokens > 0
    assert 0 < done.ttft_s <= done.total_s
    assert done.finish_reason in ("stop", "length")


def test_a_request_joins_while_others_are_running(engine: Engine) -> None:
    engine.submit([ask("early")])
    assert engine.poll(timeout=0.0) == []
    engine.submit([ask("late")])
    assert {done.request_id for done in drain(engine)} == {"early", "late"}


def test_a_poll_returns_empty_when_its_time_is_up(engine: Engine) -> None:
    engine.submit([ask("slow")])
    assert engine.poll(timeout=0.0) == []
    assert engine.busy
    assert len(drain(engine)) == 1


def test_an_idle_engine_is_not_busy_and_polls_empty(engine: Engine) -> None:
    drain(engine)
    assert not engine.busy
    assert engine.poll() == []


def test_it_keeps_what_its_base_answered_the_canary(engine: Engine) -> None:
    kept = [base is not None for base in engine.base]
    assert kept == ([] if engine.about["engine"] == "scripted" else [True])


def test_it_holds_more_than_one_request_in_flight(engine: Engine) -> None:
    assert engine.capacity > 1


def test_it_says_what_it_is(engine: Engine) -> None:
    assert engine.about["engine"] in ("openai", "scripted", "transformers", "vllm")


@pytest.mark.parametrize("engine", ["openai", *MODELS], indirect=True)
def test_a_prompt_without_room_for_its_answer_is_refused_with_the_numbers(engine: Engine) -> None:
    why = engine.refusal("word " * 5000)
    assert why is not None
    assert "max_model_len 3072" in why
    assert engine.refusal("Concept: a portal") is None


@pytest.mark.parametrize("engine", MODELS, indirect=True)
def test_the_same_seed_gives_the_same_answer_in_any_company(engine: Engine) -> None:
    engine.submit([ask("alone")])
    (alone,) = drain(engine)
    engine.submit([ask(f"other {n}", f"Concept: {n}", ARMS[n % 2]) for n in range(8)])
    engine.submit([ask("again")])
    again = next(done for done in drain(engine) if done.request_id == "again")
    assert again.text == alone.text
