"""Which server gets which request, how many at a time, and what happens when one fails.

Each server has a limit of its own that follows what it can take: it grows with every answer and is
halved when the server says it is too much (additive increase, multiplicative decrease; Chiu and
Jain 1989). Everything here runs in one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_eval.engines import openai_wire
from vllm_eval.engines.openai_start import prepare
from vllm_eval.engines.openai_wire import Answer, FaultError
from vllm_eval.errors import EngineDiedError, EngineError
from vllm_eval.records import Completion

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from openai import AsyncOpenAI

    from vllm_eval.config import Config
    from vllm_eval.engines.openai_start import Served
    from vllm_eval.records import Arm, Request

FIRST_LIMIT = 32
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
ALONE = 8
"""So often a request may fail on servers that answer others meanwhile; then it is to blame."""


@dataclass(slots=True)
class Server:
    """One base URL."""

    url: str
    client: AsyncOpenAI
    limit: float
    """Requests it may be given at a time."""
    served: Served | None = None
    """None while it is out of service: it has to prove its arms (again)."""
    in_flight: int = 0
    climbing: bool = True
    """Until the first sign of too much, the limit grows with every answer by one."""
    cut_at: float = 0.0
    """When the limit was last halved."""
    free_at: float = 0.0
    """Until then it is left alone."""
    answered_at: float = 0.0
    failures: int = 0
    """Since its last answer."""


@dataclass(slots=True)
class Job:
    """A request on its way to an answer."""

    request: Request
    queued_at: float
    tries: int = 0
    alone: int = 0
    """Failed tries during which the server answered others."""


@dataclass(slots=True)
class Counts:
    """What was sent again, by cause: no attempt of the model's, and never counted as one."""

    busy: int = 0
    failed: int = 0
    timeout: int = 0
    lost: int = 0
    unreachable: int = 0
    missing: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, name) for name in self.__slots__)


