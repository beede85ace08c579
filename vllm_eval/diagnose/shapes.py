"""The shape of a text that is not YAML, at the place where the parser stopped."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK_BACK = 12
"""Lines above the place in which a quote that swallowed it may have been opened."""

_TAB = re.compile(r"^ *\t")
_KEY = re.compile(r"""^\s*(?:-\s+)*(?:[A-Za-z_][\w-]*|"[^"]*"|'[^']*')\s*:(?:\s|$)""")
_ITEM = re.compile(r"^\s*-(?:\s|$)")
_VALUE = re.compile(r"^\s*(?:-\s+)*(?:[A-Za-z_][\w-]*:\s+)?")
"""Everything before the value that a line begins."""
_WORD = re.compile(r"\s*[A-Za-z_][\w-]*\s*")
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_AFTER_QUOTE = re.compile(r"[ \t]*(?:$|#|:(?:\s|$)|[,\]}])", re.MULTILINE)
_QUOTE_WORDS = ("unexpected end of stream", "unknown escape", "hexdecimal", "document indicator")
_RESERVED = "@`%*&!|>[{"
_RESERVED_WORDS = (
    *("cannot start any token", "alias", "anchor", "alphabetic or numeric", "directive"),
    *("for the tag", "tag handle", "comment or line break", "node content", "',' or"),
)
_STRUCTURE_WORDS = ("expected ':'", "did not find expected", "not allowed")


def yaml_shape(lines: Sequence[str], message: str, line: int | None, column: int | None) -> str:
    """The cluster of a text that does not parse.

    Args:
        lines: of the block.
        message: the parser's.
        line: where it stopped, counted from 1; None where it does not say.
        column: in that line, counted from 1.
    """
    if line is None or not lines:
        return "other_yaml"
    place = min(max(line, 1), len(lines)) - 1
    character = _character(lines, place, message)
    if character is not None:
        return character
    if "mapping values" in message:
        return _stray_colon(lines, place, (column or 1) - 1)
    if any(words in message for words in _STRUCTURE_WORDS):
        return "unindented_continuation" if _goes_on(lines, place) else "bad_indentation"
    return "other_yaml"


def _character(lines: Sequence[str], place: int, message: str) -> str | None:
    """The cluster of a tab, a quote or a reserved character at the place; None without any."""
    near = lines[max(0, place - 1) : place + 1]
    if any(_TAB.match(text) for text in near):
        return "tab"
    if any(words in message for words in _QUOTE_WORDS) or _broken_quote(lines, place):
        return "broken_quotes"
    if any(words in message for words in _RESERVED_WORDS) or _open_bracket(near):
        return "reserved_character"
    return None


def _stray_colon(lines: Sequence[str], place: int, column: int) -> str:
    """A colon where none may be: too many on a line, or a key the text above has swallowed."""
    before = lines[place][:column]
    if not _WORD.fullmatch(before):
        return "unquoted_colon"
    first = place - 1
    while first >= 0 and _is_bare(lines[first]) and _indent(lines[first]) == _indent(before):
        first -= 1
    if first == place - 1:  # what stands above is a key or an item, or lies further left
        return "bad_indentation"
    continued = first >= 0 and _indent(lines[first]) < _indent(before)
    return "bad_indentation" if continued else "missing_colon"


def _goes_on(lines: Sequence[str], place: int) -> bool:
    """Whether the place, or the line before it, is a text that goes on too far to the left."""
    for number in (place, place - 1):
        if number < 1 or not lines[number].strip():
            continue
        if not _is_bare(lines[number]):
            continue
        above = _above(lines, number)
        return above is not None and bool(_VALUE.sub("", above, count=1).strip())
    return False


def _broken_quote(lines: Sequence[str], place: int) -> bool:
    """Whether a quoted value at or above the place is not closed, or goes on after its end."""
    for number in range(place, max(-1, place - LOOK_BACK), -1):
        start = _VALUE.match(lines[number])
        rest = lines[number][start.end() if start else 0 :]
        if not rest.startswith(("'", '"')):
            continue
        text = "\n".join([rest, *lines[number + 1 :]])
        quoted = _QUOTED.match(text)
        if quoted is None or not _AFTER_QUOTE.match(text, quoted.end()):
            return True
    return False


def _open_bracket(lines: Sequence[str]) -> bool:
    """Whether a value begins with a character that YAML keeps for itself."""
    values = (_VALUE.sub("", text, count=1).strip() for text in lines)
    return any(
        value[:1] in _RESERVED
        and value not in ("", "|", ">", "|-", ">-", "[]", "{}")
        and not value.endswith(("]", "}"))
        for value in values
    )


def _is_bare(text: str) -> bool:
    """Whether a line is neither blank nor begins a key or an item."""
    return bool(text.strip()) and not _KEY.match(text) and not _ITEM.match(text)


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _above(lines: Sequence[str], place: int) -> str | None:
    """The nearest line above that is not blank."""
    return next((text for text in reversed(lines[:place]) if text.strip()), None)
