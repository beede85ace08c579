"""Text as it stands in Markdown: what a model, a data set or an adapter wrote stays text.

Nothing goes through unless it is an `Md`: the templates put every other text into a code span.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vllm_eval.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 120
"""Characters shown of a text on one line."""
MOST_WORDS = 400
"""The same, of a sentence."""
_PLAIN_SPAN = re.compile(r"[^|\\]+")
_ACTIVE = re.compile(r"[^\w \-]|_")
_WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ ,()/-]*")
_SENTENCE = re.compile(r"(?:[A-Za-z0-9_ ,;:%()+'-]|\.(?=[ 0-9]|$))*")
_TICKS = re.compile("`+")


class Md(str):
    """Markdown of our own making."""

    __slots__ = ()


def code(value: object, most: int = MOST) -> Md:
    """Any value as a code span that holds on one line and in a table's cell.

    Inside of one, GitHub makes no mention, link, emoji or HTML of anything. A bar or a backslash
    cannot be escaped there, so a text with one becomes a `<code>` element of entities.
    """
    text = " ".join(plain(str(value)).split()) or "-"
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    if _PLAIN_SPAN.fullmatch(text):
        longest = max(map(len, _TICKS.findall(text)), default=0)
        ticks, space = "`" * (longest + 1), " " if longest else ""
        return Md(f"{ticks}{space}{text}{space}{ticks}")
    entities = _ACTIVE.sub(lambda match: f"&#{ord(match.group())};", text)
    return Md(f"<code>{entities}</code>")


def words(value: object) -> Md:
    """A name of letters, digits and what markup does not know as it is, any other as code."""
    text = str(value)
    return Md(text) if _WORDS.fullmatch(text) else code(text)


def sentence(value: object) -> Md:
    """Words whose names stand between backticks: those as code, the rest as it is or as code too.

    What could be a link, a mention or markup is no plain sentence, whoever wrote it.
    """
    parts = (
        code(part, MOST_WORDS) if number % 2 or not _SENTENCE.fullmatch(part) else part
        for number, part in enumerate(str(value).split("`"))
    )
    return Md("".join(parts))


def fence(lines: Sequence[str]) -> Md:
    """Lines as a block of code that none of them can end."""
    shown = "\n".join(plain(part) for line in lines for part in line.split("\n"))
    ticks = "`" * max(3, *(len(run) + 1 for run in _TICKS.findall(shown)), 3)
    return Md(f"{ticks}text\n{shown}\n{ticks}")


def finalize(value: object) -> object:
    """What a template's expression comes out as: only `Md` and whole numbers as they are."""
    if isinstance(value, (Md, int)) or value is None:
        return value
    return code(value)
