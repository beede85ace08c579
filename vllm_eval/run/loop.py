"""The loop: submit, poll, grade, re-queue, record. One batch, no barrier between rounds."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_eval.engines.protocol import Engine
from vllm_eval.errors import EngineError
from vllm_eval.records import (
    BASELINE,
    TOO_LONG,
    Arm,
    Attempt,
    Begun,
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
ENGINE_ERROR = "engine_error"
"""Reason of an attempt that failed in the engine, not in the model."""
MOST_ERRORS = 3
"""Engine errors after which an answer is given up; they take nothing from the model's attempts."""
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
    """Most attempts of the model per arm, case and sample, at least 1."""
    seed: int
    limit: Callable[[], float] = lambda: math.inf
    """How many of the cases may be begun by now. It must grow once all of these are complete."""
    slots: int | None = None
    """How many adapters may have requests in flight at a time, at least 1; None for all."""


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
    after each poll, and ends the evaluation by its `stopping`, which `record` may set.

    Raises:
        EngineError: the engine died, or lost requests.
    """
    start = time.monotonic() - progress.seconds
    held: Counter[str] = Counter()
    fresh = _pending(job, ledger, held)
    in_flight: dict[str, tuple[Case, Request]] = {}
    retries: deque[tuple[Case, Request]] = deque()
    while True:
        room = engine.capacity - len(in_flight)
        batch, refused = _next_batch(engine, room, retries, fresh, progress.seconds)
        record(refused)
        _count(progress, refused)
        _release(job, held, refused)
        if progress.stopping:
            return
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
        _release(job, held, attempts)
        progress.running = len(in_flight) + len(retries)
        running = itertools.chain(retries, in_flight.values())
        progress.retries = sum(
            request.attempt - request.engine_errors > 1 for _, request in running
        )
        on_progress(progress)


def _next_batch(
    engine: Engine,
    room: int,
    retries: deque[tuple[Case, Request]],
    fresh: Iterator[tuple[Case, Request] | None],
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


def _pending(job: Job, ledger: Ledger, held: Counter[str]) -> Iterator[tuple[Case, Request] | None]:
    """Each case's next attempts, with the arms side by side so that they share a batch.

    None where the next one may not be begun yet. `held` counts the unfinished requests of each
    model: they are added here, and taken out by `_release`.

    Where not all adapters have a slot, they take turns: all cases at once, or blocks of those that
    may be begun by now, so that an adapter is seldom swapped.
    """
    models = list(dict.fromkeys(arm.model for arm in job.arms))
    if not job.slots or len({*models} - {BASELINE}) <= job.slots:
        for place, case in enumerate(job.cases()):
            while place >= job.limit():
                yield None
            yield from _of_case(job, ledger, held, case, job.arms)
        return
    begin, end = 0, 0.0
    while end < math.inf:
        while held or job.limit() <= begin:  # or blocks would be as small as the limit's steps
            yield None
        end = job.limit()
        begun = yield from _in_turns(job, ledger, held, models, begin, end)
        if not begun:
            return
        begin += begun
        models.reverse()  # the last ones are still in their slots


def _in_turns(
    job: Job, ledger: Ledger, held: Counter[str], models: Sequence[str], begin: int, end: float
) -> Generator[tuple[Case, Request] | None, None, int]:
    """The same for the cases from `begin` to `end`; returns how many of them there are.

    A model has a slot until all these cases are answered, and the next one begins as soon as one
    is free. Those with a slot go through the cases side by side. The base needs none.
    """
    waiting, begun = deque(sorted(models, key=lambda model: model != BASELINE)), dict[str, int]()
    passes: dict[str, Iterator[Case]] = {}
    while waiting or passes:
        taken = {*passes, *held} - {BASELINE}
        while waiting and (waiting[0] == BASELINE or len(taken) < (job.slots or 1)):
            taken |= {model := waiting.popleft()} - {BASELINE}
            stop = None if end == math.inf else math.ceil(end)
            passes[model], begun[model] = itertools.islice(job.cases(), begin, stop), 0
        if not passes:
            yield None
            continue
        model = min(passes, key=lambda model: begun[model])
        if (case := next(passes[model], None)) is None:
            del passes[model]
            continue
        begun[model] += 1
        arms = [arm for arm in job.arms if arm.model == model]
        yield from _of_case(job, ledger, held, case, arms)
    return max(begun.values())


def _of_case(
    job: Job, ledger: Ledger, held: Counter[str], case: Case, arms: Sequence[Arm]
) -> Iterator[tuple[Case, Request]]:
    """What these arms still have to answer of a case."""
    first = job.task.prompt(case)
    for sample, arm in itertools.product(range(job.samples), arms):
        key = (arm.name, case.id, sample)
        if key in ledger.done:
            continue
        begun = ledger.begun.get(key) or Begun(0, None)
        prompt = job.task.prompt(case, begun.problem) if begun.problem else first
        held[arm.model] += 1
        yield case, _request(job, case, arm.name, sample, begun, prompt)


def _release(job: Job, held: Counter[str], attempts: Sequence[Attempt]) -> None:
    """Take finished requests out of `held`; a model without any gives up its slot."""
    models = {arm.name: arm.model for arm in job.arms}
    held.subtract(models[attempt.arm] for attempt in attempts if attempt.final)
    for model in [model for model, count in held.items() if not count]:
        del held[model]


def _request(job: Job, case: Case, arm: str, sample: int, begun: Begun, prompt: str) -> Request:
    """The next one after what has `begun`; the same attempt of the model has the same seed."""
    attempt = begun.attempts + 1
    return Request(
        id=f"{case.line}/{arm}/{sample}/{attempt}",
        arm=arm,
        case_id=case.id,
        sample=sample,
        attempt=attempt,
        prompt=prompt,
        seed=derive_seed(job.seed, case.id, sample, attempt - begun.engine_errors),
        engine_errors=begun.engine_errors,
    )


def _conclude(
    job: Job, engine: Engine, case: Case, request: Request, done: Completion, now: float
) -> tuple[Attempt, Request | None]:
    """Grade a completion; returns the next attempt's request, if any."""
    grade = UNANSWERED if done.error is not None else job.task.grade(case, done.text)
    attempt = _attempt(case, request, done, grade, ENGINE_ERROR, now)
    prompt = request.prompt
    if attempt.uncounted:
        ended = attempt.engine_errors >= MOST_ERRORS
    else:
        ended = attempt.status == "success" or attempt.number >= job.attempts
        if not ended:
            prompt = job.task.prompt(case, grade.problem)
            ended = engine.refusal(prompt) is not None  # too long with the reminder: this counts
    if ended:
        return attempt, None
    begun = Begun(attempt.attempt, grade.problem, attempt.engine_errors)
    retry = _request(job, case, request.arm, request.sample, begun, prompt)
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
        engine_errors=request.engine_errors + (done.error is not None and failure == ENGINE_ERROR),
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
