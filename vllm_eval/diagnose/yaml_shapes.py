"""The shape of a text that is not YAML, at the place where the parser stopped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_eval.records import Attempt

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


def yaml_shape(lines: Sequence[str], attempt: Attempt) -> str:
    """The cluster of a block that does not parse, from its lines and the parser's error."""
    if attempt.line is None or not lines:
        return "other_yaml"
    place, message = min(max(attempt.line, 1), len(lines)) - 1, attempt.error or ""
    near = lines[max(0, place - 1) : place + 1]
    shape = "other_yaml"
    if any(_TAB.match(text) for text in near):
        shape = "tab"
    elif any(words in message for words in _QUOTE_WORDS) or _broken_quote(lines, place):
        shape = "broken_quotes"
    elif any(words in message for words in _RESERVED_WORDS) or _open_bracket(near):
        shape = "reserved_character"
    elif "mapping values" in message:
        shape = _stray_colon(lines, place, (attempt.column or 1) - 1)
    elif any(words in message for words in _STRUCTURE_WORDS):
        shape = "unindented_continuation" if _goes_on(lines, place) else "bad_indentation"
    return shape


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
        if number < 1 or not _is_bare(lines[number]):
            continue
        above = next((text for text in reversed(lines[:number]) if text.strip()), None)
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
