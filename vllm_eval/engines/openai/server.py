"""What is kept of a server and of a request on its way, and how an answer becomes a completion."""

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
"""Failures one after the other for which a server is not yet left alone."""
ALONE = 5
"""So often a request may fail on servers that answer others meanwhile; then it is to blame."""

FIRST_LIMIT = 32
"""Requests a server is given at first."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0


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
    proved_at: float = 0.0
    """When it last proved its arms."""
    vouched_at: float = 0.0
    """When it last did so after nothing but failures for as long as is put up with."""
    failed_at: float = 0.0
    failures: int = 0
    """Since its last answer; those of requests that were on their way together count as one."""


@dataclass(slots=True)
class Call:
    """A request on its way to an answer."""

    request: Request
    queued_at: float
    tries: int = 0
    failed_at: float = 0.0
    alone: int = 0
    """Failed tries since the last of which the server has answered others."""
    busy_since: float | None = None
    """When it was first turned away as too much."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a request."""

    completion: Completion
    arm: str
    too_long: bool = False
    """Whether its prompt is to blame, and would be again."""


@dataclass(slots=True)
class Counts:
    """What was sent again, by cause: no attempt of the model's, and never counted as one."""

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


def complete(call: Call, began: float, answer: Answer, config: Config) -> Done:
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
    return Done(completion, call.request.arm, too_long=cut)


def pause(tries: int) -> float:
    """Seconds before the next try: doubled each time, and spread, so that not all come at once."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
    return longest * random.uniform(0.5, 1.0)


def choose(servers: Sequence[Server], now: float) -> Server | None:
    """The server with the most room, measured by its limit; None where none has any."""
    room = [
        (server.in_flight / server.limit, number)
        for number, server in enumerate(servers)
        if server.served is not None
        and server.free_at <= now
        and server.in_flight < int(server.limit)
    ]
    return servers[min(room)[1]] if room else None


def grow(server: Server, most: int) -> None:
    """Allow a server more after an answer."""
    step = 1.0 if server.climbing else 1.0 / server.limit
    server.limit = min(server.limit + step, float(most))


def cut(server: Server, began: float, now: float) -> bool:
    """Halve the limit, once for all requests that were on their way together; whether it was."""
    if began < server.cut_at:
        return False
    server.limit = max(1.0, server.limit / 2)
    server.climbing, server.cut_at = False, now
    return True


def count_failure(server: Server, began: float, now: float) -> float:
    """Seconds to leave a server alone, ever longer: one that fails at once has always room."""
    if began <= server.failed_at:
        return 0.0
    server.failed_at, server.failures = now, server.failures + 1
    return pause(server.failures - TOLERATED) if server.failures > TOLERATED else 0.0


def blame(call: Call, server: Server, fault: FaultError, now: float, patience: float) -> str | None:
    """Count a failed try; why the request itself is to blame for it by now, or None.

    What a server has proved tells as much as an answer to others where the fault names this
    request; a cut connection may be a server that dies of what it is given.
    """
    since, before = max(call.failed_at, call.queued_at), call.failed_at
    answered = server.answered_at > since
    call.failed_at = now
    if fault.kind == "busy":
        call.busy_since = now if call.busy_since is None else call.busy_since
        answered = answered and now - call.busy_since > patience  # others may have been quicker
    elif fault.kind == "forbidden":  # a key that is no longer taken looks the same at first
        answered = False
        if before and server.proved_at > before:
            return "the server takes the key and forbids it"
    elif fault.kind in ("failed", "missing"):
        answered = answered or server.proved_at > since
    call.alone += answered and fault.kind != "unreachable"
    if call.alone >= ALONE:
        return f"failed {ALONE} times while the server answered others"
    if call.tries >= ALONE and server.vouched_at > call.queued_at:
        return f"failed {call.tries} times, and the server is well"
    return None
