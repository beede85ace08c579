"""Words and numbers as the page and Markdown show them.

Text from a model, a data set or an adapter stays text: nothing is hidden, nothing becomes markup.
In Markdown only an `Md` passes unchanged: templates put every other text into a code span.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from markupsafe import Markup, escape

from vllm_eval.compare.betting import chance
from vllm_eval.compare.summary import NO_TIER
from vllm_eval.text import has_hidden, is_hidden, plain

NOTHING = "\N{EN DASH}"
"""Shown if there is no number."""
NO_END = "\N{INFINITY})"
"""Shown if an interval has no upper end."""
_MINUS = str.maketrans("-", "\N{MINUS SIGN}")
_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
MOST = 120
"""Characters shown of a text on one line."""
MOST_WORDS = 400
"""The same for a sentence."""
_PLAIN_SPAN = re.compile(r"[^|\\]+")
_ACTIVE = re.compile(r"[^\w \-]|_")
_WORDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ ,()/-]*")
_SENTENCE = re.compile(r"(?:[A-Za-z0-9_ ,;:%()+'-]|\.(?=[ 0-9]|$)|[</=](?= ))*")
_TICKS = re.compile("`+")


def score(value: float | None) -> str:
    """Three decimals."""
    return NOTHING if value is None else f"{value:.3f}".translate(_MINUS)


def signed(value: float | None) -> str:
    """Three decimals and a sign."""
    return NOTHING if value is None else f"{value:+.3f}".translate(_MINUS)


def percent(value: float | None) -> str:
    """A share; 99.6 % is not rounded to 100 %, nor 0.4 % to 0."""
    if value is None:
        return NOTHING
    shown = f"{value:.0%}"
    return f"{value:.1%}" if shown in ("0%", "100%") and value not in (0, 1) else shown


def ends(interval: Mapping[str, Any], form: str = "score") -> str:
    """The ends of an interval, of which the upper one may be missing."""
    show = {"signed": signed, "percent": percent}.get(form, score)
    if interval["low"] is None:
        return ""
    high = NO_END if interval["high"] is None else f"{show(interval['high'])}]"
    return f"[{show(interval['low'])}, {high}"


def loss(value: float | None) -> str:
    """Four decimals; three digits where that says nothing, because a loss may be of any size."""
    usual = value is None or value == 0 or 0.001 <= abs(value) < 10_000
    return NOTHING if value is None else f"{value:{'.4f' if usual else '.3g'}}".translate(_MINUS)


def count(value: float | None) -> str:
    """With thousands separators."""
    return NOTHING if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """About three digits; in milliseconds below one second."""
    if value is None:
        return NOTHING
    if value < 1:
        return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms"
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} s"


def look(found: Mapping[str, Any] | None) -> str:
    """Which look at its cases a run is; empty for the first."""
    if found is None or found["number"] < 2:
        return ""
    cases, shared = found["cases"], found["shared"]
    which = "these cases" if shared == cases else f"{shared:,} of these {cases:,} cases"
    return f"look {found['number']:,} at {which}"


def look_note(found: Mapping[str, Any] | None) -> str:
    """The same as sentences, with what it means for the verdict."""
    words = look(found)
    return words and f"This is {words}. Stated error rates hold for a single look."


def settled_note(settled: Mapping[str, int]) -> str:
    """At which case the verdict was settled, and what is not counted."""
    cases, most, after = (settled[key] for key in ("cases", "of", "outcomes_after"))
    left_out = f"not counted: {after:,} outcome{'s' * (after != 1)} after the decision"
    return f"The verdict was settled after {cases:,} of at most {most:,} cases; {left_out}."


def reused_note(reused: Mapping[str, Any]) -> str:
    """Whose answers the baseline's are, and what was proven of its base."""
    answers, proof, script = reused["answers"], reused["proof"], reused["engine"].get("engine")
    whose = f"{answers:,} answer{'s' * (answers != 1)} re-used from {reused['run']}"
    proven = "its base has not been compared with this engine's"
    if proof:
        proven = "its base was proven to be this engine's by the canary"
    elif script == "scripted":
        proven = "a script has no base to prove"
    spent = "times and tokens are those of the other answers"
    return f"{whose} of {reused['started_at'][:10]}; {proven}; {spent}"


