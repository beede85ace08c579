"""The journal: every attempt as one line, append-only, safe against whatever ends the process.

Its lines stand in `attempts.jsonl` and, once that has reached its size, in `attempts.0001.jsonl`
and so on: `parts` lists them, and only the last is ever written to.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
from bisect import bisect_right
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING

import orjson
from pydantic import TypeAdapter, ValidationError

from vllm_eval.errors import EvalError, InputError
from vllm_eval.records import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Self

LOCK = ".lock"


PART_BYTES = 256 * 2**20
"""Size from which a part is followed by the next one."""


def parts(path: Path) -> list[Path]:
    """The files of the journal that begins at `path`, in the order written.

    Raises:
        EvalError: one between them is missing.
    """
    name = re.compile(rf"{re.escape(path.stem)}\.(\d{{4,}}){re.escape(path.suffix)}")
    siblings = path.parent.glob(f"{path.stem}.*{path.suffix}")
    count = sum(name.fullmatch(sibling.name) is not None for sibling in siblings)
    found = [path, *(_part(path, number) for number in range(1, count + 1))]
    if lacking := [part for part in found[1:] if not part.exists()]:
        msg = f"{lacking[0]}: is missing, and later parts of this journal are there"
        raise EvalError(msg)
    return found


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number:04}{path.suffix}") if number else path


class Journal:
    """The one writer of a journal; what `append` returned from is on the disk."""

    def __init__(self, path: Path, part_bytes: int = PART_BYTES) -> None:
        """Open or create `path`, keep every other process out, cut off a torn last line.

        Args:
            path: the journal's first part.
            part_bytes: size from which the next part is begun.

        Raises:
            InputError: another process writes this journal.
            EvalError: it cannot be opened, or is damaged before its end.
        """
        self._path, self._part_bytes = path, part_bytes
        with ExitStack() as stack:
            self._lock_file = _open(path.with_name(LOCK), path)
            stack.callback(os.close, self._lock_file)
            self._lock()
            self._parts = parts(path)
            self._file = _open(self._parts[-1], path)
            stack.callback(os.close, self._file)
            os.ftruncate(self._file, _whole_length(self._parts[-1]))
            stack.pop_all()

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Write each attempt as one line; all of them or none.

        Raises:
            EvalError: the disk refuses; what was written before is intact.
        """
        if not attempts:
            return
        data = b"".join(_dump(attempt) for attempt in attempts)
        before = os.fstat(self._file).st_size
        if before >= self._part_bytes:
            self._begin_part()
            before = 0
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            part = self._parts[-1]
            msg = f"{part}: cannot write: {error.strerror}; make room, then --resume this run"
            raise EvalError(msg) from error

    def drop(self, unwanted: Callable[[Attempt], bool]) -> int:
        """Write the parts again without the lines of attempts that no engine has seen.

        Each part is whole at every moment; what an engine answered is never dropped.

        Returns:
            How many lines were dropped.

        Raises:
            EvalError: the disk refuses; what is left to drop is dropped when it is called again.
        """
        dropped = 0
        for part in self._parts:
            with part.open("rb") as lines:
                found = [unwanted(_read_line(part, n, line)) for n, line in enumerate(lines, 1)]
            if any(found):
                _write_without(part, found)
                dropped += sum(found)
        os.close(self._file)
        self._file = _open(self._parts[-1], self._path)
        return dropped

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, which lets go of the lock."""
        os.close(self._file)
        os.close(self._lock_file)

    def _begin_part(self) -> None:
        part = _part(self._path, len(self._parts))
        file = _open(part, part, os.O_EXCL)
        os.close(self._file)
        self._file = file
        self._parts.append(part)

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
    """Every whole line's place and attempt; a torn last line is passed over.

    A place is a byte, counted through all parts; `open_journal` goes back to it.

    Raises:
        EvalError: a line is no attempt, or a part is missing.
    """
    place = 0
    files = parts(path)
    for part in files:
        with part.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n") or part != files[-1]:
                    yield place, _read_line(part, number, line)
                place += len(line)


def _read_line(part: Path, number: int, line: bytes) -> Attempt:
    try:
        return parse_attempt(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        msg = f"{part}, line {number}: the journal is damaged here: {what}"
        raise EvalError(msg) from error


@contextmanager
def open_journal(path: Path) -> Iterator[Callable[[int], bytes]]:
    """Gives a function that returns the line at a place of `read_journal`."""
    files = parts(path)
    starts = list(accumulate((part.stat().st_size for part in files[:-1]), initial=0))
    with ExitStack() as stack:
        # One at a time: a journal may have more parts than a process may have files open.
        number, file = 0, stack.enter_context(files[0].open("rb"))

        def line_at(place: int) -> bytes:
            nonlocal number, file
            if (wanted := bisect_right(starts, place) - 1) != number:
                stack.close()
                number, file = wanted, stack.enter_context(files[wanted].open("rb"))
            file.seek(place - starts[number])
            return file.readline()

        yield line_at


def parse_attempt(line: bytes) -> Attempt:
    """One line of a journal.

    Raises:
        ValidationError: it is no attempt.
    """
    return _reader().validate_json(line, strict=True)


@functools.cache
def _reader() -> TypeAdapter[Attempt]:
    return TypeAdapter(Attempt)


def _open(path: Path, journal: Path, flags: int = 0) -> int:
    """A file of the journal to be added to, created where it is not there; never through a link."""
    try:
        flags |= os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        file = os.open(path, flags, 0o644)
    except OSError as error:
        msg = f"{journal}: cannot open the journal: {error.strerror}"
        raise EvalError(msg) from error
    with suppress(OSError):  # a mounted drive may not know how
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a power loss may take a new file's name with it
        finally:
            os.close(folder)
    return file


def _write_without(part: Path, unwanted: Sequence[bool]) -> None:
    """Replace a part of the journal by its lines that are wanted."""
    new = part.with_name(part.name + ".part")
    try:
        new.unlink(missing_ok=True)
        with part.open("rb") as lines, new.open("xb") as out:
            out.writelines(line for line, no in zip(lines, unwanted, strict=True) if not no)
            out.flush()
            os.fsync(out.fileno())
        new.replace(part)
    except OSError as error:
        msg = f"{part}: cannot write: {error.strerror}; make room, then --resume this run"
        raise EvalError(msg) from error


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
        msg = f"{path}: the journal is damaged after byte {end}, before its last line"
        raise EvalError(msg)
    return end
