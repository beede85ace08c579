"""Where a run's time and tokens went, and what each attempt was worth; from counted attempts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vllm_eval.diagnose.survey import ArmTally, Spans, Survey

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
    """One arm's attempts, or those of all arms together, as far as this run asked them."""

    attempts: int
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those taken from the prefix cache."""
    output_tokens: int
    retry_attempts: int
    retry_output_tokens: int
    queued: Percentiles | None
    """Submission to first scheduling; None if nothing was timed; so for the next three."""
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


@dataclass(frozen=True, slots=True)
class AttemptScores:
    """All attempts of one arm with the same number."""

    attempt: int
    """Counted from 1."""
    made: int
    valid: int
    valid_share: float
    """Of those made."""
    mean: float | None
    """Score of the valid ones."""
    valid_by_then: float
    """Share of all answers that were valid after at most so many attempts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What some attempts took, as far as this run asked them."""

    attempts: int
    output_tokens: int
    seconds: float
    """Summed over the attempts; they ran side by side, so the run took less."""


@dataclass(frozen=True, slots=True)
class ArmAttempts:
    """Score and cost of one arm by number of the attempt; over answers, not over cases."""

    by_attempt: tuple[AttemptScores, ...]
    all: Cost
    retries: Cost
    """Every attempt but the first."""
    counts: Literal["last"] = "last"
    """The attempt that makes the outcome."""


def take_timing(survey: Survey) -> Timing:
    """Latencies and throughput, over all sessions of a run.

    Attempts that never reached the engine (a refused prompt) count, but are not timed. Those copied
    from another run do neither.
    """
    return Timing(
        generation_s=survey.seconds,
        first_answer_s=min(survey.spans.end, default=None),
        all=_sum_up(list(survey.arms.values())),
        arms={arm: _sum_up([tally]) for arm, tally in survey.arms.items()},
        over_time=_over_time(survey.spans),
    )


def timing_to_json(timing: Timing, sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the journal tells, and what only the processes knew that came to their end.

    Starts, grading and wall time are sums over these, memory is the most of any.
    """
    sums = ("engine_load_s", "grading_s", "total_s")
    peaks = ("peak_host_mib", "peak_device_mib")
    ended = [{"grading_s": s.get("judging_s"), **s} for s in sessions]  # its name before
    known = {key: [s[key] for s in ended if s.get(key) is not None] for key in sums + peaks}
    attempts, tokens, seconds = timing.all.attempts, timing.all.output_tokens, timing.generation_s
    return {
        "sessions": len(sessions),
        **{key: sum(known[key]) if known[key] else None for key in sums},
        **{key: max(known[key], default=None) for key in peaks},
        "attempts": attempts,
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / seconds if seconds else 0.0,
        "requests_per_s": attempts / seconds if seconds else 0.0,
        **asdict(timing),
    }


def take_attempts(tally: ArmTally) -> ArmAttempts:
    """Scores and costs of one arm by number of the attempt."""
    answers = max(row.made for row in tally.numbers.values()) + tally.unanswered
    every, again, rows, valid = tally.spent(), tally.spent(2), [], 0
    for number, row in sorted(tally.numbers.items()):
        valid += row.valid
        mean = row.score / row.valid if row.valid else None
        share, by_then = row.valid / row.made, valid / answers
        rows.append(AttemptScores(number, row.made, row.valid, share, mean, by_then))
    return ArmAttempts(
        by_attempt=tuple(rows),
        all=Cost(every.made, every.output_tokens, every.seconds),
        retries=Cost(again.made, again.output_tokens, again.seconds),
    )


def percentiles(seconds: Sequence[float]) -> Percentiles | None:
    """Median, 90th and 99th percentile; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    ranks = (max(0, math.ceil(share * len(ordered)) - 1) for share in (0.5, 0.9, 0.99))
    return Percentiles(*(ordered[rank] for rank in ranks))


def _sum_up(tallies: Sequence[ArmTally]) -> ArmTiming:
    every, again = ([tally.spent(first) for tally in tallies] for first in (1, 2))
    seconds = {
        name: percentiles([value for tally in tallies for value in getattr(tally, name)])
        for name in ("queued", "ttft", "itl", "e2e")
    }
    return ArmTiming(
        attempts=sum(row.made for row in every),
        prompt_tokens=sum(tally.prompt_tokens for tally in tallies),
        cached_tokens=sum(tally.cached_tokens for tally in tallies),
        output_tokens=sum(row.output_tokens for row in every),
        retry_attempts=sum(row.made for row in again),
        retry_output_tokens=sum(row.output_tokens for row in again),
        **seconds,
    )


def _over_time(spans: Spans) -> Throughput:
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
