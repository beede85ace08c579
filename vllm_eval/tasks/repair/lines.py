"""Reads a block of careless YAML line by line, to find the lines of each value.

A parser stops at the first error; a repair has to see past it. This reader knows only what
separates one value from the next: dashes, keys, indentation, quotes and brackets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["plain", "quotes", "flow", "literal"]
SPECIAL = "@`%*&!|>[{"
"""What a plain value must not begin with, as far as repairs handle it."""
MAX_SPAN = 20
"""The most lines of a quoted or bracketed value; a longer one is a mistake."""
MAX_LINES = 1_000
"""Ten times the longest block seen; longer ones are left alone."""
MAX_BROKEN = 100
"""Quoted or bracketed values without a valid end; blocks with more are left alone."""
_LINE_END = re.compile("(\r\n|[\n\r\x85\u2028\u2029])")  # what counts as one in YAML
_COLON = re.compile(r":(?=[ \t]|$)")
_DASH = re.compile(r"-(?:[ \t]+|$)")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*+\"|'(?:[^']|'')*+'", re.DOTALL)
_QUOTED_KEY = re.compile(r"(?:\"(?:[^\"\\]|\\.)*+\"|'(?:[^']|'')*+')[ \t]*:(?=[ \t]|$)")
_NO_KEY = re.compile(r"[\"'\[\]{}|>@%!&*#,`]|\? ")
_HEADER = re.compile(r"[|>][-+1-9]{0,2}[ \t]*(?:#.*)?$")
_ENDS_CLEAN = re.compile(r"[ \t]*(?: #.*)?$")
_WORD_KEY = re.compile(r"[A-Za-z_][\w-]*[ \t]*:(?:[ \t]|$)")
_ALMOST_KEY = re.compile(r"[A-Za-z_][\w-]*:(?!//)|[A-Za-z]+_\w*")
_UNSURE = re.compile(r" #|:(?=[ \t]|$)")
_FIRST_WORD = re.compile(r"[\w-]+")
_BRACKET = re.compile(r"[\[\]{}]")
_MARKERS = ("---", "...")


@dataclass(slots=True)
class Span:
    """One value that may be invalid, with its first and last line, from 0."""

    kind: Kind
    """How it begins; `quotes` and `flow` do not end where they should."""
    first: int
    column: int
    """Column of its text in the first line."""
    floor: int
    """The column that its further lines must exceed."""
    last: int
    loose: list[int] = field(default_factory=list)
    """Lines that continue it without being indented."""
    structured: bool = False
    """A further line begins like a key or an item, and may be meant as one."""


@dataclass(slots=True)
class BlockReading:
    """The values of a block."""

    values: list[Span]
    literal: set[int]
    """Lines of block scalars, in which every character counts."""
    unsure: bool = False
    """An unindented line may continue a value or be a key; or there are too many values."""


def split(block: str) -> tuple[list[str], list[str]]:
    """The lines of a block and their ends; the last line's end is empty."""
    pieces = _LINE_END.split(block)
    return pieces[::2], [*pieces[1::2], ""]


def join(lines: Sequence[str], ends: Sequence[str]) -> str:
    """The opposite of `split`."""
    return "".join(piece for pair in zip(lines, ends, strict=True) for piece in pair)


def indent_of(line: str) -> int:
    """Columns of spaces at the start of a line."""
    return len(line) - len(line.lstrip(" "))


def read(lines: Sequence[str], keys: Collection[str] = ()) -> BlockReading:
    """Find every value in a block's lines that could need a repair.

    A line that begins with one of `keys` never continues a text.
    """
    if len(lines) > MAX_LINES:
        return BlockReading([], set(), unsure=True)
    reader = _Reader(lines, frozenset(keys))
    number = 0
    while number < len(lines):
        number = reader.take(number)
    return reader.found


