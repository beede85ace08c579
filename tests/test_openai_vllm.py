"""The openai engine against a real vLLM server with the demo's base and student, on loopback.

Covered: the answers of the engine in this process, whatever the server's defaults; faults on the
way; a server killed and started again; answers constrained to the grammar. Not covered: gateways.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import llguidance
import pytest

from tests.servers import FaultProxy
from vllm_eval.config.layers import load_config
from vllm_eval.config.settings import resolve_path
from vllm_eval.engines import open_engine
from vllm_eval.inputs import cases
from vllm_eval.inputs.plan import prepare
from vllm_eval.records import BASELINE, CONSTRAINED, Request
from vllm_eval.tasks import open_task
from vllm_eval.tasks.grammar import make_grammar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own, not ours
]

STUDENT = "po_student_demo"
CASES, TOKENS, START_S = 3, 160, 300
LEAKS = {"temperature": 2.0, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "repetition_penalty": 1.3}
LEAKS |= {"presence_penalty": 1.0, "frequency_penalty": 1.0}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmServer:
    """`vllm serve` with the demo's base and student."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Begin to start."""
        base, student = (resolve_path(f"package:demo/{name}") for name in ("base", STUDENT))
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--model", str(base), "--served-model-name", BASELINE, "--dtype", "float32"]
        # One slot more than adapters: see `engines.vllm.options`.
        command += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"]
        command += ["--lora-modules", f"{STUDENT}={student}", "--max-model-len", "3072"]
        command += ["--kv-cache-memory-bytes", "268435456", "--enforce-eager"]
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
        # As a generation_config.json sets it; no answer may follow it.
        command += ["--override-generation-config", json.dumps(LEAKS)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + START_S
        while self._process is not None and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < end, self._log.read_text("utf-8")[-3000:]
                time.sleep(0.5)
        raise AssertionError(self._log.read_text("utf-8")[-3000:])

    def kill(self) -> None:
        """With all its processes, without a word."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def opened(log: Path, **flags: Any) -> Any:
    more = {"temperature": 0.0, "max_samples": CASES, "max_new_tokens": TOKENS}
    config = load_config(["demo"], flags=more | flags)
    plan = prepare(config)
    requests = [
        Request(f"{arm.name}/{case.id}", arm.name, case.id, 0, 1, plan.task.prompt(case), seed=7)
        for case in cases.read_cases(plan.dataset)
        for arm in plan.arms
    ]
    return open_engine(config, plan.arms, plan.base_model, log), requests


def answers(log: Path, **flags: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Texts by request, and what the engine says of itself at the end."""
    engine, requests = opened(log, **flags)
    try:
        engine.submit(requests)
        found: dict[str, str] = {}
        while engine.busy:
            for done in engine.poll():
                assert done.error is None
                found[done.request_id] = done.text
        return found, dict(engine.about)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[VllmServer, dict[str, str]]]:
    """A server, and what the engine in this process answers; it does so while the server starts."""
    folder = tmp_path_factory.mktemp("served")
    server = VllmServer(folder / "server.log")
    server.start()
    try:
        texts, _ = answers(folder / "engine.log")
        server.wait()
        yield server, texts
    finally:
        server.kill()


Served = tuple[VllmServer, dict[str, str]]


def test_a_server_answers_as_the_engine_in_this_process(served: Served, tmp_path: Path) -> None:
    server, texts = served
    found, about = answers(tmp_path / "engine.log", engine="openai", base_url=[server.url])
    assert found == texts
    assert len(set(texts.values())) == 2 * CASES
    assert about["canary"] == "log probabilities of 20 tokens"
    assert about["sent_again"] == 0


def test_faults_on_the_way_cost_time_and_nothing_else(served: Served, tmp_path: Path) -> None:
    server, texts = served
    # The canary's own two requests, then one of each kind for those of the cases.
    faults = ["pass", "pass", "busy", "later", "slow", "cut", "broken", "drop"]
    proxy = FaultProxy(server.url, lambda n, _: faults[n] if n < len(faults) else "pass")  # type: ignore[arg-type, return-value]
    try:
        found, about = answers(tmp_path / "engine.log", engine="openai", base_url=[proxy.url])
    finally:
        proxy.loopback.stop()
    assert found == texts
    assert (about["sent_again"], about["sent_again_busy"]) == (5, 2)


def test_constrained_answers_keep_the_shape_as_far_as_they_come(
    served: Served, tmp_path: Path
) -> None:
    """So warm the free answers stray; a constrained one is cut at most, and never has strayed."""
    server, _ = served
    found, _ = answers(
        tmp_path / "engine.log",
        engine="openai",
        base_url=[server.url],
        constrain="beside",
        temperature=1.5,
    )
    grammar = llguidance.grammar_from(
        "grammar", make_grammar(open_task("product_owner").declaration).text
    )
    first = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)

    def keeps(text: str) -> bool:
        given = list(text.encode())
        return first.deep_copy().validate_tokens(given) == len(given)

    held = [text for name, text in found.items() if CONSTRAINED in name]
    free = [text for name, text in found.items() if CONSTRAINED not in name]
    assert len(held) == len(free) == 2 * CASES
    assert all(map(keeps, held))
    assert not all(map(keeps, free))


@pytest.mark.deep
def test_a_server_killed_and_started_again_costs_time_and_nothing_else(
    served: Served, tmp_path: Path
) -> None:
    server, texts = served
    log = tmp_path / "engine.log"
    engine, requests = opened(log, engine="openai", base_url=[server.url])
    try:
        engine.submit(requests)
        time.sleep(0.3)
        server.kill()
        server.start()
        found: dict[str, str] = {}
        while engine.busy:
            found |= {done.request_id: done.text for done in engine.poll()}
        about = engine.about
    finally:
        engine.close()
    assert found == texts
    assert about["sent_again_lost"] > 0
    assert log.read_text("utf-8").count("in service, vLLM") == 2
