"""Repairs of the fences around the blocks: labels written differently, a last fence not closed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_eval.tasks.parse import find_opening

_FENCE = re.compile(r"^[ \t>]*(`{2,}|~{3,})([^\n`~]*)$", re.MULTILINE)
_AROUND = " \t\r:#*_()[]\"'.-"
"""Characters that may surround a label."""
_AROUND_HEADING = _AROUND + ">`0123456789"
_LANGUAGES = ("yaml", "yml")
_CLOSE = "```"
_HALF_CLOSED = re.compile(r"\n[ \t]*(?:`{1,2}|~{3,})[ \t]*\Z")


@dataclass(frozen=True, slots=True, eq=False)
class _Fence:
    """The line that opens a fenced block."""

    line: re.Match[str]
    closing: tuple[int, int] | None = None
    """Where its closing line has its marks."""

    @property
    def info(self) -> str:
        """The text after the marks."""
        return self.line[2]


def label_fences(text: str, labels: Sequence[str]) -> str:
    """Correct the fences of missing labels, if it is clear which they are.

    That is a fence whose label or language is written differently; one below a heading, or above a
    comment, that is the label; and YAML fences without a label, if as many labels are missing and
    the blocks are then in the order asked for.
    """
    missing = [label for label in labels if find_opening(text, label) is None]
    if not missing:
        return text
    fences = _openings(text)
    taken: dict[_Fence, str] = {}
    for label in missing:
        named = [fence for fence in fences if _label(fence.info) == label.casefold()]
        named = named or [fence for fence in fences if _is_headed(text, fence, label)]
        if len(named) == 1 and named[0] not in taken:
            taken[named[0]] = label
    bare = [f for f in fences if f.info.strip().casefold() in _LANGUAGES and f not in taken]
    unnamed = [label for label in missing if label not in taken.values()]
    if unnamed and len(bare) == len(unnamed):
        guess = taken | dict(zip(bare, unnamed, strict=True))
        if _in_order(_relabelled(text, guess.items()), labels):
            taken = guess
    return _relabelled(text, taken.items())


def close_fence(text: str, labels: Sequence[str]) -> str:
    """Close the last fence, if it has one of the labels and nothing closes it."""
    openings = [place for label in labels if (place := find_opening(text, label)) is not None]
    if not openings or text.find(_CLOSE, max(end for _, end in openings)) >= 0:
        return text
    body = _HALF_CLOSED.sub("", text).rstrip()
    return f"{body}\n{_CLOSE}\n"


def _openings(text: str) -> list[_Fence]:
    found: list[_Fence] = []
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        bare = not line[2].strip()
        if opened is not None and bare and line[1][0] == opened[1][0]:
            found.append(_Fence(opened, line.span(1)))
            opened = None
        elif opened is None or not bare:
            if opened is not None:
                found.append(_Fence(opened))
            opened = line
    if opened is not None:
        found.append(_Fence(opened))
    return found


def _label(info: str) -> str:
    """The label in the text after the marks, in lower case; empty if there is none."""
    words = info.strip(_AROUND).casefold()
    for language in _LANGUAGES:
        if words.startswith(language):
            return words.removeprefix(language).strip(_AROUND)
    return words


def _is_headed(text: str, fence: _Fence, label: str) -> bool:
    """Whether the label is the whole line above a fence, or a comment right below it."""
    if fence.info.strip().casefold() not in ("", *_LANGUAGES):
        return False
    start, end = fence.line.span()
    above = text[max(0, start - 200) : start].rstrip().rpartition("\n")[2]
    below = text[end : end + 200].lstrip("\r\n").partition("\n")[0].strip()
    lines = [above, *([below] if below.startswith("#") else [])]
    names = (line.strip(_AROUND_HEADING).casefold().removesuffix(" block") for line in lines)
    return any(name.strip(_AROUND_HEADING) == label.casefold() for name in names)


def _relabelled(text: str, taken: Iterable[tuple[_Fence, str]]) -> str:
    edits = []
    for fence, label in taken:
        edits.append((*fence.line.span(), f"```yaml {label}"))
        if fence.closing and fence.line[1][0] == "~":
            edits.append((*fence.closing, _CLOSE))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _in_order(text: str, labels: Sequence[str]) -> bool:
    places = [find_opening(text, label) for label in labels]
    starts = [place[0] for place in places if place is not None]
    return len(starts) == len(labels) and starts == sorted(starts)
