"""Text and numbers as they stand in the page: nothing hidden, nothing that could be markup."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import orjson
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
_HIDDEN_LETTERS = frozenset("\u034f\u115f\u1160\u3164\uffa0")
"""Letters and marks by category that show nothing."""
_MINUS = str.maketrans("-", "\N{MINUS SIGN}")
_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def visible(text: object) -> Markup:
    """Escaped, with characters that show nothing or turn the reading direction named instead.

    The result is isolated: whatever its direction, what stands around it stays where it is.
    """
    parts = (_named(c) if _is_hidden(c) else escape(c) for c in str(text))
    shown = escape(text) if str(text).isprintable() else Markup("").join(parts)
    return Markup("<bdi>{}</bdi>").format(shown)


def json_in_script(data: Any) -> Markup:  # noqa: ANN401  any JSON value
    """JSON that cannot end, or comment out, the script element around it."""
    return Markup(orjson.dumps(data).decode().translate(_UNSAFE))  # noqa: S704  escaped just here


def score(value: float | None) -> str:
    """Three decimals."""
    return NOTHING if value is None else f"{value:.3f}".translate(_MINUS)


def signed(value: float | None) -> str:
    """Three decimals and a sign."""
    return NOTHING if value is None else f"{value:+.3f}".translate(_MINUS)


def percent(value: float | None) -> str:
    """A share; 99.6 % does not become 100 %, nor 0.4 % nothing."""
    if value is None:
        return NOTHING
    shown = f"{value:.0%}"
    return f"{value:.1%}" if shown in ("0%", "100%") and value not in (0, 1) else shown


def count(value: float | None) -> str:
    """Thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Three figures or so, in milliseconds below one second."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms"
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} s"


def chance(p: float) -> str:
    """A p-value, as small as it is worth saying."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mapping's plain values as words, those of an inner mapping under `outer.inner`."""
    found: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += [(f"{key}.{inner}", words) for inner, words in facts(value)]
        elif isinstance(value, list):
            found.append((key, "; ".join(map(_words, value)) or "none"))
        else:
            found.append((key, _words(value)))
    return found


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {words}" for key, words in facts(value))
    plain = {None: "none", True: "yes", False: "no"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)


def _is_hidden(c: str) -> bool:
    return unicodedata.category(c) in _HIDDEN or c in _HIDDEN_LETTERS


def _named(c: str) -> Markup:
    name = unicodedata.name(c, "control character")
    mark = Markup('<span class="hidden-char" title="{}">U+{}</span>')
    return mark.format(name.capitalize(), f"{ord(c):04X}")
