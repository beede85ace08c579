"""The table of characters that are invisible, or that steer the display of a text."""

from __future__ import annotations

import unicodedata

_KINDS = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
"""Categories: controls, formats and directions, lone surrogates, private use, line ends."""
SPANS = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2065, 0x2065),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0E),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xE0000, 0xE0FFF),
)
"""Letters, marks and unassigned characters, first and last of each span.

Source: Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties.txt, less the categories
above and U+FE0F, which asks for the picture of a character that stands in many texts with one.
"""
_LETTERS = frozenset(chr(code) for first, last in SPANS for code in range(first, last + 1))


def is_hidden(character: str) -> bool:
    """Whether a character is invisible, or changes the direction or lines of the text around it."""
    if character.isascii():
        return not character.isprintable()
    return character in _LETTERS or unicodedata.category(character) in _KINDS


def has_hidden(text: str) -> bool:
    """Whether any character of `text` is hidden; fast for pure ASCII, which most texts are."""
    if text.isascii():
        return not text.isprintable()
    return any(map(is_hidden, text))


def plain(text: str) -> str:
    """`text` on one line, with characters replaced that are hidden or could steer a terminal."""
    line = text.replace("\n", " ")
    if not has_hidden(line):
        return line
    return "".join("\N{REPLACEMENT CHARACTER}" if is_hidden(c) else c for c in line)
