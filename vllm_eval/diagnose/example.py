"""One failed answer as an example: where it went wrong, and the lines around that place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllm_eval.records import Attempt

Blocks = Callable[[str], Mapping[str, str]]

BEFORE = 1
"""Lines shown before an offending one."""
TAIL = 3
"""Lines shown from the end where no line is to blame."""
WIDTH = 100
"""Columns shown of a line."""
MAX_MESSAGE = 300
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what counts as one in YAML
_KEY = re.compile(r"""^[\s-]*["']?([A-Za-z_][\w-]*)["']?\s*:""")


@dataclass(frozen=True, slots=True)
class Example:
    """One failed attempt, with the place to look at."""

    concept_id: str
    sample: int
    attempt: int
    message: str | None
    block: str | None
    line: int | None
    """Inside the block, counted from 1, as is the column."""
    column: int | None
    key: str | None
    truncated: bool
    excerpt: tuple[str, ...]
    """The offending lines with their numbers, a caret under the column; else the text's end."""


def make_example(attempt: Attempt, blocks: Blocks) -> Example:
    """A failed attempt with the place to look at."""
    return Example(
        concept_id=attempt.concept_id,
        sample=attempt.sample,
        attempt=attempt.attempt,
        message=attempt.error and attempt.error[:MAX_MESSAGE],
        block=attempt.block,
        line=attempt.line,
        column=attempt.column,
        key=attempt.key or _key_at(attempt, blocks),
        truncated=attempt.truncated,
        excerpt=excerpt(attempt, blocks),
    )


def split_lines(text: str) -> list[str]:
    """The lines of a text as YAML counts them."""
    return _LINE_END.split(text)


def excerpt(attempt: Attempt, blocks: Blocks) -> tuple[str, ...]:
    """The lines to look at, with their numbers: in the block to blame, else in the whole answer.

    With a place, that line, the one before and a caret; with a key, its line and the next; else
    the last lines, where an answer breaks off.
    """
    if not attempt.raw_response.strip():
        return ()
    text = blocks(attempt.raw_response).get((attempt.block or "").lower(), attempt.raw_response)
    lines = _LINE_END.split(text.rstrip())
    line = attempt.line if attempt.line is not None else _line_of(attempt.key, lines)
    if line is None:
        numbers = range(max(0, len(lines) - TAIL), len(lines))
        return tuple(_show(number, lines[number]) for number in numbers)
    place = min(line, len(lines)) - 1
    if attempt.line is None:
        return tuple(_show(n, lines[n]) for n in range(place, min(place + 2, len(lines))))
    shown = [_show(n, lines[n]) for n in range(max(0, place - BEFORE), place)]
    column = attempt.column
    if column is None:
        return (*shown, _show(place, lines[place]))
    start = max(0, column - WIDTH // 2) if len(lines[place]) > WIDTH else 0
    return (*shown, _show(place, lines[place], start), f"{'^':>{column - start + 7}}")


def _key_at(attempt: Attempt, blocks: Blocks) -> str | None:
    """The key in whose value a parser stopped: the nearest one at or above the line."""
    text = blocks(attempt.raw_response).get((attempt.block or "").lower())
    if text is None or attempt.line is None:
        return None
    for line in reversed(_LINE_END.split(text)[: attempt.line]):
        if found := _KEY.match(line):
            return found[1]
    return None


def _line_of(key: str | None, lines: list[str]) -> int | None:
    """The number, from 1, of the line that holds the last part of a key's path."""
    name = (key or "").rpartition(".")[2]
    for number, line in enumerate(lines, start=1):
        found = _KEY.match(line)
        if name and found and found[1] == name:
            return number
    return None


def _show(index: int, line: str, start: int = 0) -> str:
    return f"{index + 1:>4} | {line[start : start + WIDTH]}"
