"""Fenced YAML blocks: from a model's answer to data, or to a problem with its place.

The text is untrusted. Only plain data is built (no tags that make objects), and size,
nesting, aliases and the length of numbers are limited, so that no answer can exhaust time
or memory; what exceeds a limit counts as a block that does not parse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

try:
    from yaml import CSafeLoader as _BaseLoader  # libyaml: about ten times faster
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

MAX_CHARACTERS = 64 * 1024
"""Ten times the longest answer seen; all that is built of it costs well under a second."""
MAX_DEPTH = 64
MAX_ALIASES = 8
"""Nested aliases multiply: eight can reach 18 copies of a text, which is harmless."""
MAX_MERGED_ALIASES = 2
"""Where keys are merged, copies cost much more."""
MAX_NUMBER_CHARACTERS = 1000

# Constructors of PyYAML raise more than YAMLError: an impossible date is a ValueError,
# `!!bool x` a KeyError, `!!timestamp x` an AttributeError.
_PARSE_ERRORS = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
_INLINE_CODE = re.compile(r"`([^`]+)`")
_ALIAS_OR_ANCHOR = re.compile(r"(?:^|[\s\[{,])[&*]")
_COMPACT_NESTING = re.compile(r"[-?:][ \t]+[-?][ \t]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A block's data, or why there is none. Line and column count from 1."""

    data: object = None
    error: str | None = None
    line: int | None = None
    column: int | None = None


class _Loader(_BaseLoader):
    """The safe loader with a limit on the length of integers."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MAX_NUMBER_CHARACTERS:
        message = f"a number of {len(node.value)} characters"
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def extract_block(text: str, label: str) -> str | None:
    """The text of the first fenced block with `label`, or None where it is absent or blank.

    Source: `product_owner.md`, "Output contract". The closing fence is looked for by hand:
    one regular expression for both takes quadratic time on long white space.
    """
    opening = re.search(rf"```yaml\s*{re.escape(label)}\s*\n", text)
    if opening is None:
        return None
    end = text.find("```", opening.end())
    if end < 0:
        return None
    block = text[opening.end() : end]
    return block if block.strip() else None


def parse_block(text: str) -> Parsed:
    """Parse a block; on failure once more with inline code's backticks removed."""
    first = parse_yaml(text)
    if first.error is None or len(text) > MAX_CHARACTERS or "`" not in text:
        return first
    second = parse_yaml(_INLINE_CODE.sub(r"\1", text))
    return second if second.error is None else first


def parse_yaml(text: str) -> Parsed:
    """Parse untrusted YAML within the limits of this module. Never raises for any text."""
    if len(text) > MAX_CHARACTERS:
        return Parsed(error=f"{len(text)} characters, more than the {MAX_CHARACTERS} allowed")
    try:
        _check_limits(text)
        return Parsed(data=yaml.load(text, Loader=_Loader))  # noqa: S506  a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (None, None)
        words = error.problem or error.context or "not valid YAML"
        return Parsed(error=str(words), line=place[0], column=place[1])
    except _PARSE_ERRORS as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Parsed(error=words[:200])


def _check_limits(text: str) -> None:
    """Refuse deep nesting and many aliases before any data is built.

    The loader recurses in C, where a deep nest ends the process, not the call. The events
    are only walked where the text could hold such a thing, which real answers rarely do.
    """
    if not (
        text.count("[") + text.count("{") > MAX_DEPTH
        or " " * MAX_DEPTH in text
        or _ALIAS_OR_ANCHOR.search(text)
        or len(_COMPACT_NESTING.findall(text)) > MAX_DEPTH
    ):
        return
    most = MAX_MERGED_ALIASES if "<<" in text else MAX_ALIASES
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        if depth > MAX_DEPTH or aliases > most:
            what = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else "too many aliases"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)  # type: ignore[arg-type]