@dataclass(slots=True)
class Traffic:
    """Requests waiting for a server, and those on their way."""

    config: Config
    arms: Sequence[Arm]
    servers: list[Server]
    done: Callable[[Completion | BaseException], None]
    """Takes what is finished, or the error that ends everything."""
    note: Callable[[str], None]
    """Writes a line to the log."""
    counts: Counts = field(default_factory=Counts)
    waiting: deque[Job] = field(default_factory=deque)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    silent_since: float | None = None
    """Since when nothing has come back but failures."""
    dead: bool = False
    begun: bool = False
    version: str | None = None
    """The release of the first server that proved itself; no other one may join."""

    async def start(self) -> None:
        """Wait until one server has proved its arms; the others join when they have.

        Raises:
            EngineError: one serves something else, or none answers for as long as patience lasts.
        """
        end, pause = time.monotonic() + self.config.server_patience_s, FIRST_PAUSE_S
        while True:
            tried = await asyncio.gather(*map(self._prove, self.servers), return_exceptions=True)
            faults = [error for error in tried if error is not None]
            if fatal := next((e for e in faults if not isinstance(e, FaultError)), None):
                raise fatal
            if len(faults) < len(tried):
                break
            if time.monotonic() + pause > end:
                patience = f"{self.config.server_patience_s:g} s"
                named = "; ".join(f"{s.url}: {e}" for s, e in zip(self.servers, tried, strict=True))
                msg = f"no server has answered for {patience} (server_patience_s): {named}"
                raise EngineError(msg)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        for server in self.servers:
            if server.served is None:
                self._spawn(self._revive(server))

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests."""
        now = time.monotonic()
        self.waiting.extend(Job(request, now) for request in requests)
        self._dispatch()

    @property
    def capacity(self) -> int:
        """What all servers may be given now, and one more each to be there when a place is free."""
        limits = (int(s.limit) + 1 for s in self.servers if s.served is not None)
        return max(2, sum(limits))

    async def stop(self) -> None:
        """End everything under way and close the connections."""
        self.dead = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for server in self.servers:
            await server.client.close()

    def _dispatch(self) -> None:
        """Give what waits to the servers with room, the least loaded one first."""
        now = time.monotonic()
        while self.waiting and not self.dead:
            room = [
                (server.in_flight / server.limit, number, server.served)
                for number, server in enumerate(self.servers)
                if server.served is not None
                and server.free_at <= now
                and server.in_flight < int(server.limit)
            ]
            if not room:
                return
            _, number, served = min(room, key=lambda one: one[0])
            self.servers[number].in_flight += 1
            self._spawn(self._answer(self.waiting.popleft(), self.servers[number], served))

    async def _answer(self, job: Job, server: Server, served: Served) -> None:
        began, request, vllm = time.monotonic(), job.request, served.vllm is not None
        model = served.models[request.arm]
        body = openai_wire.fields(self.config, model, request.prompt, request.seed, vllm=vllm)
        try:
            answer = await openai_wire.ask(server.client, self.config, body)
            self._succeeded(server)
            self.done(complete(job, began, answer, self.config))
        except FaultError as fault:
            self._failed(job, server, fault, began)
        finally:
            server.in_flight -= 1
            self._dispatch()

    def _succeeded(self, server: Server) -> None:
        server.failures, server.answered_at = 0, time.monotonic()
        self.silent_since = None
        step = 1.0 if server.climbing else 1.0 / server.limit
        server.limit = min(server.limit + step, float(self.config.max_concurrency))

    def _failed(self, job: Job, server: Server, fault: FaultError, began: float) -> None:
        """Decide what a failure means for the request, for the server and for everything."""
        if fault.kind == "refused":
            self.done(Completion(job.request.id, error=f"the server refuses it: {fault.words}"))
            return
        if fault.kind == "forbidden":
            self._die(EngineError(f"{server.url}: {fault.words}; its key is no longer taken"))
            return
        setattr(self.counts, fault.kind, getattr(self.counts, fault.kind) + 1)
        job.tries += 1
        if fault.kind in ("failed", "timeout", "lost") and server.answered_at > began:
            job.alone += 1
        if job.alone >= ALONE:
            words = f"failed {ALONE} times while the server answered others: {fault.words}"
            self.note(f"{server.url}: {job.request.id}: {words}")
            self.done(Completion(job.request.id, error=words))
            return
        now = time.monotonic()
        server.failures += 1
        if fault.kind in ("busy", "timeout"):
            self._cut(server, fault, began, now)
        if fault.kind in ("unreachable", "missing"):
            self._take_out(server, fault)
        if self._out_of_patience(f"{server.url}: {fault.words}"):
            return
        self._again(job, server, fault, now)

    def _again(self, job: Job, server: Server, fault: FaultError, now: float) -> None:
        """Put a request back; at once where only another server or a pause is needed."""
        loop, pause = asyncio.get_running_loop(), _pause(job.tries)
        if fault.wait_s is not None:
            rest = min(fault.wait_s, self.config.server_patience_s)
            server.free_at = max(server.free_at, now + rest)
            loop.call_later(rest + 0.001, self._dispatch)
        if fault.wait_s is not None or server.served is None:
            self.waiting.appendleft(job)
            self._dispatch()
        else:
            loop.call_later(pause, self._rejoin, job)

    def _rejoin(self, job: Job) -> None:
        self.waiting.appendleft(job)  # it is the oldest
        self._dispatch()

    def _cut(self, server: Server, fault: FaultError, began: float, now: float) -> None:
        """Halve the limit, once for all requests that were on their way together."""
        if began < server.cut_at:
            return
        before, server.limit = server.limit, max(1.0, server.limit / 2)
        server.climbing, server.cut_at = False, now
        self.note(f"{server.url}: {fault.words}; limit {before:.0f} -> {server.limit:.0f}")

    def _take_out(self, server: Server, fault: FaultError) -> None:
        if server.served is None:
            return
        self.note(f"{server.url}: out of service: {fault.words}")
        server.served = None
        self._spawn(self._revive(server))

    async def _revive(self, server: Server) -> None:
        """Try a server again until it proves its arms anew; it then begins with a small limit."""
        tries = 0
        while not self.dead:
            tries += 1
            await asyncio.sleep(_pause(tries))
            try:
                await self._prove(server)
            except FaultError as fault:
                if self._out_of_patience(f"{server.url}: {fault.words}"):
                    return
            except EngineError as error:
                self._die(error)
                return
            else:
                self._dispatch()
                return

    async def _prove(self, server: Server) -> None:
        served = await prepare(server.client, self.config, self.arms)
        if not self.begun:
            self.begun, self.version = True, served.vllm
        elif served.vllm != self.version:
            msg = (
                f"{server.url}: answers as vLLM {served.vllm}, the run was begun with "
                f"{self.version}; serve one release, or start a new run"
            )
            raise EngineError(msg)
        server.limit = min(float(FIRST_LIMIT), float(self.config.max_concurrency))
        server.climbing, server.failures, server.served = True, 0, served
        named = ", ".join(f"{arm}: {model}" for arm, model in served.models.items())
        self.note(f"{server.url}: in service, vLLM {served.vllm}, {named}; by {served.canary}")

    def _out_of_patience(self, words: str) -> bool:
        """Note a failure; whether there have only been such for too long, which ends the engine."""
        now = time.monotonic()
        if self.silent_since is None:
            self.silent_since = now
        if now - self.silent_since < self.config.server_patience_s:
            return False
        patience = f"{self.config.server_patience_s:g} s (server_patience_s)"
        self._die(EngineDiedError(f"the engine died: no answer for {patience}, at last {words}"))
        return True

    def _die(self, error: BaseException) -> None:
        if not self.dead:
            self.dead = True
            self.note(str(error))
            self.done(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._die(defect)  # ours: it must not pass for a silent server


def complete(job: Job, began: float, answer: Answer, config: Config) -> Completion:
    """An answer as the engine's protocol wants it; times are from submission."""
    prompt, output = answer.tokens("prompt"), answer.tokens("completion")
    cut = answer.finish_reason == "length" and 0 < output < config.max_new_tokens
    error = None
    if cut:
        error = (
            f"the prompt's {prompt} tokens leave room for {output} of {config.max_new_tokens} for "
            "the answer; raise the server's --max-model-len or lower --max-new-tokens"
        )
    elif answer.finish_reason not in ("stop", "length", "repetition"):
        error = f"the server ended the request: {str(answer.finish_reason)[:100]}"
    return Completion(
        job.request.id,
        text=answer.text,
        finish_reason=answer.finish_reason,
        error=error,
        prompt_tokens=prompt,
        output_tokens=output or answer.chunks,
        cached_tokens=answer.cached_tokens,
        queued_s=began - job.queued_at,
        ttft_s=answer.first_at - job.queued_at,
        total_s=answer.last_at - job.queued_at,
    )


def _pause(tries: int) -> float:
    """Seconds before the next try: doubled each time, and spread, so that not all come at once."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
    return longest * random.uniform(0.5, 1.0)
