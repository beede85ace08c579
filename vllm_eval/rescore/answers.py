"""Stored answers: what was recorded of each, and its grade now.

Many answers are graded on all cores, with a bounded number of them in memory.
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
from vllm_eval.tasks import open_task
from vllm_eval.tasks.check import compile_contract
from vllm_eval.tasks.repair import mend

STATUSES: tuple[Status, ...] = get_args(Status)
MAX_SHOWN = 40
"""Characters shown of an unusable recorded value."""
NO_TEXT = "no_raw_response"
"""Reason of an answer whose text was not stored: it cannot be graded, so it is not valid."""
POOL_FROM = 600
"""Fewer answers are graded in this process, in less time than worker processes take to start."""
CHUNK_ANSWERS = 64
CHUNK_CHARACTERS = 2**20
_Text = tuple[Place, str | None, bool | None]
"""Case, answer, and whether the answer is complete; None for one that is not repaired."""
_Chunk = tuple[list["StoredAnswer"], list[_Text]]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One stored answer with what was recorded of it."""

    path: Path
    place: str
    """Its place in the file."""
    arm: str
    concept_id: str
    tier: str | None
    sample: int
    """From the file, or the number of earlier answers to the same case."""
    attempts: int
    """Up to and including this one."""
    final: bool
    """Whether it is the outcome of its case; false for a failed attempt in a journal."""
    status: Status | None
    """As recorded; None if missing or unknown."""
    unknown_status: str
    """A recorded status that is unknown, else empty."""
    recorded_status: str | None
    """The status in the file's own word."""
    reason: str | None
    score: float | None
    """As recorded; None if missing or not a number from 0 to 1."""
    unusable_score: str
    """A recorded score that is not a number from 0 to 1, else empty."""
    text: str | None
    """The raw response; None if there is none to grade."""
    ended: bool
    """Whether the file says that the answer was not truncated at the token limit."""
    counted_sample: bool
    """Whether `sample` is counted here because the file does not state it."""

    def outcome(self) -> Outcome:
        """The recorded outcome; not valid without a known status."""
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
    """The answer in a row; `key` gives its arm and case, and the sample if the row has none."""
    status: object = row.get("status")
    if status == REPAIRED:  # the strict status of such an answer
        status = "format_error"
    known = next((one for one in STATUSES if one == status), None)
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
        status=known,
        unknown_status="" if known or status is None else _shown(status),
        recorded_status=text_of(row, "status"),
        reason=text_of(row, "reason") or (error if error in _predecessors_reasons() else None),
        score=score,
        unusable_score=unusable,
        text=None if known == "error" and not text else text,
        ended=row.get("truncated") is False,
        counted_sample=counted,
    )


def text_of(row: Mapping[str, Any], key: str) -> str | None:
    """The text under `key`, if there is one."""
    value = row.get(key)
    return value if isinstance(value, str) else None


def _score(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """The recorded score, and what is recorded instead of a number from 0 to 1."""
    value = row.get("score")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (number and 0 <= value <= 1):  # without NaN, and without overflow
        return None if value is None else float(value), ""
    return None, _shown(value)


def _attempts(row: Mapping[str, Any]) -> int:
    """How many attempts the model made, recorded as a number or as a list; 1 if not recorded."""
    value, errors = row.get("attempt", row.get("attempts")), row.get("engine_errors")
    if isinstance(value, list):
        value = len(value)
    if not isinstance(value, int) or value < 0:
        return 1
    return value - errors if isinstance(errors, int) and 0 < errors <= value else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


@cache
def _predecessors_reasons() -> frozenset[str]:
    return frozenset(compile_contract(open_task("product_owner").declaration).reasons)


@dataclass(frozen=True, slots=True)
class Graded:
    """The grade of an answer now."""

    problem: Problem | None
    score: float | None
    tier: str | None
    """From the data set."""
    repair: Repair | None = None
    """Of a final answer that broke the contract, if repairs are asked for and one succeeds."""


def grade_all(
    task: str,
    answers: Iterable[tuple[StoredAnswer, Place]],
    total: int,
    workers: int | None = None,
    *,
    repair: bool = False,
) -> Iterator[tuple[StoredAnswer, Graded]]:
    """Grade all `total` answers, each with the place of its case, in the order given.

    Many are graded in `workers` processes (default: one per core). With `repair`, final answers
    that break the contract are also repaired.

    Raises:
        DatasetError: a case cannot be used.
        EvalError: a worker process ended, usually for lack of memory.
    """
    workers = workers or usable_cpus()
    _open_task.cache_clear()  # the files may have changed since an earlier call
    _read_case.cache_clear()
    chunks = _chunks(answers, repair=repair)
    if total < POOL_FROM or workers == 1:
        for chunk, texts in chunks:
            yield from zip(chunk, _grade_chunk(task, texts), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and open files
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    waiting: deque[tuple[list[StoredAnswer], Any]] = deque()
    try:
        for chunk, texts in chunks:
            waiting.append((chunk, pool.submit(_grade_chunk, task, texts)))
            if len(waiting) > 3 * workers:
                yield from _next(waiting)
        while waiting:
            yield from _next(waiting)
    except BrokenProcessPool as error:
        raise EvalError("a scoring process ended too early; is there enough memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[list[StoredAnswer], Any]]) -> Iterator[tuple[StoredAnswer, Graded]]:
    answers, future = waiting.popleft()
    yield from zip(answers, future.result(), strict=True)


def _chunks(answers: Iterable[tuple[StoredAnswer, Place]], *, repair: bool) -> Iterator[_Chunk]:
    chunk: _Chunk = ([], [])
    characters = 0
    for answer, place in answers:
        chunk[0].append(answer)
        chunk[1].append((place, answer.text, answer.ended if repair and answer.final else None))
        characters += len(answer.text or "")
        if len(chunk[0]) == CHUNK_ANSWERS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = ([], []), 0
    yield chunk


def _grade_chunk(task_name: str, texts: list[_Text]) -> list[Graded]:
    """Runs in a worker process."""
    task = _open_task(task_name)
    graded = []
    for place, text, ended in texts:
        case = _read_case(task_name, *place)
        if text is None:
            problem = Problem(NO_TEXT, "the file does not contain the answer's text")
            graded.append(Graded(problem, None, case.tier))
        else:
            grade = task.grade(case, text)
            found = None
            if grade.problem is not None and ended is not None:
                mended = mend(task, partial(_read_case, task_name, *place), text, ended=ended)
                found = Repair(mended.names, mended.score) if mended else None
            graded.append(Graded(grade.problem, grade.score, case.tier, found))
    return graded


_open_task = lru_cache(maxsize=1)(open_task)


@lru_cache(maxsize=1024)  # the arms and attempts of a case ask again
def _read_case(task_name: str, lines: Lines, line: int, offset: int) -> Case:
    with lines.file.open("rb") as file:
        return read_case(lines, file, _open_task(task_name).declaration, line, offset)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
