"""JSON of any length, read value by value, with an error that names file and line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, TextIO

from vllm_eval.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE = 2**20
"""Characters read at a time."""
MAX_VALUE = 2**26
"""Characters of the longest single value that is taken."""
TORN = object()
"""Stands for a last value that the end of its file cut off."""
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonText:
    """A JSON text of any length, of which one value at a time is in memory."""

    def __init__(self, path: Path, file: TextIO, longest: int = MAX_VALUE) -> None:
        self._path, self._file, self._longest = path, file, longest
        self._buffer, self._at = "", 0
        self._lines, self._counted = 1, 0
        self._decoder = json.JSONDecoder(strict=False)

    def line(self) -> int:
        """The line reached, counted from 1."""
        self._lines += self._buffer.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Go past `character`, which must come next."""
        if self.peek() != character:
            raise self.wrong(f"expected {character!r}")
        self._at += 1

    def value(self, *, may_be_torn: bool = False) -> object:
        """The next value, whole; `TORN` for one cut off by the file's end where that may be."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                # A number may go on in the next piece: at `1e+` a 1 has been read.
                if end + 2 < len(self._buffer) or not self._more():
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                rest = len(self._buffer) - self._at
                if rest > self._longest or not self._more():
                    if may_be_torn and "\n" not in self._buffer[self._at :]:
                        return TORN
                    self._at = min(error.pos, len(self._buffer))
                    long = rest > self._longest
                    what = f"longer than {self._longest} characters, or " if long else ""
                    raise self.wrong(f"{what}not valid JSON: {error.msg}") from error
            except ValueError as error:  # Python takes no integer of more than 4,300 digits
                raise self.wrong("holds a number of too many digits") from error
            except RecursionError as error:
                raise self.wrong("nested too deep") from error

    def members(self) -> Iterator[str]:
        """The keys of an object; whoever asks for the next has read the value."""
        self.take("{")
        while self.peek() != "}":
            key = self.value() if self.peek() == '"' else None
            if not isinstance(key, str):
                raise self.wrong("expected a key in double quotes")
            self.take(":")
            yield key
            if self.peek() != "}":
                self.take(",")
        self.take("}")

    def items(self, name: str) -> Iterator[tuple[str, object]]:
        """The items of the list called `name`, each with its place."""
        self.take("[")
        number = 0
        while self.peek() != "]":
            yield f"line {self.line()}, {name}[{number}]", self.value()
            number += 1
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def wrong(self, what: str) -> InputError:
        """An error at the place reached."""
        return InputError(f"{self._path}, line {self.line()}: {what}")

    def _more(self) -> bool:
        """Read on: twice what is held, so that a long value is not tried again too often."""
        held = self._buffer[self._at :]
        piece = self._file.read(max(PIECE, len(held)))
        if piece:
            self.line()
            self._buffer, self._at, self._counted = held + piece, 0, 0
        return bool(piece)
