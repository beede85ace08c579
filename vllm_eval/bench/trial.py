"""One trial: the same work through an open engine in one way, timed.

Which answer is how long and which one fails follows from its request and the seed alone, so that no
order, batch or engine changes it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vllm_eval.bench.contestants import Way
from vllm_eval.engines.protocol import Engine
from vllm_eval.engines.vllm.engine import VllmEngine, _complete
from vllm_eval.errors import EngineError
from vllm_eval.inputs import cases
from vllm_eval.inputs.plan import Plan
from vllm_eval.preflight.slots import choose_slots
from vllm_eval.records import (
    Attempt,
    Begun,
    Case,
    Completion,
    Grade,
    Ledger,
    Problem,
    Progress,
    Request,
)
from vllm_eval.run.loop import Job, derive_seed, evaluate
from vllm_eval.store.journal import Journal
from vllm_eval.tasks import Task

if TYPE_CHECKING:
    from vllm import SamplingParams  # noqa: TID251  its type alone


FAILED = "\n[bench: counts as failed]"
PROBLEM = Problem("bench_forced", "the answer breaks the contract, as the benchmark requires")
"""The same for every forced failure, so that all retries have the same prompt."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for, apart from the cases."""

    least: int
    """Fewest tokens of an answer."""
    most: int
    """Most; lengths between the two are equally likely."""
    fail_rate: float = 0.0
    """Share of attempts that count as failed."""
    attempts: int = 1
    """Most attempts per arm and case."""
    seed: int = 42
    """Decides lengths and failures."""

    @property
    def varies(self) -> bool:
        """Whether answers differ in length."""
        return self.least < self.most

    def length(self, request: Request) -> int:
        """Tokens of the answer to `request`."""
        chance = _chance(f"length|{self.seed}", request)
        return self.least + int(chance * (self.most - self.least + 1))

    def fails(self, request: Request) -> bool:
        """Whether the answer to `request` counts as failed."""
        return _chance(f"verdict|{self.seed}", request) < self.fail_rate


WARM_CASES = 8
"""Enough to allocate every buffer and build every kernel."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one trial took and made."""

    seconds: float
    """Wall clock, from the first look at a prompt to the last answer kept."""
    cpu_s: float
    """Processor time of the worker's process; without an engine core in one of its own."""
    grading_s: float
    requests: int
    retries: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


def run_trial(
    plan: Plan, engine: Engine, way: Way, work: Work, folder: Path, *, warm: bool
) -> Trial:
    """Do the work once, or with `warm` the first few cases; the journal in `folder` is removed.

    `engine` is open and idle; it is a `MeasuredVllm` for the ways only vLLM has.

    Raises:
        EngineError: a request got no answer.
    """
    chosen = list(islice(cases.read_cases(plan.dataset), WARM_CASES if warm else None))
    wall, processor = time.monotonic(), time.process_time()
    if way == "generate":
        done, grading_s = _bare(plan, engine, chosen, work), 0.0  # type: ignore[arg-type]
    else:
        path = folder / "journal.jsonl"
        try:
            with closing(Journal(path)) as journal:
                done, grading_s = _ours(plan, engine, way, chosen, work, journal)
        finally:
            path.unlink(missing_ok=True)
            path.with_name(".lock").unlink(missing_ok=True)
    seconds, cpu_s = time.monotonic() - wall, time.process_time() - processor
    if lost := [attempt for attempt, error in done if error is not None]:
        msg = f"bench: {len(lost)} requests have no answer: {next(e for _, e in done if e)}"
        raise EngineError(msg)
    answers = [answer for answer, _ in done]
    first = len(chosen) * len(plan.arms)
    return Trial(
        seconds=seconds,
        cpu_s=cpu_s,
        grading_s=grading_s,
        requests=len(answers),
        retries=len(answers) - first,
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        output_tokens=sum(answer.output_tokens for answer in answers),
    )


def _ours(
    plan: Plan, engine: Engine, way: Way, chosen: Sequence[Case], work: Work, journal: Journal
) -> tuple[list[tuple[Attempt | Completion, str | None]], float]:
    """The loop of a run, with grading and journal."""
    known = {field.name: getattr(plan.task, field.name) for field in fields(plan.task)}
    task = ForcedTask(**known)
    job = Job(task, plan.arms, lambda: chosen, 1, work.attempts, plan.config.seed)
    job = replace(job, slots=choose_slots(plan).at_once)
    kept: list[Attempt] = []

    def record(attempts: Sequence[Attempt]) -> None:
        journal.append(attempts)
        kept.extend(attempts)

    progress = Progress(total=len(chosen) * len(plan.arms))
    forced = cast("Engine", ForcedEngine(engine, work))
    for part in _parts(job, way, kept):
        evaluate(part[0], forced, part[1], record, progress, lambda _: None)
    made = [one for one in kept if one.final or not one.uncounted]
    return [(one, one.error if one.status == "error" else None) for one in made], progress.grading_s


