"""Stored answers: what was recorded of each, and what it is worth now.

A record is taken at its word, or said to be unusable. Many answers are graded again on all cores,
with a bounded number of them in memory.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, get_args

from vllm_eval.conclude.results import REPAIRED
from vllm_eval.config.machine import usable_cpus
from vllm_eval.errors import EvalError
from vllm_eval.inputs.cases import Place, read_case
from vllm_eval.inputs.formats import Lines
from vllm_eval.records import Case, Key, Outcome, Problem, Repair, Status
from vllm_eval.tasks import Task, open_task
from vllm_eval.tasks.check import compile_contract
from vllm_eval.tasks.repair import mend

STATUSES: tuple[Status, ...] = get_args(Status)
MAX_SHOWN = 40
"""Characters shown of a recorded value that cannot be used."""
NO_TEXT = "no_raw_response"
"""Reason of an answer whose text was not stored: there is nothing to grade, so it is not valid."""
POOL_FROM = 600
"""Fewer answers are graded in this process, sooner than others would have started."""
CHUNK_ANSWERS = 64
CHUNK_CHARACTERS = 2**20
_Text = tuple[Place, str | None, bool | None]
"""Case and answer, and whether it ended by itself; None of one that is not to be repaired."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One stored answer with what was recorded of it."""

    path: Path
    place: str
    """Where it stands in its file."""
    arm: str
    concept_id: str
    tier: str | None
    sample: int
    """As the file counts them, else how often its case stood there before."""
    attempts: int
    """How many were made up to this one."""
    final: bool
    """Whether it is the outcome of its case; false for a failed attempt in a journal."""
    status: Status | None
    """As recorded; None where nothing was, or a word we do not know."""
    unknown_status: str
    """That word; empty where there is none."""
    recorded_status: str | None
    """The status in the file's own word."""
    reason: str | None
    score: float | None
    """As recorded; None where nothing was, or no number from 0 to 1."""
    unusable_score: str
    """What was recorded instead of such a number; empty where nothing was."""
    text: str | None
    """The raw response; None where there is none to grade."""
    ended: bool
    """Whether the file says that the answer was not truncated at the token limit."""
    counted_sample: bool
    """Whether `sample` is not the file's but counted by us."""

    def outcome(self) -> Outcome:
        """What was recorded, as an outcome; without a known status it is not valid."""
        status = self.status or "format_error"
        valid = status == "success"
        return Outcome(
            arm=self.arm,
            concept_id=self.concept_id,
            tier=self.tier,
            sample=self.sample,
            status=status,
            reason=None if valid else self.reason or status,
            score=self.score,
            attempts=self.attempts,
            first_valid=valid and self.attempts == 1,
        )


def read_answer(path: Path, place: str, row: dict[str, Any], key: Key) -> StoredAnswer:
    """The answer of a row; `key` has its arm and case, and the sample where the row has none."""
    status, unknown = _status(row)
    score, unusable = _score(row)
    text, sample = text_of(row, "raw_response"), row.get("sample")
    counted = not isinstance(sample, int) or isinstance(sample, bool)
    error = text_of(row, "error")  # where the predecessor wrote the reason
    return StoredAnswer(
        path=path,
        place=place,
        arm=key[0],
        concept_id=key[1],
        tier=text_of(row, "tier"),
        sample=key[2] if counted else row["sample"],
        attempts=_attempts(row),
        final=row.get("final") is not False,
        status=status,
        unknown_status=unknown,
        recorded_status=text_of(row, "status"),
        reason=text_of(row, "reason") or (error if error in _predecessors_reasons() else None),
        score=score,
        unusable_score=unusable,
        text=None if status == "error" and not text else text,
        ended=row.get("truncated") is False,
        counted_sample=counted,
    )


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """The text under `key`; None where there is none."""
    value = row.get(key)
    return value if isinstance(value, str) else None


def _status(row: Mapping[str, Any]) -> tuple[Status | None, str]:
    """The recorded status, and the word in its place where that is none we know."""
    value = row.get("status")
    if value == REPAIRED:  # beside what a repair makes of it, such an answer stays what it was
        value = "format_error"
    known = next((status for status in STATUSES if status == value), None)
    return known, "" if known or value is None else _shown(value)


def _score(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """The recorded score, and what is in its place if that is not a number from 0 to 1."""
    value = row.get("score")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (number and 0 <= value <= 1):  # without NaN, and without overflow
        return None if value is None else float(value), ""
    return None, _shown(value)


def _attempts(row: Mapping[str, Any]) -> int:
    """How many attempts were made, given as a number or as their list; 1 where not said."""
    value = row.get("attempt", row.get("attempts"))
    if isinstance(value, list):
        value = len(value)
    return value if isinstance(value, int) and value > 0 else 1


def _shown(value: object) -> str:
    """A value as it can be put into a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


@cache
def _predecessors_reasons() -> frozenset[str]:
    """It knew one task."""
    return frozenset(compile_contract(open_task("product_owner").declaration).reasons)


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
