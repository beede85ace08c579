"""Which server gets which request, how many at a time, and what happens when one fails.

Each server has a limit of its own that follows what it can take: it grows with every answer and is
halved when the server says it is too much (additive increase, multiplicative decrease; Chiu and
Jain 1989). Everything here runs in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_eval.engines import openai_wire
from vllm_eval.engines.openai_records import (
    FIRST_LIMIT,
    TOLERATED,
    Counts,
    Job,
    Server,
    complete,
    pause,
)
from vllm_eval.engines.openai_start import prepare
from vllm_eval.engines.openai_wire import FaultError
from vllm_eval.errors import EngineDiedError, EngineError
from vllm_eval.records import Completion

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from vllm_eval.config import Config
    from vllm_eval.engines.openai_start import Served
    from vllm_eval.records import Arm, Request

PROVE_S = 120.0
"""Longest wait for a server that is to prove its arms."""
ALONE = 5
"""So often a request may fail on servers that answer others meanwhile; then it is to blame."""


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
    begun: Served | None = None
    """What the first server proved; one of another release or with other models may not join."""

    async def start(self) -> None:
        """Wait until one server has proved its arms; the others join when they have.

        Raises:
            EngineError: one serves something else, or none answers for as long as patience lasts.
        """
        end, tries = time.monotonic() + self.config.server_patience_s, 0
        while True:
            tried = await asyncio.gather(*map(self._prove, self.servers), return_exceptions=True)
            faults = [error for error in tried if error is not None]
            if fatal := next((e for e in faults if not isinstance(e, FaultError)), None):
                raise fatal
            if len(faults) < len(tried):
                break
            tries += 1
            if time.monotonic() > end:
                patience = f"{self.config.server_patience_s:g} s"
                named = "; ".join(f"{s.url}: {e}" for s, e in zip(self.servers, tried, strict=True))
                msg = f"no server has answered for {patience} (server_patience_s): {named}"
                raise EngineError(msg)
            await asyncio.sleep(pause(tries))
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
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.sleep(0)  # a closed connection is let go in the loop's next turn

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
        now = time.monotonic()
        if fault.kind in ("failed", "timeout", "lost"):
            job.alone += server.answered_at > max(job.failed_at, job.queued_at)
            job.failed_at = now
        if job.alone >= ALONE:
            words = f"failed {ALONE} times while the server answered others: {fault.words}"
            self.note(f"{server.url}: {job.request.id}: {words}")
            self.done(Completion(job.request.id, error=words))
            return
        if fault.kind in ("busy", "timeout"):
            self._cut(server, fault, began, now)
        if fault.kind != "busy":
            self._count_failure(server, began, now)
        if fault.kind in ("unreachable", "missing"):
            self._take_out(server, fault)
        if self._out_of_patience(f"{server.url}: {fault.words}"):
            return
        self._again(job, server, fault, now)

    def _again(self, job: Job, server: Server, fault: FaultError, now: float) -> None:
        """Put a request back; at once where only another server or a pause is needed."""
        loop = asyncio.get_running_loop()
        if fault.wait_s is not None:
            rest = min(fault.wait_s, self.config.server_patience_s)
            self._leave_alone(server, now, rest)
        if fault.wait_s is not None or server.served is None:
            self.waiting.appendleft(job)
            self._dispatch()
        else:
            loop.call_later(pause(job.tries), self._rejoin, job)

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

    def _count_failure(self, server: Server, began: float, now: float) -> None:
        """Leave a server alone for longer and longer: one that fails at once has always room."""
        if began <= server.failed_at:
            return
        server.failed_at, server.failures = now, server.failures + 1
        if server.failures > TOLERATED:
            self._leave_alone(server, now, pause(server.failures - TOLERATED))

    def _leave_alone(self, server: Server, now: float, seconds: float) -> None:
        server.free_at = max(server.free_at, now + seconds)
        asyncio.get_running_loop().call_later(seconds + 0.001, self._dispatch)

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
            await asyncio.sleep(pause(tries))
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
        client = server.client.with_options(timeout=min(PROVE_S, self.config.request_timeout_s))
        served = await prepare(client, self.config, self.arms)
        begun = self.begun = self.begun or served
        if (served.vllm, served.models) != (begun.vllm, begun.models):
            msg = (
                f"{server.url}: serves {dict(served.models)} with vLLM {served.vllm}, the run was "
                f"begun with {dict(begun.models)} and {begun.vllm}; serve one, or start a new run"
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
