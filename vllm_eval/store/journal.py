"""The journal: every attempt as one line, append-only, safe against whatever ends the process."""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from sys import intern
from typing import BinaryIO

import orjson
from pydantic import TypeAdapter, ValidationError

from vllm_eval.errors import EvalError, InputError
from vllm_eval.records import Attempt, Begun, Key, Ledger, Problem

LOCK = ".lock"
MOST_LINE = 2**26
"""Bytes of a line; no answer is as long, and a folder of unknown origin may hold anything."""


class Journal:
    """The one writer of a journal; what `append` returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`, lock it, and remove a torn last line.

        Raises:
            InputError: another process writes this journal, or it lies in parts.
            EvalError: it cannot be opened, or is damaged before its end.
        """
        refuse_parts(path)
        self._path = path
        self._ledger: Ledger | None = None
        with ExitStack() as stack:
            self._lock_file = _open(path.with_name(LOCK), path)
            stack.callback(os.close, self._lock_file)
            self._lock()
            self._file = _open(path, path)
            stack.callback(os.close, self._file)
            os.ftruncate(self._file, _whole_length(path))
            stack.pop_all()

    @property
    def ledger(self) -> Ledger:
        """What the journal has brought to an end and begun: read once, then kept up to date.

        Raises:
            EvalError: a line is not an attempt.
        """
        if self._ledger is None:
            self._ledger = Ledger(set(), {})
            _follow(self._ledger, (attempt for _, attempt in read_journal(self._path)))
        return self._ledger

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Write each attempt as one line; all of them or none.

        Raises:
            EvalError: the disk refuses; what was written before is intact.
        """
        if not attempts:
            return
        data = b"".join(_dump(attempt) for attempt in attempts)
        before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise _full(self._path, error) from error
        if self._ledger is not None:
            _follow(self._ledger, attempts)

    def drop(self, unwanted: Callable[[Attempt], bool]) -> int:
        """Rewrite the journal without the lines of attempts that no engine of this run has seen.

        The journal is never incomplete. Returns how many lines were dropped.

        Raises:
            EvalError: the disk refuses; the journal is as it was.
        """
        places = {place for place, attempt in read_journal(self._path) if unwanted(attempt)}
        if places:
            _write_without(self._path, places)
            os.close(self._file)
            self._file = _open(self._path, self._path)
            self._ledger = None
        return len(places)

    def close(self) -> None:
        """Close the file and release the lock."""
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
    """The byte at which each whole line begins, and its attempt; skips a torn last line.

    Raises:
        InputError: the journal lies in parts.
        EvalError: a line is not an attempt.
    """
    refuse_parts(path)
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, MOST_LINE), b""), start=1):
            if line.endswith(b"\n"):
                yield place, _read_line(path, number, line)
            elif len(line) == MOST_LINE:
                raise EvalError(f"{path}, line {number}: longer than {MOST_LINE:,} bytes")
            place += len(line)


def attempt_at(path: Path, file: BinaryIO, place: int) -> Attempt:
    """The attempt on the line that begins at byte `place` of the open journal.

    Raises:
        EvalError: no attempt begins there.
    """
    file.seek(place)
    try:
        return _reader().validate_json(file.readline(), strict=True)
    except ValidationError as error:
        raise EvalError(f"{path}: the journal is damaged at byte {place}") from error


def refuse_parts(path: Path) -> None:
    """Earlier versions went on in `attempts.0001.jsonl` and so on from 256 MiB.

    Raises:
        InputError: there is such a file beside the journal.
    """
    parts = sorted(path.parent.glob(f"{path.stem}.[0-9]*{path.suffix}"))
    if parts:
        names = " ".join(part.name for part in parts)
        raise InputError(
            f"{path.parent}: the journal is in several files ({path.name} {names}), as an earlier "
            f"version wrote it; append them to {path.name} in this order, then remove them"
        )


def _follow(ledger: Ledger, attempts: Iterable[Attempt]) -> None:
    for attempt in attempts:
        key = key_of(attempt)
        ledger.valid += attempt.status == "success"
        if not attempt.reused:
            ledger.attempts += 1
            ledger.output_tokens += attempt.output_tokens
            ledger.seconds = max(ledger.seconds, attempt.finished_at)
        if attempt.final:
            ledger.reused += attempt.reused
            ledger.done.add(key)
            ledger.begun.pop(key, None)
        else:
            begun = ledger.begun.get(key)
            problem = begun.problem if begun else None
            if attempt.status == "format_error":
                place = (attempt.block, attempt.line, attempt.column)
                problem = Problem(attempt.reason or "", attempt.error or "", *place)
            ledger.begun[key] = Begun(attempt.attempt, problem, attempt.engine_errors)


def key_of(attempt: Attempt) -> Key:
    """Arm, case and sample, of names that many attempts share: each is in memory once."""
    return intern(attempt.arm), intern(attempt.concept_id), attempt.sample


def _read_line(path: Path, number: int, line: bytes) -> Attempt:
    try:
        return _reader().validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise EvalError(f"{path}, line {number}: the journal is damaged here: {what}") from error


@functools.cache
def _reader() -> TypeAdapter[Attempt]:
    return TypeAdapter(Attempt)


def _open(path: Path, journal: Path) -> int:
    """A file of the journal to be added to, created where it is not there; never through a link."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise EvalError(f"{journal}: cannot open the journal: {error.strerror}") from error
    with suppress(OSError):  # a mounted drive may not know how
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power loss may take a new file's name with it
        finally:
            os.close(folder)
    return file


def _write_without(path: Path, places: Collection[int]) -> None:
    """Replace the journal by one without the lines that begin at `places`."""
    new = path.with_name(path.name + ".part")
    try:
        new.unlink(missing_ok=True)
        with path.open("rb") as lines, new.open("xb") as out:
            place = 0
            for line in lines:
                if place not in places:
                    out.write(line)
                place += len(line)
            out.flush()
            os.fsync(out.fileno())
        new.replace(path)
    except OSError as error:
        raise _full(path, error) from error


def _full(path: Path, error: OSError) -> EvalError:
    return EvalError(f"{path}: cannot write: {error.strerror}; make room, then --resume this run")


def _dump(attempt: Attempt) -> bytes:
    """One line; what JSON cannot hold (a lone surrogate) is replaced, not refused."""
    try:
        return orjson.dumps(attempt, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        clean = {
            key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for key, value in asdict(attempt).items()
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
        raise EvalError(f"{path}: the journal is damaged after byte {end}, before its last line")
    return end
