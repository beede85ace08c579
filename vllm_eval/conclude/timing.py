"""Where a run's time and tokens went: latencies and throughput, in one pass over the attempts."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllm_eval.records import Attempt

MOST_BINS = 60
"""Points of the throughput curve at most."""
NOTE = (
    "all arms share one engine, so an arm's latencies hold the others' load; in vLLM's running "
    "batch a base served beside adapters is slower than a base alone"
)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; nearest-rank percentiles (Hyndman & Fan 1996, definition 1)."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ArmTiming:
    """One arm's attempts, or those of all arms together."""

    attempts: int
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those taken from the prefix cache."""
    output_tokens: int
    retry_attempts: int
    retry_output_tokens: int
    queued: Percentiles | None
    """Submission to first scheduling; None where nothing was timed, as are the others."""
    ttft: Percentiles | None
    """Submission to first token."""
    itl: Percentiles | None
    """Inter-token latency: an answer's decode time over its tokens but one, so a mean each."""
    e2e: Percentiles | None
    """Submission to last token."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was produced in each stretch of `width_s` seconds since the evaluation began."""

    width_s: float
    output_tokens_per_s: tuple[float, ...]
    """An answer's tokens are spread evenly from its first to its last."""
    requests_per_s: tuple[float, ...]
    """Attempts that finished."""
    retries_per_s: tuple[float, ...]
    """Of those, the ones that were not a first attempt."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All attempts of a run."""

    generation_s: float
    """From the first submission to the last completion, without the time between sessions."""
    first_answer_s: float | None
    """From the first submission to the first answer; None without any."""
    all: ArmTiming
    arms: Mapping[str, ArmTiming]
    over_time: Throughput
    note: str = NOTE


def take_timing(attempts: Iterable[Attempt]) -> Timing:
    """Latencies and throughput, over all sessions of a run, with a few numbers an attempt kept.

    Attempts that never reached the engine (a refused prompt) count, but are not timed.
    """
    tallies: dict[str, _Tally] = {}
    spans, ended = _Spans(), 0.0
    for attempt in attempts:
        ended = max(ended, attempt.finished_at)
        _count(tallies.setdefault(attempt.arm, _Tally()), attempt)
        _note(spans, attempt)
    return Timing(
        generation_s=ended,
        first_answer_s=min(spans.end, default=None),
        all=_sum_up(list(tallies.values())),
        arms={arm: _sum_up([tally]) for arm, tally in tallies.items()},
        over_time=_over_time(spans),
    )


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """Median, 90th and 99th percentile; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    ranks = (max(0, math.ceil(share * len(ordered)) - 1) for share in (0.5, 0.9, 0.99))
    return Percentiles(*(ordered[rank] for rank in ranks))


def _doubles() -> array[float]:
    return array("d")


@dataclass(slots=True)
class _Tally:
    attempts: int = 0
    prompt: int = 0
    cached: int = 0
    output: int = 0
    retries: int = 0
    retry_output: int = 0
    queued: array[float] = field(default_factory=_doubles)
    ttft: array[float] = field(default_factory=_doubles)
    itl: array[float] = field(default_factory=_doubles)
    e2e: array[float] = field(default_factory=_doubles)


@dataclass(slots=True)
class _Spans:
    """Of every attempt the engine answered: first token, end, tokens, whether it is a retry."""

    first: array[float] = field(default_factory=_doubles)
    end: array[float] = field(default_factory=_doubles)
    tokens: array[float] = field(default_factory=_doubles)
    retry: array[float] = field(default_factory=_doubles)


def _count(tally: _Tally, attempt: Attempt) -> None:
    tally.attempts += 1
    tally.prompt += attempt.prompt_tokens
    tally.cached += attempt.cached_tokens
    tally.output += attempt.output_tokens
    if attempt.attempt > 1:
        tally.retries += 1
        tally.retry_output += attempt.output_tokens
    if attempt.total_s > 0:
        tally.queued.append(attempt.queued_s)
        tally.ttft.append(attempt.ttft_s)
        tally.e2e.append(attempt.total_s)
        if attempt.output_tokens > 1:
            tally.itl.append((attempt.total_s - attempt.ttft_s) / (attempt.output_tokens - 1))


def _note(spans: _Spans, attempt: Attempt) -> None:
    if attempt.status == "error":
        return
    spans.first.append(max(0.0, attempt.finished_at - attempt.total_s + attempt.ttft_s))
    spans.end.append(attempt.finished_at)
    spans.tokens.append(attempt.output_tokens)
    spans.retry.append(attempt.attempt > 1)


def _sum_up(tallies: Sequence[_Tally]) -> ArmTiming:
    def over(name: str) -> Percentiles | None:
        return percentiles([value for tally in tallies for value in getattr(tally, name)])

    return ArmTiming(
        attempts=sum(tally.attempts for tally in tallies),
        prompt_tokens=sum(tally.prompt for tally in tallies),
        cached_tokens=sum(tally.cached for tally in tallies),
        output_tokens=sum(tally.output for tally in tallies),
        retry_attempts=sum(tally.retries for tally in tallies),
        retry_output_tokens=sum(tally.retry_output for tally in tallies),
        queued=over("queued"),
        ttft=over("ttft"),
        itl=over("itl"),
        e2e=over("e2e"),
    )


def _over_time(spans: _Spans) -> Throughput:
    end = max(spans.end, default=0.0)
    if end <= 0.0:
        return Throughput(0.0, (), (), ())
    count = min(MOST_BINS, max(1, len(spans.end)))
    width = end / count
    tokens, requests, retries = ([0.0] * count for _ in range(3))
    for first, last, made, again in zip(
        spans.first, spans.end, spans.tokens, spans.retry, strict=True
    ):
        place = min(count - 1, int(last / width))
        requests[place] += 1 / width
        retries[place] += again / width
        for number, share in _shares(first, last, width, count):
            tokens[number] += made * share / width
    return Throughput(width, tuple(tokens), tuple(requests), tuple(retries))


def _shares(first: float, last: float, width: float, count: int) -> Iterable[tuple[int, float]]:
    """Which stretches [first, last] touches, and the share of it that lies in each."""
    begin, end = (min(count - 1, int(at / width)) for at in (first, last))
    if begin == end or last <= first:
        yield end, 1.0
        return
    for number in range(begin, end + 1):
        low = first if number == begin else number * width
        high = last if number == end else (number + 1) * width
        yield number, (high - low) / (last - first)
