"""matplotlib's SVG made fit for a page: colours by name, no strange ids, fewer digits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_TAG = re.compile(r"<[^>]*>")
"""What is not text: a name may look like an id, a link or a colour, and stays what it is."""
_VOID = re.compile(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", re.DOTALL)
_ID = re.compile(r' id="([^"]*)"')
_USED = re.compile(r'(url\(#|href="#)([^")]*)')
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_GEOMETRY = re.compile(r'(?<= )(d|x|y|points|transform)="([^"]*)"')
_COLOUR = re.compile("#[0-9a-f]{6}")
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def clean_svg(text: str, name: str) -> str:
    """An SVG file's text without what is of no use.

    Args:
        text: as matplotlib wrote it.
        name: goes before every id that is referred to; the others are dropped.
    """
    text = _VOID.sub("", text)
    used = {match.group(2) for tag in _TAG.findall(text) for match in _USED.finditer(tag)}
    return _TAG.sub(lambda tag: _clean_tag(tag.group(), name, used), text)


def with_background(text: str, colour: str) -> str:
    """An SVG file's text with a rectangle of one colour behind all."""
    start = text.index(">", text.index("<svg")) + 1
    rectangle = f'<rect width="100%" height="100%" style="fill: {colour}"/>'
    return text[:start] + rectangle + text[start:]


def as_element(text: str, called: str, colours: Mapping[str, str]) -> str:
    """An SVG file's text as an element of a page that sets its width.

    Args:
        text: of `clean_svg`.
        called: what it is called for those who do not see it.
        colours: what each `#rrggbb` becomes.
    """

    def recoloured(tag: re.Match[str]) -> str:
        return _COLOUR.sub(lambda m: colours.get(m.group(), m.group()), tag.group())

    view = _VIEW.search(text)
    box = view.group() if view else ""
    start = text.index(">", text.index("<svg")) + 1
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"'
    return f"{opening} aria-label={quoteattr(called)}>{_TAG.sub(recoloured, text[start:])}"


def _clean_tag(tag: str, name: str, used: Collection[str]) -> str:
    tag = _ID.sub(lambda m: f' id="{name}-{m.group(1)}"' if m.group(1) in used else "", tag)
    tag = _USED.sub(rf"\g<1>{name}-\g<2>", tag).replace("xlink:href", "href")
    tag = tag.replace("'DejaVu Sans'", "'DejaVu Sans', system-ui, sans-serif")
    return _GEOMETRY.sub(lambda m: f'{m.group(1)}="{_NUMBER.sub(_shorter, m.group(2))}"', tag)


def _shorter(match: re.Match[str]) -> str:
    return f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