def ranking_note(ranking: Mapping[str, Any]) -> str:
    """By what students are ranked, and what the numbers of the ranking are."""
    level = percent(ranking["students"][0]["mean_all"]["confidence"])
    said = f"Ranked by {ranking['by']}. Intervals are at {level}."
    return f"{said} Two students are tied if their scores cannot be told apart."


def curve_note(curve: Mapping[str, Any]) -> str:
    """What the figures of a training run's points are, and which of its losses stand there."""
    rate = curve["points"][0]["valid_rate"]
    level = percent(rate["confidence"])
    over = "exact, over cases" if rate["method"] == "exact" else "over each case's share of answers"
    said = f"Intervals are at {level}; those of shares are {over}."
    if not curve["losses"]:
        return said
    logged = "the last one logged since the row before"
    return f"{said} The loss is {logged}, the evaluation loss that of the very step."


_NUMBERS = (score, signed, ends, loss, percent, count, seconds, chance)
_NOTES = (look, look_note, settled_note, ranking_note, reused_note, curve_note)
NUMBERS = {f.__name__: f for f in (*_NUMBERS, *_NOTES)}
"""The templates' filters for numbers, alone or in a sentence."""


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


def tiers_of(comparison: Mapping[str, Any]) -> list[str]:
    """The tiers of all arms; none if the cases have no tier."""
    found = dict.fromkeys(tier for tiers in comparison["tiers"].values() for tier in tiers)
    return [] if set(found) == {NO_TIER} else sorted(found)


def tone(word: str) -> str:
    """The style class of a verdict, or of a run that has not finished."""
    return word.lower() if word in ("PASS", "FAIL", "UNDECIDED") else "open"


def span(interval: Mapping[str, Any], threshold: float, width: float = 100.0) -> dict[str, float]:
    """The positions of an interval, its value and a threshold on a scale of `width`.

    An interval without an upper end reaches to the end of the scale.
    """
    ends = [v for v in (interval["low"], interval["value"], interval["high"]) if v is not None]
    low, high = min([*ends, threshold]), max([*ends, threshold])
    pad = (high - low or 0.1) * 0.12
    start, length = low - pad, (high - low) + 2 * pad
    named = {"value": interval["value"], "low": interval["low"], "high": interval["high"]}
    places = {key: v for key, v in (named | {"threshold": threshold}).items() if v is not None}
    found = {key: round((v - start) / length * width, 2) for key, v in places.items()}
    return {"high": width} | found if "low" in found else found


def visible(text: object) -> Markup:
    """Escaped, with characters that show nothing or turn the reading direction named instead.

    The result is isolated: whatever its direction, what stands around it stays where it is.
    """
    words = str(text)
    parts = (_named(c) if is_hidden(c) else escape(c) for c in words)
    shown = Markup("").join(parts) if has_hidden(words) else escape(words)
    return Markup("<bdi>{}</bdi>").format(shown)


def ticked(text: str) -> Markup:
    """A sentence whose names stand between backticks: those as code, everything escaped."""
    parts = (
        Markup("<code>{}</code>").format(visible(part)) if number % 2 else visible(part)
        for number, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def json_in_script(data: Any) -> Markup:  # noqa: ANN401  any JSON value
    """JSON that cannot end, or comment out, the script element around it."""
    return Markup(orjson.dumps(data).decode().translate(_UNSAFE))  # noqa: S704  escaped just here


def _named(c: str) -> Markup:
    name = unicodedata.name(c, "control character")
    mark = Markup('<span class="hidden-char" title="{}">U+{}</span>')
    return mark.format(name.capitalize(), f"{ord(c):04X}")


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

    What could be a link, a mention or markup is not a plain sentence, whoever wrote it.
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
