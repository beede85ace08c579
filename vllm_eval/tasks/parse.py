"""Fenced YAML blocks: from a model's answer to data, or to a problem with its place.

PyYAML must have libyaml: its loader in Python reads some tabs, escapes and marks differently, and
words most errors differently, so the same answer could get another grade and another reminder.

The text is untrusted. Only plain data is built (no tags that make objects), and size,
nesting, aliases and the length of numbers are limited, so that no answer can exhaust time
or memory. A block that exceeds a limit counts as one that does not parse.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import yaml

from vllm_eval.errors import EvalError

try:
    from yaml import CSafeLoader as _BaseLoader
except ImportError:  # `loader` refuses such a PyYAML
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

MAX_CHARACTERS = 64 * 1024
"""Ten times the longest answer seen; parsing so much takes well under a second."""
MAX_DEPTH = 64
MAX_ALIASES = 8
"""Nested aliases multiply: eight can produce 18 copies of a text, which is harmless."""
MAX_MERGED_ALIASES = 2
"""With merged keys, copies cost much more."""
MAX_NUMBER_CHARACTERS = 1000
MAX_WORDS = 200
"""Characters of an error, which goes into the next prompt and may quote the model."""

# PyYAML's constructors raise more than YAMLError: an impossible date is a ValueError,
# `!!bool x` a KeyError, `!!timestamp x` an AttributeError.
_PARSE_ERRORS = (
    *(yaml.YAMLError, ValueError, TypeError, LookupError),
    *(AttributeError, ArithmeticError, RecursionError),
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


@functools.cache
def loader() -> str:
    """What reads the answers: its name and versions. Another may grade the same answer differently.

    Raises:
        EvalError: PyYAML was built without libyaml.
    """
    if not yaml.__with_libyaml__:
        lacking = (
            f"PyYAML {yaml.__version__} lacks libyaml and would grade some answers differently"
        )
        raise EvalError(f"{lacking}; pip install --force-reinstall --only-binary :all: pyyaml")
    from yaml._yaml import get_version_string

    return f"PyYAML {yaml.__version__}, libyaml {get_version_string()}"


class _Loader(_BaseLoader):
    """The safe loader with a limit on the length of integers."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MAX_NUMBER_CHARACTERS:
        message = f"a number of {len(node.value)} characters"
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)

_STR, _SEQ, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


class _TreeLoader(_Loader):
    """For text without aliases: the same data twice as fast, as strings, lists and maps at once."""

    def construct_document(self, node: yaml.Node) -> object:
        return _build(self, node)

    def resolve(self, kind: type[yaml.Node], value: object, implicit: object) -> str:
        """The tag of a node without one; without path resolvers it does not depend on the place."""
        if kind is not yaml.ScalarNode:
            return _SEQ if kind is yaml.SequenceNode else _MAP
        if isinstance(value, str) and isinstance(implicit, tuple) and implicit[0]:
            for tag, pattern in self.yaml_implicit_resolvers.get(value[:1], ()):
                if pattern.match(value):
                    return str(tag)
        return _STR


def _build(loader: _TreeLoader, node: yaml.Node) -> object:
    kind, tag = type(node), node.tag
    if kind is yaml.ScalarNode and tag == _STR:
        return node.value
    if kind is yaml.SequenceNode and tag == _SEQ:
        return [_build(loader, item) for item in node.value]
    if kind is yaml.MappingNode and tag == _MAP:
        plain = all(type(key) is yaml.ScalarNode and key.tag == _STR for key, _ in node.value)
        if plain:  # otherwise there may be a merge key, or an invalid key
            return {key.value: _build(loader, value) for key, value in node.value}
    return loader.construct_object(node, deep=True)


def extract_block(text: str, label: str) -> str | None:
    """The text of the first fenced block with `label`; None if absent or blank.

    Source: `product_owner.md`, "Output contract".
    """
    place = find_block(text, label)
    if place is None:
        return None
    block = text[place[0] : place[1]]
    return block if block.strip() else None


def find_block(text: str, label: str) -> tuple[int, int] | None:
    """Where the first fenced block with `label` begins and ends; None if a fence is missing.

    The closing fence is searched separately, because one regular expression for both takes
    quadratic time on long white space.
    """
    opening = find_opening(text, label)
    if opening is None:
        return None
    end = text.find("```", opening[1])
    return (opening[1], end) if end >= 0 else None


def find_opening(text: str, label: str) -> tuple[int, int] | None:
    """Where the first fence that opens a block with `label` begins and ends."""
    opening = re.search(rf"```yaml\s*{re.escape(label)}\s*\n", text)
    return opening.span() if opening else None


def parse_block(text: str) -> Parsed:
    """Parse a block; on failure, again without the backticks of inline code."""
    first = parse_yaml(text)
    if first.error is None or len(text) > MAX_CHARACTERS or "`" not in text:
        return first
    second = parse_yaml(_INLINE_CODE.sub(r"\1", text))
    return second if second.error is None else first


def parse_yaml(text: str) -> Parsed:
    """Parse untrusted YAML within the limits of this module. No text can make this raise.

    Raises:
        EvalError: PyYAML was built without libyaml.
    """
    loader()
    if len(text) > MAX_CHARACTERS:
        return Parsed(error=f"{len(text)} characters, more than the {MAX_CHARACTERS} allowed")
    try:
        _check_limits(text)
        return Parsed(data=_load(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (None, None)
        words = error.problem or error.context or "not valid YAML"
        return Parsed(error=str(words)[:MAX_WORDS], line=place[0], column=place[1])
    except _PARSE_ERRORS as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Parsed(error=words[:MAX_WORDS])


def _load(text: str) -> object:
    if "&" not in text:  # no anchor, so no alias
        try:
            return yaml.load(text, Loader=_TreeLoader)  # noqa: S506  a safe loader
        except _PARSE_ERRORS:
            pass  # the plain loader decides which of several errors is named
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a safe loader


def _check_limits(text: str) -> None:
    """Refuse deep nesting and many aliases before any data is built.

    The loader recurses in C, where deep nesting ends the process, not the call. The events are
    walked only if the text could contain such a thing, which real answers rarely do.
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