def _parts(job: Job, way: Way, kept: Sequence[Attempt]) -> Iterable[tuple[Job, Ledger]]:
    """The calls of the loop that make up a way; `kept` grows with each of them."""
    if way == "arms":
        for arm in job.arms:
            yield replace(job, arms=[arm]), Ledger(set(), {})
    elif way == "barrier":
        yield replace(job, attempts=1), Ledger(set(), {})
        for attempts in range(2, job.attempts + 1):
            last = {(a.arm, a.concept_id, a.sample): a for a in kept}
            failed = {key: a for key, a in last.items() if a.status == "format_error"}
            begun = {key: Begun(attempt.attempt, PROBLEM) for key, attempt in failed.items()}
            if not begun:
                return
            yield replace(job, attempts=attempts), Ledger(last.keys() - begun.keys(), begun)
    else:
        yield job, Ledger(set(), {})


def _bare(
    plan: Plan, engine: MeasuredVllm, chosen: Sequence[Case], work: Work
) -> list[tuple[Attempt | Completion, str | None]]:
    """One bare call per round; the work alone says what fails."""
    done: list[tuple[Attempt | Completion, str | None]] = []
    pending = [(case, arm.name) for case in chosen for arm in plan.arms]
    for attempt in range(1, work.attempts + 1):
        asked = [
            Request(
                id=f"{case.line}/{arm}/0/{attempt}",
                arm=arm,
                case_id=case.id,
                sample=0,
                attempt=attempt,
                prompt=plan.task.prompt(case, PROBLEM if attempt > 1 else None),
                seed=derive_seed(plan.config.seed, case.id, 0, attempt),
            )
            for case, arm in pending
        ]
        done += ((answer, answer.error) for answer in engine.generate(asked))
        pending = [pair for pair, one in zip(pending, asked, strict=True) if work.fails(one)]
        if not pending:
            break
    return done


class ForcedEngine:
    """An engine whose answers are marked as failed where the work says so."""

    def __init__(self, engine: Engine, work: Work) -> None:
        self._engine = engine
        self._work = work
        self._failing: set[str] = set()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  everything else is the engine's
        return getattr(self._engine, name)

    def submit(self, requests: Sequence[Request]) -> None:
        """Note which will fail, and pass all on."""
        self._failing |= {request.id for request in requests if self._work.fails(request)}
        self._engine.submit(requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """The engine's answers, marked."""
        return [
            replace(done, text=done.text + FAILED) if done.request_id in self._failing else done
            for done in self._engine.poll(timeout)
        ]


class ForcedTask(Task):
    """A task that really grades, and then replaces the verdict by what the mark says."""

    __slots__ = ()

    def grade(self, case: Case, text: str) -> Grade:
        """Takes as long as in a run."""
        graded = Task.grade(self, case, text.removesuffix(FAILED))
        return replace(graded, problem=PROBLEM if text.endswith(FAILED) else None)


class MeasuredVllm(VllmEngine):
    """Answers as `VllmEngine`, in the lengths it is told."""

    work: Work | None = None

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All requests in one bare `LLM.generate` call: the least that they can take."""
        if self._llm is None:
            raise EngineError("the engine has been closed")
        outputs = self._llm.generate(
            [{"prompt_token_ids": self._token_ids(request.prompt)} for request in requests],
            [self._sampling(request) for request in requests],
            lora_request=[self._loras[request.arm] for request in requests],
            use_tqdm=False,
        )
        return [
            replace(_complete(output), request_id=request.id)
            for output, request in zip(outputs, requests, strict=True)
        ]

    def forget(self) -> None:
        """Drop what earlier trials left: cached prefixes and cached tokenisation."""
        self._engine.reset_prefix_cache()
        self._token_ids.cache_clear()

    def _sampling(self, request: Request) -> SamplingParams:
        sampling = super()._sampling(request)
        if self.work is not None and self.work.varies:
            sampling.max_tokens = sampling.min_tokens = self.work.length(request)
        return sampling

    def _prove_arms(self) -> None:
        """Made-up weights have nothing to prove: the adapter's effect may round to nothing."""
        if self._config.engine_args.get("load_format") != "dummy":
            super()._prove_arms()


def _chance(what: str, request: Request) -> float:
    """A number in [0, 1) that belongs to the request."""
    key = f"{what}|{request.case_id}|{request.arm}|{request.sample}|{request.attempt}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
