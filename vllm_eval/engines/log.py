"""Sends everything this process and its children print to a file, while an engine is open.

vLLM, its worker processes and the C++ below them write to both standard streams; only the file
descriptors catch all of them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

STREAMS = (1, 2)


class OutputToFile:
    """Takes standard output and error over when made, gives them back on `restore`."""

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
        """Give both streams back; a second call does nothing."""
        _flush()
        for stream, saved in zip(STREAMS, self._saved, strict=False):
            os.dup2(saved, stream)
            os.close(saved)
        self._saved = []


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
