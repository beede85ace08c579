"""Arms as model names on running servers with OpenAI's API, such as `vllm serve`.

One thread runs an event loop with the official client; this object passes requests to it and takes
completions from a queue. A server that is gone for a while costs only time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_eval.config.settings import Config
from vllm_eval.engines import canary
from vllm_eval.engines.base_canary import BaseAnswers
from vllm_eval.engines.openai.server import FIRST_LIMIT, Done, Server
from vllm_eval.engines.openai.start import HOPELESS, root_of
from vllm_eval.engines.openai.traffic import Traffic
from vllm_eval.engines.openai.wire import NO_KEY, FaultError, api_key, asked, faults, untouched
from vllm_eval.engines.tokens import too_long
from vllm_eval.errors import ConfigError, EngineError
from vllm_eval.records import BASELINE, Arm, Completion, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_T = TypeVar("_T")

CONNECT_S = 10.0
COUNT_S = 10.0
"""Seconds to wait for a server to count a prompt's tokens; without a count it is asked anyway."""
BYTES_PER_TOKEN = 2
"""Fewer than text has; a prompt that fits by this measure is not counted beforehand."""
STOP_S = 10.0


class OpenAIEngine:
    """Servers that have passed the canary, and the thread that talks to them."""

    def __init__(self, config: Config, arms: Sequence[Arm], log: Path) -> None:
        self._config = config
        self._log = log
        self._finished: queue.SimpleQueue[Done | BaseException] = queue.SimpleQueue()
        self._open = 0
        self._prompts: dict[str, str] = {}
        self._arms = frozenset(arm.name for arm in arms)
        self._refused: dict[int, dict[str, str]] = {}
        """Why prompts cannot be asked, by arm; models may differ in length."""
        self._count = functools.lru_cache(maxsize=512)(self._count_tokens)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai", daemon=True)
        self._thread.start()
        servers = [Server(url, _connect(config, url), FIRST_LIMIT) for url in config.base_url]
        self._traffic = Traffic(config, arms, servers, self._finished.put, self._note)

    @classmethod
    def open(cls, config: Config, arms: Sequence[Arm], log: Path) -> OpenAIEngine:
        """Find the servers and run the canary on each.

        Raises:
            EngineError: no server answers in time, or one serves something else.
            ConfigError: no server is configured.
        """
        if not config.base_url:
            raise ConfigError("base_url: none; give --base-url http://HOST:8000/v1")
        try:
            import openai  # noqa: F401  a clear word before a thread is started
        except ImportError as error:
            msg = f"the openai engine needs a library: {error}; pip install 'vllm_eval[openai]'"
            raise EngineError(msg) from error
        with contextlib.ExitStack() as undo:
            engine = cls(config, arms, log)
            undo.callback(engine.close)
            engine._wait_for(engine._traffic.start())
            undo.pop_all()
            return engine

    @property
    def capacity(self) -> int:
        """What the servers accept at the moment; follows their limits."""
        return self._traffic.capacity

    @property
    def about(self) -> Mapping[str, str | int]:
        """What the servers report of themselves, and what has been sent again so far."""
        served = [server.served for server in self._traffic.servers if server.served]
        sizes = [one.max_model_len for one in served if one.max_model_len]
        counts, begun = self._traffic.counts, self._traffic.begun
        models = begun.models if begun else {}
        about: dict[str, str | int] = {
            "engine": "openai",
            "vllm": (begun and begun.vllm) or "unknown",
            "quantization": "unknown",  # no server says
            "models": ", ".join(f"{arm}={model}" for arm, model in models.items()),
            "max_model_len": min(sizes, default=0),
            "servers": len(self._traffic.servers),
            "canary": ", ".join(sorted({one.canary for one in served})),
            "sent_again": counts.total,
            "sent_again_busy": counts.busy,
            "sent_again_failed": counts.failed + counts.forbidden,
            "sent_again_timeout": counts.timeout,
            "sent_again_lost": counts.lost + counts.unreachable + counts.missing,
        }
        unproven = sorted({one.unproven for one in served if one.unproven})
        return about | canary.note("; ".join(unproven))

    @property
    def base(self) -> Sequence[BaseAnswers | None]:
        """What the bare base of every server in service answered the canary."""
        return [server.served.base for server in self._traffic.servers if server.served]

    def refusal(self, prompt: str) -> str | None:
        """A prompt must leave room for the whole answer, which vLLM would silently truncate.

        The server counts only prompts that may be too long. A prompt that servers have refused
        for its length with every arm is refused here from then on.
        """
        if not prompt:
            return "the prompt is empty"
        refused = self._refused.get(hash(prompt), {})
        if refused.keys() == self._arms:
            return next(iter(refused.values()))
        answer, size = self._config.max_new_tokens, len(prompt.encode("utf-8", "replace"))
        served = next((s.served for s in self._traffic.servers if s.served), None)
        limit = served.max_model_len if served and served.vllm else None
        if limit is None or size / BYTES_PER_TOKEN < limit - answer:
            return None
        try:
            tokens = self._count(prompt)
        except FaultError:
            return None  # asked again if the prompt comes again
        return too_long(tokens, answer, limit, "the server's ") if tokens else None

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; each goes to the server with the most room."""
        self._open += len(requests)
        self._prompts |= {request.id: request.prompt for request in requests}
        self._loop.call_soon_threadsafe(self._traffic.submit, list(requests))

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return self._open > 0

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Wait until at least one request has finished, or the time is up."""
        end = None if timeout is None else time.monotonic() + timeout
        finished: list[Completion] = []
        while self.busy:
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                item = self._finished.get(timeout=0.0 if finished else left)
            except queue.Empty:
                break
            if isinstance(item, BaseException):
                if finished:  # return what has finished first
                    self._finished.put(item)
                    break
                raise item
            finished.append(self._take(item))
        return finished

    def close(self) -> None:
        """End requests in flight; servers notice by the closed connection."""
        if not self._thread.is_alive():
            return
        try:
            with contextlib.suppress(TimeoutError):  # anything that hangs ends with the loop
                self._wait_for(self._traffic.stop(), STOP_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S)
            if not self._thread.is_alive():
                self._loop.close()

    def _take(self, done: Done) -> Completion:
        self._open -= 1
        prompt = self._prompts.pop(done.completion.request_id)
        if done.too_long and done.completion.error is not None:
            self._refused.setdefault(hash(prompt), {})[done.arm] = done.completion.error
        return done.completion

    def _count_tokens(self, prompt: str) -> int:
        """Tokens by the first server in service, 0 if it does not count; FaultError: not now."""
        server = next((s for s in self._traffic.servers if s.served), None)
        if server is None or server.served is None:
            raise FaultError("unreachable", "no server is in service")
        body = {"model": server.served.models[BASELINE]} | asked(self._config, prompt)
        body |= untouched(self._config, prompt, server.served.first)
        route = f"{root_of(server.client)}/tokenize"
        try:
            with faults():
                post = server.client.post(route, body=body, cast_to=object)
                answer = self._wait_for(asyncio.wait_for(post, COUNT_S))
        except FaultError as fault:
            if fault.kind in HOPELESS:
                return 0
            raise
        count = answer.get("count") if isinstance(answer, dict) else None
        return count if type(count) is int else 0

    def _wait_for(self, work: Coroutine[Any, Any, _T], timeout: float | None = None) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def _note(self, text: str) -> None:
        stamp = datetime.now().astimezone().isoformat(timespec="milliseconds")
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{stamp} {text}\n")


def _connect(config: Config, url: str) -> AsyncOpenAI:
    """A client of one server that does not retry by itself, because we count what is sent again."""
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(config.request_timeout_s, connect=min(CONNECT_S, config.request_timeout_s))
    return AsyncOpenAI(base_url=url, api_key=api_key() or NO_KEY, max_retries=0, timeout=timeout)
