"""The journal: every attempt as one line, append-only, safe against whatever ends the process."""

from __future__ import annotations

import fcntl
import functools
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import TypeAdapter, ValidationError

from vllm_eval.errors import EvalError, InputError
from vllm_eval.records import Attempt, Begun, Key, Ledger, Outcome, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Self


LOCK = ".lock"


class Journal:
    """The one writer of a journal; what `append` returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, keep every other process out, cut off a torn last line.

        Raises:
            InputError: another process writes this journal.
            EvalError: it cannot be opened, or is damaged before its end.
        """
        self._path = path
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._file = os.open(path, flags, 0o644)
            self._lock_file = os.open(path.with_name(LOCK), flags, 0o644)
        except OSError as error:
            msg = f"{path}: cannot open the journal: {error.strerror}"
            raise EvalError(msg) from error
        try:
            self._lock()
            os.ftruncate(self._file, _whole_length(path))
        except BaseException:
            self.__exit__()
            raise

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Write each attempt as one line; all of them or none.

        Raises:
            EvalError: the disk refuses; what was written before is intact.
        """
        if not attempts:
            return
        data = b"".join(_dump(asdict(attempt)) for attempt in attempts)
        before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            msg = f"{self._path}: cannot write: {error.strerror}; make room, then --resume this run"
            raise EvalError(msg) from error

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which lets go of the lock."""
        os.close(self._file)
        os.close(self._lock_file)

    def _lock(self) -> None:
        # A POSIX lock on a file of its own: unlike flock, an engine process that outlives a
        # killed run does not inherit it; but any close of the same file would let go of it.
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            msg = f"{self._path.parent}: another process is at work on this run"
            raise InputError(msg) from error
        except OSError:  # a mounted drive without locks: one writer is then the user's promise
            pass


def read_journal(path: Path) -> Iterator[tuple[int, Attempt]]:
    """Every whole line's byte offset and attempt; a torn last line is passed over."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                try:
                    attempt = parse_attempt(line)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
                    msg = f"{path}, line {number}: the journal is damaged here: {what}"
                    raise EvalError(msg) from error
                yield offset, attempt
            offset += len(line)


def parse_attempt(line: bytes) -> Attempt:
    """One line of a journal.

    Raises:
        ValidationError: it is no attempt.
    """
    return _reader().validate_json(line, strict=True)


@functools.cache
def _reader() -> TypeAdapter[Attempt]:
    return TypeAdapter(Attempt)


def read_outcomes(path: Path) -> list[Outcome]:
    """One outcome for each arm, case and sample that the journal has brought to an end."""
    first_valid: dict[Key, bool] = {}
    outcomes = []
    for _, attempt in read_journal(path):
        key = (attempt.arm, attempt.concept_id, attempt.sample)
        first = first_valid.setdefault(key, attempt.status == "success")
        if attempt.final:
            outcomes.append(
                Outcome(
                    arm=attempt.arm,
                    concept_id=attempt.concept_id,
                    tier=attempt.tier,
                    sample=attempt.sample,
                    status=attempt.status,
                    reason=attempt.reason,
                    score=attempt.score,
                    attempts=attempt.attempt,
                    first_valid=first,
                )
            )
    return outcomes


def read_ledger(path: Path) -> Ledger:
    """What the journal at `path` has brought to an end, and what it has begun."""
    done: set[Key] = set()
    begun: dict[Key, Begun] = {}
    attempts = valid = tokens = 0
    seconds = 0.0
    for _, attempt in read_journal(path):
        key = (attempt.arm, attempt.concept_id, attempt.sample)
        attempts += 1
        valid += attempt.status == "success"
        tokens += attempt.output_tokens
        seconds = max(seconds, attempt.finished_at)
        if attempt.final:
            done.add(key)
            begun.pop(key, None)
        else:
            judged = attempt.status == "format_error"
            place = (attempt.block, attempt.line, attempt.column)
            problem = Problem(attempt.reason or "", attempt.error or "", *place) if judged else None
            begun[key] = Begun(attempt.attempt, problem)
    return Ledger(done, begun, valid, attempts, tokens, seconds)


def check_complete(
    outcomes: Iterable[Outcome], expected: Iterable[Key], *, partial: bool = False
) -> None:
    """Exactly one outcome for each expected arm, case and sample, and no other.

    With `partial` some may still be owed, but none may be there twice.

    Raises:
        EvalError: one is missing, twice there or foreign; no verdict can stand on that.
    """
    owed = set(expected)
    for outcome in outcomes:
        key = (outcome.arm, outcome.concept_id, outcome.sample)
        if key not in owed:
            msg = f"the journal holds an outcome twice, or one nobody asked for: {key}"
            raise EvalError(msg)
        owed.remove(key)
    if owed and not partial:
        msg = f"the journal lacks {len(owed)} outcomes, for example {min(owed)}"
        raise EvalError(msg)


def _dump(row: dict[str, Any]) -> bytes:
    """One line; what JSON cannot hold (a lone surrogate) is replaced, not refused."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        clean = {
            key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for key, value in row.items()
        }
        return orjson.dumps(clean, option=orjson.OPT_APPEND_NEWLINE)


def _whole_length(path: Path) -> int:
    """Bytes up to the end of the last whole line; what follows was torn off by a crash."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            whole = line.endswith(b"\n") and line[:1] == b"{"
            if not whole:  # power loss can also leave a tail of zeros
                break
            end += len(line)
        rest = file.read(1)
    if rest:
        msg = f"{path}: the journal is damaged after byte {end}, before its last line"
        raise EvalError(msg)
    return end
