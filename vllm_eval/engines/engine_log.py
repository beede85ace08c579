"""Sends the output of an engine's libraries to a file, and turns their errors into ours.

vLLM, its worker processes and the C++ below them write to both standard streams; only redirecting
the file descriptors catches everything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_eval.errors import EngineDiedError, EngineError, foreign, one_line

STREAMS = (1, 2)
DIED = "the engine died"


class OutputToFile:
    """Redirects standard output and error when created; `restore` gives them back."""

    def __init__(self, log: Path) -> None:
        """Append to the file `log` from now on."""
        self.log = log
        _flush()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        self.begin = os.fstat(file).st_size
        """Bytes already in the log, from earlier engines of the run."""
        self._saved = [os.dup(stream) for stream in STREAMS]
        for stream in STREAMS:
            os.dup2(file, stream)
        os.close(file)

    def restore(self) -> None:
        """Give both streams back; safe to call twice."""
        _flush()
        for stream, saved in zip(STREAMS, self._saved, strict=False):
            os.dup2(saved, stream)
            os.close(saved)
        self._saved = []


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


@contextmanager
def translated(
    what: str, output: OutputToFile, advise: Callable[[Exception], str | None]
) -> Iterator[None]:
    """Report what failed, why, and what to change if `advise` knows the cause.

    Raises:
        EngineDiedError: the engine died, and not of a known cause, which would only recur.
        EngineError: anything else.
    """

    def ours(error: Exception) -> EngineError:
        remedy = advise(error)
        msg = f"{what}: {one_line(error)} (see {output.log}){'; ' + remedy if remedy else ''}"
        return EngineDiedError(msg) if what == DIED and remedy is None else EngineError(msg)

    with foreign(ours):
        yield
