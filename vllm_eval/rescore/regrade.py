"""Grade many answers again, on all cores, with a bounded number of them in memory."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from vllm_eval.config.machine import usable_cpus
from vllm_eval.errors import EvalError
from vllm_eval.inputs.cases import read_case
from vllm_eval.inputs.formats import Lines
from vllm_eval.inputs.index import Place
from vllm_eval.records import Problem, Repair
from vllm_eval.tasks import open_task
from vllm_eval.tasks.repair import mend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vllm_eval.records import Case
    from vllm_eval.rescore.recorded import Answer
    from vllm_eval.tasks import Task

NO_TEXT = "no_raw_response"
"""Reason of an answer whose text was not stored: there is nothing to grade, so it is not valid."""
POOL_FROM = 600
"""Fewer answers are graded in this process, sooner than others would have started."""
CHUNK_ANSWERS = 64
CHUNK_CHARACTERS = 2**20


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
    answers: Iterable[tuple[Answer, Place]],
    total: int,
    workers: int | None = None,
    *,
    repair: bool = False,
) -> Iterator[tuple[Answer, Graded]]:
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
    waiting: deque[tuple[list[Answer], Any]] = deque()
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


def _next(waiting: deque[tuple[list[Answer], Any]]) -> Iterator[tuple[Answer, Graded]]:
    answers, future = waiting.popleft()
    yield from zip(answers, future.result(), strict=True)


def _chunks(answers: Iterable[tuple[Answer, Place]]) -> Iterator[list[tuple[Answer, Place]]]:
    chunk: list[tuple[Answer, Place]] = []
    characters = 0
    for answer, place in answers:
        chunk.append((answer, place))
        characters += len(answer.text or "")
        if len(chunk) == CHUNK_ANSWERS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _texts(chunk: list[tuple[Answer, Place]], *, repair: bool) -> list[_Text]:
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
