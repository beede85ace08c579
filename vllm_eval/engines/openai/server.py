"""The state of a server and of a request in flight; how an answer becomes a completion."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.config.settings import Config
from vllm_eval.engines.openai.start import Served
from vllm_eval.engines.openai.wire import Answer, FaultError
from vllm_eval.records import Completion, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TOLERATED = 2
"""Consecutive failures before a server is left alone."""
ALONE = 5
"""Failures after which a request is to blame, if servers answer others meanwhile."""

FIRST_LIMIT = 32
"""Initial limit of requests per server."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0


@dataclass(slots=True)
class Server:
    """One base URL."""

    url: str
    client: AsyncOpenAI
    limit: float
    """The most requests it gets at a time."""
    served: Served | None = None
    """None while it is out of service, until it passes the canary (again)."""
    in_flight: int = 0
    climbing: bool = True
    """Until the first sign of overload, the limit grows by one with every answer."""
    halved_at: float = 0.0
    """When the limit was last halved."""
    free_at: float = 0.0
    """It is left alone until then."""
    answered_at: float = 0.0
    proved_at: float = 0.0
    """When it last passed the canary."""
    vouched_at: float = 0.0
    """When it last did so after nothing but failures for `server_patience_s`."""
    failed_at: float = 0.0
    failures: int = 0
    """Since its last answer; failures of requests in flight together count once."""


@dataclass(slots=True)
class Call:
    """A request in flight."""

    request: Request
    queued_at: float
    tries: int = 0
    failed_at: float = 0.0
    alone: int = 0
    """Failed tries after which the server answered others."""
    busy_since: float | None = None
    """When it was first refused because of overload."""


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a request."""

    completion: Completion
    arm: str
    too_long: bool = False
    """Whether its prompt is to blame, and would fail again."""


@dataclass(slots=True)
class Counts:
    """What was sent again, by cause; never counted as an attempt of the model."""

    busy: int = 0
    failed: int = 0
    timeout: int = 0
    lost: int = 0
    unreachable: int = 0
    missing: int = 0
    forbidden: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, name) for name in self.__slots__)


def complete(
    call: Call, began: float, answer: Answer, config: Config, longest: int | None = None
) -> Done:
    """An answer as a completion; times are from submission. `longest`: the server's limit."""
    prompt, output = answer.tokens("prompt"), answer.tokens("completion")
    error, truncated = None, answer.finish_reason == "length" and 0 < output < config.max_new_tokens
    if truncated and longest is not None and prompt + config.max_new_tokens <= longest:
        error = (
            f"the server ended the answer at {output} of {config.max_new_tokens} tokens, by a "
            "limit of its own; start it with --generation-config vllm"
        )
    elif truncated:
        error = (
            f"the prompt's {prompt} tokens leave room for {output} of {config.max_new_tokens} for "
            "the answer; raise the server's --max-model-len or lower --max-new-tokens"
        )
    elif answer.finish_reason not in ("stop", "length", "repetition"):
        error = f"the server ended the request: {str(answer.finish_reason)[:100]}"
    completion = Completion(
        call.request.id,
        text=answer.text,
        finish_reason=answer.finish_reason,
        error=error,
        prompt_tokens=prompt,
        output_tokens=output or answer.chunks,
        cached_tokens=answer.cached_tokens,
        queued_s=began - call.queued_at,
        ttft_s=answer.first_at - call.queued_at,
        total_s=answer.last_at - call.queued_at,
    )
    return Done(completion, call.request.arm, too_long=truncated)


def pause(tries: int) -> float:
    """Seconds before the next try: doubled each time, and spread at random."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
    return longest * random.uniform(0.5, 1.0)


def choose(servers: Sequence[Server], now: float) -> Server | None:
    """The server with the most room relative to its limit; None if none has room."""
    ready = (server for server in servers if server.served is not None and server.free_at <= now)
    room = [server for server in ready if server.in_flight < int(server.limit)]
    return min(room, key=lambda server: server.in_flight / server.limit, default=None)


def grow(server: Server, most: int) -> None:
    """Raise a server's limit after an answer."""
    step = 1.0 if server.climbing else 1.0 / server.limit
    server.limit = min(server.limit + step, float(most))


def halve(server: Server, began: float, now: float) -> bool:
    """Halve the limit, once for all requests in flight together; returns whether it did."""
    if began < server.halved_at:
        return False
    server.limit = max(1.0, server.limit / 2)
    server.climbing, server.halved_at = False, now
    return True


def count_failure(server: Server, began: float, now: float) -> float:
    """Seconds to leave a server alone, longer each time: one that fails at once always has room."""
    if began <= server.failed_at:
        return 0.0
    server.failed_at, server.failures = now, server.failures + 1
    return pause(server.failures - TOLERATED) if server.failures > TOLERATED else 0.0


def blame(call: Call, server: Server, fault: FaultError, now: float, patience: float) -> str | None:
    """Count a failed try; returns why the request itself is to blame by now, or None.

    If the fault names this request, a passed canary counts like an answer to others. A lost
    connection may be a server that dies of what it is given.
    """
    since, before = max(call.failed_at, call.queued_at), call.failed_at
    answered = server.answered_at > since
    call.failed_at = now
    if fault.kind == "busy":
        call.busy_since = now if call.busy_since is None else call.busy_since
        answered = answered and now - call.busy_since > patience  # others may have been quicker
    elif fault.kind == "forbidden":  # a key that is no longer accepted looks the same at first
        answered = False
        if before and server.proved_at > before:
            return "the server accepts the key but forbids the request"
    elif fault.kind in ("failed", "missing"):
        answered = answered or server.proved_at > since
    call.alone += answered and fault.kind != "unreachable"
    if call.alone >= ALONE:
        return f"failed {ALONE} times while the server answered others"
    if call.tries >= ALONE and server.vouched_at > call.queued_at:
        return f"failed {call.tries} times, but the server works"
    return None
