"""Grade many answers again, on all cores, with a bounded number of them in memory.

What changed in one arm of one file is counted up answer by answer.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from vllm_eval.config.machine import usable_cpus
from vllm_eval.errors import EvalError
from vllm_eval.inputs.cases import read_case
from vllm_eval.inputs.formats import Lines
from vllm_eval.inputs.index import Place
from vllm_eval.records import Outcome, Problem, Repair
from vllm_eval.tasks import open_task
from vllm_eval.tasks.repair import mend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vllm_eval.records import Case, Status
    from vllm_eval.rescore.recorded import StoredAnswer
    from vllm_eval.tasks import Task

NO_TEXT = "no_raw_response"
"""Reason of an answer whose text was not stored: there is nothing to grade, so it is not valid."""
POOL_FROM = 600
"""Fewer answers are graded in this process, sooner than others would have started."""
CHUNK_ANSWERS = 64
CHUNK_CHARACTERS = 2**20
TOLERANCE = 1e-9
"""A recorded score that differs by no more is reproduced."""
MAX_CHANGES = 20


_Text = tuple[Place, str | None, bool | None]
"""Case and answer, and whether it ended by itself; None of one that is not to be repaired."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What an answer is worth now."""

    problem: Problem | None
    score: float | None
    tier: str | None
    """As the data set has it."""
    repair: Repair | None = None
    """Of a final one that broke the contract, where repairs are asked for and one mends it."""


def grade_all(
    task: str,
    answers: Iterable[tuple[StoredAnswer, Place]],
    total: int,
    workers: int | None = None,
    *,
    repair: bool = False,
) -> Iterator[tuple[StoredAnswer, Graded]]:
    """Every answer with its grade, in the order given.

    Args:
        task: by which it is graded.
        answers: each with the place of its case.
        total: how many there are.
        workers: processes for many answers; None for one per core.
        repair: whether final answers that break the contract are repaired as well.

    Raises:
        DatasetError: a case cannot be used.
        EvalError: a worker process ended, for lack of memory as a rule.
    """
    workers = workers or usable_cpus()
    _open_task.cache_clear()  # the files of an earlier call may be others by now
    _read_case.cache_clear()
    if total < POOL_FROM or workers == 1:
        for chunk in _chunks(answers):
            graded = _grade_chunk(task, _texts(chunk, repair=repair))
            yield from zip((answer for answer, _ in chunk), graded, strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and open files
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupt_alone)
    waiting: deque[tuple[list[StoredAnswer], Any]] = deque()
    try:
        for chunk in _chunks(answers):
            future = pool.submit(_grade_chunk, task, _texts(chunk, repair=repair))
            waiting.append(([answer for answer, _ in chunk], future))
            if len(waiting) > 3 * workers:
                yield from _next(waiting)
        while waiting:
            yield from _next(waiting)
    except BrokenProcessPool as error:
        msg = "a scoring process ended before its work; is there enough memory?"
        raise EvalError(msg) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[list[StoredAnswer], Any]]) -> Iterator[tuple[StoredAnswer, Graded]]:
    answers, future = waiting.popleft()
    yield from zip(answers, future.result(), strict=True)


def _chunks(
    answers: Iterable[tuple[StoredAnswer, Place]],
) -> Iterator[list[tuple[StoredAnswer, Place]]]:
    chunk: list[tuple[StoredAnswer, Place]] = []
    characters = 0
    for answer, place in answers:
        chunk.append((answer, place))
        characters += len(answer.text or "")
        if len(chunk) == CHUNK_ANSWERS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _texts(chunk: list[tuple[StoredAnswer, Place]], *, repair: bool) -> list[_Text]:
    return [
        (place, answer.text, answer.ended if repair and answer.final else None)
        for answer, place in chunk
    ]


def _grade_chunk(task_name: str, texts: list[_Text]) -> list[Graded]:
    """Runs in a worker process."""
    task = _open_task(task_name)
    graded = []
    for place, text, ended in texts:
        case = _read_case(task_name, *place)
        if text is None:
            problem = Problem(NO_TEXT, "the file does not hold the answer's text")
            graded.append(Graded(problem, None, case.tier))
        else:
            grade = task.grade(case, text)
            found = None
            if grade.problem is not None and ended is not None:
                mended = mend(task, partial(_read_case, task_name, *place), text, ended=ended)
                found = Repair(mended.names, mended.score) if mended else None
            graded.append(Graded(grade.problem, grade.score, case.tier, found))
    return graded


@lru_cache(maxsize=1)
def _open_task(name: str) -> Task:
    return open_task(name)


