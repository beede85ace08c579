"""Which server gets which request, how many at a time, and what happens when one fails.

Each server has its own limit, which follows what it can handle (`server`). Everything here runs
in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_eval.config.settings import Config
from vllm_eval.engines.openai import server as state
from vllm_eval.engines.openai import wire
from vllm_eval.engines.openai.server import Call, Counts, Done, Server
from vllm_eval.engines.openai.start import HINTS, HOPELESS, Served, hold_to, prepare
from vllm_eval.engines.openai.wire import FaultError, fields, held_to
from vllm_eval.errors import EngineDiedError, EngineError
from vllm_eval.records import Arm, Completion, Request

PROVE_S = 120.0
"""Seconds to wait for a server's canary."""


@dataclass(slots=True)
class Traffic:
    """Requests waiting for a server, and those in flight."""

    config: Config
    arms: Sequence[Arm]
    servers: list[Server]
    done: Callable[[Done | BaseException], None]
    """Receives finished requests, or the error that ends everything."""
    note: Callable[[str], None]
    """Writes a line to the log."""
    counts: Counts = field(default_factory=Counts)
    waiting: deque[Call] = field(default_factory=deque)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    silent_since: float | None = None
    """Time since which only failures have come back."""
    vouching: bool = False
    """Whether a server in service is repeating the canary because of failures."""
    dead: bool = False
    begun: Served | None = None
    """What the first server serves; one with another release or other models may not join."""

    async def start(self) -> None:
        """Wait until one server has passed the canary; the others join when they have.

        Raises:
            EngineError: one serves something else, or none answers within `server_patience_s`.
        """
        end, tries = time.monotonic() + self.config.server_patience_s, 0
        while True:
            tried = await asyncio.gather(*map(self._prove, self.servers), return_exceptions=True)
            for server, error in zip(self.servers, tried, strict=True):
                if isinstance(error, FaultError) and error.kind in HOPELESS:
                    msg = f"{server.url}: {error.words}{HINTS.get(error.kind, '')}"
                    raise EngineError(msg) from error
                if error is not None and not isinstance(error, FaultError):
                    raise error
            if None in tried:
                break
            tries += 1
            if time.monotonic() > end:
                named = "; ".join(f"{s.url}: {e}" for s, e in zip(self.servers, tried, strict=True))
                raise EngineError(f"no server has answered for {self._patience}: {named}")
            await asyncio.sleep(state.pause(tries))
        for server in self.servers:
            if server.served is None:
                self._spawn(self._revive(server))

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests."""
        self.waiting.extend(Call(request, time.monotonic()) for request in requests)
        self._dispatch()

    @property
    def capacity(self) -> int:
        """What all servers may get now, plus one each to be ready when a place is free."""
        return max(2, sum(int(s.limit) + 1 for s in self.servers if s.served is not None))

    async def stop(self) -> None:
        """End everything in flight and close the connections."""
        self.dead = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for server in self.servers:
            await server.client.close()
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.sleep(0)  # the loop releases a closed connection in its next turn

    def _dispatch(self) -> None:
        """Give waiting requests to the servers with room, the least loaded first."""
        now = time.monotonic()
        while self.waiting and not self.dead:
            server = state.choose(self.servers, now)
            if server is None or server.served is None:
                return
            server.in_flight += 1
            self._spawn(self._answer(self.waiting.popleft(), server, server.served))

    async def _answer(self, call: Call, server: Server, served: Served) -> None:
        began, request, vllm = time.monotonic(), call.request, served.vllm is not None
        model = served.models[request.arm]
        prompt, first = request.prompt, served.first
        body = fields(self.config, model, prompt, request.seed, vllm=vllm, first=first)
        body["extra_body"] |= held_to(next(a.grammar for a in self.arms if a.name == request.arm))
        heard = self._heard if call.tries == 0 else lambda: None
        try:
            answer = await wire.ask(server.client, self.config, body, heard)
            server.failures, server.answered_at, self.silent_since = 0, time.monotonic(), None
            state.grow(server, self.config.max_concurrency)
            self.done(state.complete(call, began, answer, self.config, served.max_model_len))
        except FaultError as fault:
            self._failed(call, server, fault, began)
        finally:
            server.in_flight -= 1
            self._dispatch()

    def _heard(self) -> None:
        """A first try's answer has begun. A later try's may break off every time."""
        self.silent_since = None

    def _failed(self, call: Call, server: Server, fault: FaultError, began: float) -> None:
        """Decide what a failure means for the request, the server and the run."""
        if fault.kind == "refused":
            self._give_up(call, f"the server refuses it: {fault.words}", too_long=fault.too_long)
            return
        if fault.kind == "forbidden" and fault.code != 403:
            self._die(_key_refused(server, fault))
            return
        setattr(self.counts, fault.kind, getattr(self.counts, fault.kind) + 1)
        call.tries += 1
        now, patience = time.monotonic(), self.config.server_patience_s
        if why := state.blame(call, server, fault, now, patience):
            self.note(f"{server.url}: {call.request.id}: {why}: {fault.words}")
            self._give_up(call, f"{why}: {fault.words}")
            return
        # A server that answers stays in service and only gets fewer requests.
        silent = server.limit < 2 or server.answered_at < server.halved_at
        before = server.limit
        if fault.kind in ("busy", "timeout") and state.halve(server, began, now):
            self.note(f"{server.url}: {fault.words}; limit {before:.0f} -> {server.limit:.0f}")
        if fault.kind != "busy" or silent:
            self._leave_alone(server, now, state.count_failure(server, began, now))
        if fault.kind in ("unreachable", "missing") and server.served is not None:
            self.note(f"{server.url}: out of service: {fault.words}")
            server.served = None
            self._spawn(self._revive(server))
        if (self._silent_too_long() or fault.kind == "forbidden") and server.served is not None:
            self._have_vouched(server)
        self._again(call, server, fault, now)

    def _give_up(self, call: Call, words: str, *, too_long: bool = False) -> None:
        completion = Completion(call.request.id, error=words)
        self.done(Done(completion, call.request.arm, too_long))

    def _again(self, call: Call, server: Server, fault: FaultError, now: float) -> None:
        """Put a request back; at once if it only needs another server or a pause."""
        if fault.wait_s is not None:
            # Some send 0, which would make us ask as fast as they can answer.
            rest = min(max(fault.wait_s, state.pause(1)), self.config.server_patience_s)
            self._leave_alone(server, now, rest)
        if fault.wait_s is not None or server.served is None:
            self._rejoin(call)
        else:
            asyncio.get_running_loop().call_later(state.pause(call.tries), self._rejoin, call)

    def _rejoin(self, call: Call) -> None:
        self.waiting.appendleft(call)  # it is the oldest
        self._dispatch()

    def _leave_alone(self, server: Server, now: float, seconds: float) -> None:
        if seconds <= 0:
            return
        server.free_at = max(server.free_at, now + seconds)
        asyncio.get_running_loop().call_later(seconds + 0.001, self._dispatch)

    async def _revive(self, server: Server) -> None:
        """Try a server again until it passes the canary; it then starts with a small limit."""
        tries = 0
        while not self.dead:
            tries += 1
            await asyncio.sleep(state.pause(tries))
            try:
                await self._prove(server)
            except FaultError as fault:
                if not self._silent_too_long():
                    continue
                if other := next((s for s in self.servers if s.served is not None), None):
                    self._have_vouched(other)
                    continue
                self._die_of_silence(server, fault)
            except EngineError as error:
                self._die(error)
            else:
                self._dispatch()
            return

    def _have_vouched(self, server: Server) -> None:
        if not self.vouching:
            self.vouching = True
            self._spawn(self._vouch(server))

    async def _vouch(self, server: Server) -> None:
        """Before failures end everything: check whether a server in service works."""
        try:
            await self._asked_for_proof(server)
        except FaultError as fault:
            if fault.kind == "forbidden":
                self._die(_key_refused(server, fault))
            elif self._silent_too_long():
                self._die_of_silence(server, fault)
        except EngineError as error:
            self._die(error)
        else:
            if self._silent_too_long():
                server.vouched_at, self.silent_since = time.monotonic(), None
            self.note(f"{server.url}: failures, but it has passed the canary again")
        finally:
            self.vouching = False

    async def _prove(self, server: Server) -> None:
        """Run the canary on a server and take it into service with a small limit."""
        served = await self._asked_for_proof(server)
        server.limit = min(float(state.FIRST_LIMIT), float(self.config.max_concurrency))
        server.climbing, server.failures, server.served = True, 0, served
        named = ", ".join(f"{arm}: {model}" for arm, model in served.models.items())
        self.note(f"{server.url}: in service, vLLM {served.vllm}, {named}; by {served.canary}")

    async def _asked_for_proof(self, server: Server) -> Served:
        seconds = min(PROVE_S, self.config.request_timeout_s)
        config = self.config.model_copy(update={"request_timeout_s": seconds})
        served = await prepare(server.client.with_options(timeout=seconds), config, self.arms)
        self.begun = self.begun or served
        hold_to(self.begun, served, server.url)
        server.proved_at = time.monotonic()
        return served

    def _silent_too_long(self) -> bool:
        """Record a failure; returns whether there were only failures for `server_patience_s`."""
        now = time.monotonic()
        if self.silent_since is None:
            self.silent_since = now
        return now - self.silent_since >= self.config.server_patience_s

    def _die_of_silence(self, server: Server, fault: FaultError) -> None:
        last = f"{server.url}: {fault.words}{HINTS.get(fault.kind, '')}"
        msg = f"the engine died: no answer for {self._patience}, at last {last}"
        self._die(EngineDiedError(msg))

    @property
    def _patience(self) -> str:
        return f"{self.config.server_patience_s:g} s (server_patience_s)"

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
            self._die(defect)  # our own failure, which must not look like a silent server


def _key_refused(server: Server, fault: FaultError) -> EngineError:
    return EngineError(f"{server.url}: {fault.words}; it no longer accepts the key")
