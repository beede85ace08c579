"""The loop: submit, poll, grade, re-queue, record. One batch, no barrier between rounds."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_eval.engines.protocol import Engine
from vllm_eval.errors import EngineError
from vllm_eval.records import (
    TOO_LONG,
    Arm,
    Attempt,
    Case,
    Completion,
    Grade,
    Ledger,
    Problem,
    Progress,
    Request,
    Status,
)
from vllm_eval.tasks import Task

UNANSWERED = Grade(None, None, {})
PLACE = ("block", "line", "column", "key")
"""What an attempt takes unchanged from its answer's problem."""
MEASURED = ("prompt_tokens", "output_tokens", "cached_tokens", "queued_s", "ttft_s", "total_s")
"""What it takes unchanged from its completion."""

POLL_S = 0.5
"""Seconds to wait for a completion before refreshing the display and checking for a stop."""


@dataclass(frozen=True, slots=True)
class Job:
    """The work for the engine."""

    task: Task
    arms: Sequence[Arm]
    cases: Callable[[], Iterable[Case]]
    """Starts a new pass over the cases."""
    samples: int
    """Samples per case."""
    attempts: int
    """Most attempts per arm, case and sample, at least 1."""
    seed: int


def evaluate(
    job: Job,
    engine: Engine,
    ledger: Ledger,
    record: Callable[[Sequence[Attempt]], None],
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    """Answer and grade what is pending; every attempt is recorded before the next poll.

    A prompt that the engine can never answer becomes an outcome instead of a request. Prompts are
    built and measured as their turn comes, while the engine works on earlier ones. Memory holds
    the requests in flight, not the cases.

    `record` writes attempts to the journal; `progress` is updated in place, shown by `on_progress`
    after each poll, and ends the evaluation by its `stopping`.

    Raises:
        EngineError: the engine died, or lost requests.
    """
    start = time.monotonic() - progress.seconds
    fresh = _pending(job, ledger)
    in_flight: dict[str, tuple[Case, Request]] = {}
    retries: deque[tuple[Case, Request]] = deque()
    while not progress.stopping:
        room = engine.capacity - len(in_flight)
        batch, refused = _next_batch(engine, room, retries, fresh, progress.seconds)
        record(refused)
        _count(progress, refused)
        in_flight |= {request.id: (case, request) for case, request in batch}
        engine.submit([request for _, request in batch])
        if not in_flight:
            if refused:
                continue  # there may be more of these
            return
        completions = engine.poll(POLL_S)
        if not completions and not engine.busy:
            raise EngineError(f"the engine lost {len(in_flight)} requests: it has none in flight")
        progress.seconds = time.monotonic() - start
        attempts = []
        for completion in completions:
            case, request = in_flight.pop(completion.request_id)
            attempt, retry = _conclude(job, engine, case, request, completion, progress.seconds)
            attempts.append(attempt)
            if retry is not None:
                retries.append((case, retry))
        progress.grading_s += time.monotonic() - start - progress.seconds
        record(attempts)
        _count(progress, attempts)
        progress.running = len(in_flight) + len(retries)
        progress.retries = len(retries) + sum(r.attempt > 1 for _, r in in_flight.values())
        on_progress(progress)


def _next_batch(
    engine: Engine,
    room: int,
    retries: deque[tuple[Case, Request]],
    fresh: Iterator[tuple[Case, Request]],
    now: float,
) -> tuple[list[tuple[Case, Request]], list[Attempt]]:
    """Up to `room` requests to submit, and the outcomes of those that can never be answered."""
    batch: list[tuple[Case, Request]] = []
    refused: list[Attempt] = []
    while len(batch) + len(refused) < room:
        # Retries first: their cases are the oldest, and the run cannot end before them.
        item = retries.popleft() if retries else next(fresh, None)
        if item is None:
            break
        case, request = item
        why = engine.refusal(request.prompt) if request.attempt == 1 else None
        if why is None:
            batch.append(item)
        else:
            done = Completion(request.id, error=why)
            refused.append(_attempt(case, request, done, UNANSWERED, TOO_LONG, now))
    return batch, refused


def derive_seed(seed: int, case_id: str, sample: int, attempt: int) -> int:
    """A request's own seed, in [0, 2**31), independent of its place in a batch."""
    key = f"{seed}|{case_id}|{sample}|{attempt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) & 0x7FFF_FFFF


def _pending(job: Job, ledger: Ledger) -> Iterator[tuple[Case, Request]]:
    """Each case's next attempts, with the arms side by side so that they share a batch."""
    for case in job.cases():
        first = job.task.prompt(case)
        for sample, arm in itertools.product(range(job.samples), job.arms):
            key = (arm.name, case.id, sample)
            if key in ledger.done:
                continue
            begun = ledger.begun.get(key)
            prompt = job.task.prompt(case, begun.problem) if begun else first
            attempt = begun.attempts + 1 if begun else 1
            yield case, _request(job, case, arm.name, sample, attempt, prompt)


def _request(job: Job, case: Case, arm: str, sample: int, attempt: int, prompt: str) -> Request:
    return Request(
        id=f"{case.line}/{arm}/{sample}/{attempt}",
        arm=arm,
        case_id=case.id,
        sample=sample,
        attempt=attempt,
        prompt=prompt,
        seed=derive_seed(job.seed, case.id, sample, attempt),
    )


def _conclude(
    job: Job, engine: Engine, case: Case, request: Request, done: Completion, now: float
) -> tuple[Attempt, Request | None]:
    """Grade a completion; returns the next attempt's request, if any."""
    grade = UNANSWERED if done.error is not None else job.task.grade(case, done.text)
    attempt = _attempt(case, request, done, grade, "engine_error", now)
    if attempt.status == "success" or request.attempt >= job.attempts:
        return attempt, None
    prompt = job.task.prompt(case, grade.problem)
    if engine.refusal(prompt) is not None:  # too long with the reminder, so this answer counts
        return attempt, None
    retry = _request(job, case, request.arm, request.sample, request.attempt + 1, prompt)
    return replace(attempt, final=False), retry


def _attempt(
    case: Case, request: Request, done: Completion, grade: Grade, failure: str, now: float
) -> Attempt:
    """The journal's line; `failure` is the reason if there is no answer."""
    problem = grade.problem
    status: Status = "format_error" if problem else "success"
    if done.error is not None:
        problem, status = Problem(failure, done.error), "error"
    unchanged: dict[str, Any] = {name: getattr(done, name) for name in MEASURED}
    unchanged |= {name: getattr(problem, name, None) for name in PLACE}
    return Attempt(
        arm=request.arm,
        concept_id=case.id,
        tier=case.tier,
        sample=request.sample,
        attempt=request.attempt,
        final=True,
        status=status,
        reason=problem.reason if problem else None,
        error=problem.message if problem else None,
        truncated=done.finish_reason == "length",
        score=grade.score,
        parts=grade.parts,
        seed=request.seed,
        finish_reason=done.finish_reason,
        finished_at=now,
        raw_response=done.text,
        **unchanged,
    )


def _count(progress: Progress, attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        progress.attempts += 1
        progress.output_tokens += attempt.output_tokens
        if attempt.final:
            progress.done += 1
            progress.valid += attempt.status == "success"
            progress.failed += attempt.status != "success"