@lru_cache(maxsize=1024)  # the arms and attempts of a case ask again
def _read_case(task_name: str, lines: Lines, line: int, offset: int) -> Case:
    with lines.file.open("rb") as file:
        return read_case(lines, file, _open_task(task_name).declaration, line, offset)


def _leave_interrupt_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


@dataclass(frozen=True, slots=True)
class Change:
    """One answer that is graded otherwise than recorded."""

    concept_id: str
    was: str
    now: str
    message: str


@dataclass(slots=True)
class FileReport:
    """What scoring found in one arm of one file; counted up answer by answer."""

    path: Path
    arm: str
    answers: int = 0
    recorded_statuses: int = 0
    """StoredAnswers that came with a status we know."""
    incomplete: int = 0
    """StoredAnswers without a status we know, or recorded as success without a score."""
    not_gradable: int = 0
    """StoredAnswers whose raw response is not stored."""
    lost: int = 0
    """Of those, the ones recorded as something else than `error`."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Every reason found now, with counts."""
    newly_failing: dict[str, int] = field(default_factory=dict)
    """Recorded as success: why they are none, with counts."""
    newly_valid: dict[str, int] = field(default_factory=dict)
    """Recorded as failed, and keep the contract: what was recorded, with counts."""
    new_reasons: dict[str, int] = field(default_factory=dict)
    """Failed before and now, for another reason: `old -> new`, with counts."""
    scores_compared: int = 0
    scores_changed: int = 0
    max_difference: float = 0.0
    unusable_scores: int = 0
    """Recorded ones that are no numbers from 0 to 1, so that nothing can reproduce them."""
    changes: list[Change] = field(default_factory=list)
    """The first `MAX_CHANGES` changes."""
    recorded: list[Outcome] = field(default_factory=list)
    now: list[Outcome] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether every recorded status and score came out again."""
        changed = self.newly_failing or self.newly_valid or self.scores_changed
        return not (changed or self.unusable_scores or self.lost)


def count(report: FileReport, answer: StoredAnswer, graded: Graded) -> None:
    """Take one more answer into its report."""
    problem = graded.problem
    reason = problem.reason if problem else None
    report.answers += 1
    report.recorded_statuses += answer.status is not None
    unscored = answer.status == "success" and answer.score is None
    report.incomplete += answer.status is None or unscored
    if answer.text is None:
        report.not_gradable += 1
        report.lost += answer.status != "error"
    if reason:
        _add(report.reasons, reason)
    was, now = answer.reason or answer.status or "-", reason or "success"
    if answer.status is not None and (answer.status == "success") != (reason is None):
        if problem:
            _add(report.newly_failing, problem.reason)
        else:
            _add(report.newly_valid, was)
        _note(report, answer, was, now, problem.message if problem else "")
    elif problem and answer.reason not in (None, reason) and answer.text is not None:
        _add(report.new_reasons, f"{answer.reason} -> {reason}")
        _note(report, answer, was, now, problem.message)
    if answer.unusable_score:
        report.unusable_scores += 1
        is_now = "none" if graded.score is None else f"{graded.score:.6f}"
        _note(report, answer, f"score {answer.unusable_score}", f"score {is_now}", "")
    elif answer.score is not None and answer.text is not None:
        _compare_scores(report, answer, graded)
    if answer.final:
        before = answer.outcome()
        report.recorded.append(before)
        report.now.append(_outcome(answer, graded, before))


def _compare_scores(report: FileReport, answer: StoredAnswer, graded: Graded) -> None:
    """A failed answer recorded with 0 is reproduced by failing: that is what its 0 says."""
    was, now = answer.score or 0.0, graded.score or 0.0
    counted_as_0 = was == 0 and answer.status != "success" and graded.problem is not None
    difference = 0.0 if counted_as_0 else abs(now - was)
    report.scores_compared += 1
    report.max_difference = max(report.max_difference, difference)
    if difference > TOLERANCE:
        report.scores_changed += 1
        _note(report, answer, f"score {was:.6f}", f"score {now:.6f}", "")


def _note(report: FileReport, answer: StoredAnswer, was: str, now: str, message: str) -> None:
    if len(report.changes) < MAX_CHANGES:
        report.changes.append(Change(answer.concept_id, was, now, message))


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _outcome(answer: StoredAnswer, graded: Graded, before: Outcome) -> Outcome:
    valid = graded.problem is None
    failed: Status = "error" if answer.text is None else "format_error"
    return Outcome(
        arm=before.arm,
        concept_id=before.concept_id,
        tier=before.tier or graded.tier,
        sample=before.sample,
        status="success" if valid else failed,
        reason=graded.problem.reason if graded.problem else None,
        score=graded.score,
        attempts=before.attempts,
        first_valid=valid and before.attempts == 1,
        repair=graded.repair,
    )
