"""How much a server is given, when it is left alone, and when a request is to blame.

A limit grows with every answer and is halved when the server says it is too much (additive
increase, multiplicative decrease; Chiu and Jain 1989). Nothing here waits or sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_eval.engines.openai_records import pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_eval.engines.openai_records import Job, Server
    from vllm_eval.engines.openai_wire import FaultError

TOLERATED = 2
"""Failures one after the other for which a server is not yet left alone."""
ALONE = 5
"""So often a request may fail on servers that answer others meanwhile; then it is to blame."""


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


def blame(job: Job, server: Server, fault: FaultError, now: float, patience: float) -> str | None:
    """Count a failed try; why the request itself is to blame for it by now, or None.

    What a server has proved tells as much as an answer to others where the fault names this
    request; a cut connection may be a server that dies of what it is given.
    """
    since, before = max(job.failed_at, job.queued_at), job.failed_at
    answered = server.answered_at > since
    job.failed_at = now
    if fault.kind == "busy":
        job.busy_since = now if job.busy_since is None else job.busy_since
        answered = answered and now - job.busy_since > patience  # others may have been quicker
    elif fault.kind == "forbidden":  # a key that is no longer taken looks the same at first
        answered = False
        if before and server.proved_at > before:
            return "the server takes the key and forbids it"
    elif fault.kind in ("failed", "missing"):
        answered = answered or server.proved_at > since
    job.alone += answered and fault.kind != "unreachable"
    if job.alone >= ALONE:
        return f"failed {ALONE} times while the server answered others"
    if job.tries >= ALONE and server.vouched_at > job.queued_at:
        return f"failed {job.tries} times, and the server is well"
    return None
