"""Repairs inside a block: white space and quotes, so that its text becomes YAML unchanged.

Each takes a block and returns it repaired or unchanged. None parses the whole block: `tasks.repair`
finds out whether a repair was needed, and enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from vllm_eval.tasks.parse import parse_yaml
from vllm_eval.tasks.repair.lines import SPECIAL, Span, closes_early, indent_of, join, read, split

INDENT = 2
"""Columns to indent a further line beyond its value's key or dash."""
MAX_SPECIALS = 200
"""The most values with a special start to examine; each is parsed separately."""
_ODD = "\xa0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_EMPTY = "\u200b\u200c\u200d\u2060\ufeff"
_SPACES = str.maketrans(dict.fromkeys(_ODD, " ") | dict.fromkeys(_EMPTY, ""))
_LEAD = re.compile(rf"[ \t{_ODD}{_EMPTY}]*(?:-[ \t{_ODD}{_EMPTY}]+)*(?:[A-Za-z_][\w-]*:[{_ODD}]+)?")
_INDENTATION = re.compile(r"[ \t]*")
_INNER_COLON = re.compile(r":(?:[ \t]|$)", re.MULTILINE)
_COMMENT = re.compile(r"[ \t]#")
_ALIAS = re.compile(r"\*([\w-]+)")
_WIDEST = 8


def is_unsure(block: str, keys: Collection[str] = ()) -> bool:
    """Whether a line may continue the text above it, or be a key, whatever its indentation."""
    lines, _ = split(expand_tabs(even_spaces(block, keys), keys))
    return read(lines, keys).unsure


def even_spaces(block: str, keys: Collection[str] = ()) -> str:
    """Replace no-break and other odd spaces in indentation and after dashes and keys."""
    lines, ends = split(block)
    literal = read(lines, keys).literal
    for number, line in enumerate(lines):
        lead = _LEAD.match(line)
        if lead and number not in literal:
            lines[number] = lead[0].translate(_SPACES) + line[lead.end() :]
    return join(lines, ends)


def expand_tabs(block: str, keys: Collection[str] = ()) -> str:
    """Replace each tab in indentation with as many spaces as the block's smallest indentation."""
    lines, ends = split(block)
    literal = read(lines, keys).literal
    widths = [indent_of(line) for line in lines if line.strip() and line.startswith(" ")]
    tab = " " * min(min(widths, default=INDENT), _WIDEST)
    for number, line in enumerate(lines):
        lead = _INDENTATION.match(line)
        if lead and "\t" in lead[0] and number not in literal:
            lines[number] = lead[0].replace("\t", tab) + line[lead.end() :]
    return join(lines, ends)


def indent_continuation(block: str, keys: Collection[str] = ()) -> str:
    """Indent lines that continue a text beyond its key or dash."""
    lines, ends = split(block)
    for value in read(lines, keys).values:
        least = min((indent_of(lines[n]) for n in value.loose), default=0)
        for number in value.loose:
            shift = indent_of(lines[number]) - least if value.kind == "literal" else 0
            spaces = " " * (value.floor + INDENT + shift)
            lines[number] = spaces + lines[number].lstrip(" ")
    return join(lines, ends)


def quote_quotes(block: str, keys: Collection[str] = ()) -> str:
    """Requote values that begin with a quote and do not end with it.

    The characters beside quotes show which belong together. If the first one pairs with the last,
    the text between is the value; if it pairs with an earlier one, the whole is; if it is alone,
    it is closed at the end.
    """

    def quoted(text: str, value: Span) -> str | None:
        return None if _swallows(text, keys) else _requoted(text, value)

    return _rewrite(block, keys, quoted)


def quote_specials(block: str, keys: Collection[str] = ()) -> str:
    """Quote values that begin with a character reserved in YAML but are not YAML.

    An open bracket without its end may be the start of a list, so it stays unchanged, as does
    anything that may be meant as a YAML tag or as an alias of an anchor in the block.
    """
    left = MAX_SPECIALS

    def quoted(text: str, value: Span) -> str | None:
        nonlocal left
        if text[0] not in SPECIAL or value.kind not in ("plain", "flow") or value.structured:
            return None
        left -= 1
        meant = text.startswith("!!") or (text[0] in "[{" and not closes_early(text))
        alias = _ALIAS.match(text)
        meant = meant or (alias is not None and f"&{alias[1]}" in block)
        if left < 0 or meant or _COMMENT.search(text):
            return None
        if parse_yaml(f"- {text}").error is None:
            return None
        return _quoted(text)

    return _rewrite(block, keys, quoted)


def quote_colons(block: str, keys: Collection[str] = ()) -> str:
    """Quote plain values in which a space follows a colon.

    An item's first colon makes it a mapping of one key, as in YAML; only its value is quoted.
    """

    def quoted(text: str, value: Span) -> str | None:
        plain = value.kind == "plain" and text[0] not in SPECIAL and not value.structured
        if not plain or not _INNER_COLON.search(text) or _COMMENT.search(text):
            return None
        if _swallows(text, [key for key in keys if "_" in key]):  # the others are words as well
            return None
        return None if text.startswith("- ") else _quoted(text)

    return _rewrite(block, keys, quoted)


def _rewrite(block: str, keys: Collection[str], change: Callable[[str, Span], str | None]) -> str:
    """Replace each value's text with the result of `change`, keeping its lines."""
    lines, ends = split(block)
    for value in read(lines, keys).values:
        if value.loose:  # whether they belong to it is for `indent_continuation`
            continue
        first, numbers = lines[value.first], range(value.first, value.last + 1)
        text = "\n".join([first[value.column :], *(lines[n] for n in numbers[1:])]).rstrip(" \t")
        new = change(text, value)
        if new is not None:
            changed = new.split("\n")
            lines[value.first] = first[: value.column] + changed[0]
            lines[value.first + 1 : value.last + 1] = changed[1:]
    return join(lines, ends)


def _swallows(text: str, keys: Collection[str]) -> bool:
    """Whether a text may contain a key that lost its own line."""
    ends = tuple(keys)
    return any(text.endswith(ends, 0, colon.start()) for colon in _INNER_COLON.finditer(text))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _requoted(text: str, value: Span) -> str | None:
    mark = text[0]
    if value.kind != "quotes" or value.structured or "\\" in text or _COMMENT.search(text):
        return None
    if mark == '"' and text.count(mark) == 1:
        return _quoted(text[1:])
    if mark * 2 in text:  # an escaped quote or an empty text; impossible to tell
        return None
    ends = _ends(text, mark)
    if ends == [len(text) - 1]:
        return _quoted(text[1:-1])
    return _quoted(text) if ends else None


def _ends(text: str, mark: str) -> list[int]:
    """Where a quote closes and none stays open; empty if that is unclear."""
    depth, ends = 0, []
    for place, character in enumerate(text):
        turn = _turn(text, place) if character == mark else 0
        if turn is None:
            return []
        depth += turn
        if depth < 0:
            return []
        if turn and not depth:
            ends.append(place)
    return [] if depth else ends


def _turn(text: str, place: int) -> int | None:
    """1 for an opening quote, -1 for a closing one, 0 inside a word, None if unclear."""
    before = text[place - 1] if place else " "
    after = text[place + 1] if place + 1 < len(text) else " "
    if before.isalnum() and after.isalnum():
        return 0
    opens = (before.isspace() or before in "([{-/") and not after.isspace()
    closes = not before.isspace() and (after.isspace() or after in ".,;:!?)]}-/")
    if opens == closes:
        return None
    return 1 if opens else -1