class _Reader:
    """Walks through the lines once, with the value that may still continue."""

    def __init__(self, lines: Sequence[str], keys: frozenset[str]) -> None:
        self._lines = lines
        self._keys = keys
        self._open: Span | None = None
        self._awaiting: int | None = None  # floor of a key or dash whose value is still to come
        self._broken = 0
        self.found = BlockReading([], set())

    def take(self, number: int) -> int:
        """Read a line, or all lines of the value that it begins; returns the next line's number."""
        line = self._lines[number]
        if not line.strip(" \t"):
            self._open = None
            return number + 1
        indent, value = indent_of(line), self._open
        if value is not None:
            if indent > value.floor:
                value.last = number
                text = line[indent:]
                value.structured |= bool(_DASH.match(text) or _WORD_KEY.match(text))
                return number + 1
            if not self._begins(line, indent, after_loose=bool(value.loose)):
                value.last = number
                value.loose.append(number)
                return number + 1
        return self._begin(number, indent)

    def _begins(self, line: str, indent: int, *, after_loose: bool) -> bool:
        """Whether an unindented line begins something new; records if that is unclear.

        `after_loose`: the line above continues a text unindented. An unknown key may then be the
        rest of it, or of a key that began there.
        """
        text = line[indent:]
        if text[0] in "#\t" or _DASH.match(text) or text.startswith(_MARKERS):
            return True
        end = _key_end(text)
        word = _FIRST_WORD.match(text)
        if end is None:
            self.found.unsure |= bool(_UNSURE.search(text) or _ALMOST_KEY.match(text))
            self.found.unsure |= word is not None and word[0] in self._keys
            return False
        key = text[:end].rstrip(": \t")
        unknown = key not in self._keys and (key[0].isupper() or (after_loose and self._keys))
        self.found.unsure |= " " in key or bool(unknown)
        return True

    def _begin(self, number: int, indent: int) -> int:
        """Read a line that is not a continuation: any dashes, key and value."""
        line, place, awaited = self._lines[number], indent, self._awaiting
        self._open = self._awaiting = None
        floor = -1
        while dash := _DASH.match(line, place):
            floor, place = place, dash.end()
        if (end := _key_end(line[place:])) is not None:
            floor, place = place, place + end
            place += len(line[place:]) - len(line[place:].lstrip(" \t"))
        if line[place : place + 1] in ("", "#"):
            self._awaiting = floor if floor >= 0 else awaited
            return number + 1
        if floor < 0:
            if awaited is None or indent <= awaited:
                return number + 1
            floor = awaited
        return self._value(Span("plain", number, place, floor, number))

    def _value(self, value: Span) -> int:
        """Skip a valid quoted, bracketed or block value; leave any other open."""
        number = value.first
        start = self._lines[number][value.column :]
        if _HEADER.match(start):
            return self._block(value)
        if start[0] in "\"'[{" and self._broken < MAX_BROKEN:
            value.kind = "quotes" if start[0] in "\"'" else "flow"
            ahead = self._lines[number + 1 : number + MAX_SPAN]
            if (after := _sound_end("\n".join([start, *ahead]))) is not None:
                return number + after + 1
            self._broken += 1
            self.found.unsure |= self._broken == MAX_BROKEN
        self.found.values.append(value)
        self._open = value
        return number + 1

    def _block(self, value: Span) -> int:
        """The lines of a block scalar, as a separate value if none is indented."""
        number = value.first + 1
        while number < len(self._lines):
            line = self._lines[number]
            if line.strip(" \t") and indent_of(line) <= value.floor:
                break
            self.found.literal.add(number)
            number += 1
        if any(self._lines[n].strip(" \t") for n in range(value.first + 1, number)):
            return number
        while number < len(self._lines):
            line = self._lines[number]
            loose = bool(value.loose)
            if not line.strip(" \t") or self._begins(line, indent_of(line), after_loose=loose):
                break
            value.last = number
            value.loose.append(number)
            number += 1
        if value.loose:
            value.kind = "literal"
            self.found.values.append(value)
        return number


def _key_end(text: str) -> int | None:
    """Where the key and colon at the start of a text end; None if there is no key."""
    if text[:1] in ("'", '"'):
        quoted = _QUOTED_KEY.match(text)
        return quoted.end() if quoted else None
    colon = _COLON.search(text)
    if colon is None or not text[: colon.start()].replace(":", "").strip() or _NO_KEY.match(text):
        return None
    return None if " #" in text[: colon.start()] else colon.end()


def _sound_end(text: str) -> int | None:
    """The line in which a text's quoted or bracketed start ends, with nothing after it."""
    if text[0] in "[{":
        end = _closing(text)
    else:
        quoted = _QUOTED.match(text)
        end = quoted.end() if quoted else None
    if end is None:
        return None
    line_end = text.find("\n", end)
    rest = text[end : line_end if line_end >= 0 else len(text)]
    return text.count("\n", 0, end) if _ENDS_CLEAN.match(rest) else None


def _closing(text: str) -> int | None:
    """The position after the bracket that closes the first one; ignores quotes."""
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in "[{" else -1
        if depth == 0:
            return bracket.end()
    return None


def closes_early(text: str) -> bool:
    """Whether the bracket that a text begins with closes, and more text follows."""
    end = _closing(text)
    return end is not None and bool(text[end:].strip())
