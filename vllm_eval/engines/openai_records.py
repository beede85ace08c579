"""What is kept of a server and of a request on its way, and how an answer becomes a completion."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.records import Completion

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from vllm_eval.config import Config
    from vllm_eval.engines.openai_start import Served
    from vllm_eval.engines.openai_wire import Answer
    from vllm_eval.records import Request

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
class Job:
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


def complete(job: Job, began: float, answer: Answer, config: Config) -> Done:
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
    return Done(completion, job.request.arm, too_long=cut)


def pause(tries: int) -> float:
    """Seconds before the next try: doubled each time, and spread, so that not all come at once."""
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
    return longest * random.uniform(0.5, 1.0)
