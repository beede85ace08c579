"""The grammar of a task's answers, from its declaration, for constrained decoding.

The grammar is GBNF, which vLLM's structured outputs accept with xgrammar and with guidance. All
blocks and keys come in the declared order, each value in the ways YAML is usually written: plain
texts, folded or not, quoted texts, block scalars, lists under their key or indented below it. No
text can turn into another type, end its block or break the YAML, whatever the model writes. So a
complete answer parses and keeps every part of the contract that can be counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_eval.errors import ConfigError
from vllm_eval.tasks import grammar_text as texts
from vllm_eval.tasks.declaration import Declaration, Ids, Value
from vllm_eval.tasks.grammar_text import Rules, literal, spelled
from vllm_eval.tasks.parse import parse_yaml

_STEP = 2
"""Indentation of a mapping's keys and of a text's further lines, in spaces."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar and its name."""

    text: str
    """GBNF; the rule `root` is a whole answer."""
    sha256: str


def make_grammar(declaration: Declaration) -> Grammar:
    """The grammar of the complete answers that keep the declaration's shape.

    A lenient minimum counts as one item, because the contract accepts fewer, and good answers have
    fewer.

    Raises:
        ConfigError: the declaration asks for identifiers, but no list could name them.
    """
    rules = Rules()
    blocks = []
    for number, (label, block) in enumerate(declaration.blocks.items()):
        name = f"block{number}"
        opening = literal(f"```yaml {label}\n")
        blocks.append(rules.add(name, f'{opening} {_keys(rules, name, block.keys, 0)} "```"'))
    bodies = {"root": ' "\\n" '.join(blocks) + ' "\\n"?'} | rules.bodies
    text = "".join(f"{name} ::= {body}\n" for name, body in bodies.items())
    return Grammar(text, hashlib.sha256(text.encode()).hexdigest())


def _keys(rules: Rules, path: str, keys: Mapping[str, Value], indent: int) -> str:
    rows = enumerate(keys.items())
    return " ".join(_key(rules, f"{path}-{n}", name, indent, v) for n, (name, v) in rows)


def _key(rules: Rules, path: str, name: str, indent: int, value: Value) -> str:
    """A rule for one key and its value, including the end of the line."""
    head = _head(name, indent)
    if value.type == "list":
        body = _list(rules, value, indent, value.ids, named=value.ids is not None)
    elif value.type == "mapping":
        body = _mapping(rules, path, value, indent + _STEP)
    elif value.type == "choice":
        body = f'" " ({_choice(value.of)}) "\\n"'
    elif value.type == "date":
        body = f'" " {texts.add_date(rules)} "\\n"'
    else:
        body = _text(rules, value, indent + _STEP)
    return rules.add(path, f"{head} {body}")


def _head(name: str, indent: int) -> str:
    """The key itself; one such as `on` needs quotes, or YAML reads it as a boolean."""
    key = literal((name if _is_plain(name) else f'"{name}"') + ":")
    return f"{spelled(' ' * indent)} {key}"


def _choice(values: Sequence[str]) -> str:
    """One of `values`, unquoted if YAML then reads it as that text."""
    forms = [literal(value) for value in values if _is_plain(value)]
    forms += [literal(json.dumps(value, ensure_ascii=False)) for value in values]
    return " | ".join(forms + [literal(f"'{value}'") for value in values if "'" not in value])


def _is_plain(text: str) -> bool:
    return parse_yaml(text).data == text


def _text(rules: Rules, value: Value, indent: int) -> str:
    if value.max_words is None:
        text = texts.add_text(rules, indent, block=True)
    else:
        text = texts.add_counted(rules, value.max_words, indent)
    return f'" " ({text} | "\\"\\"\\n")' if value.required == "no" else f'" " {text}'


def _mapping(rules: Rules, path: str, value: Value, indent: int) -> str:
    """A mapping's keys; with `ids`, once for each list that may be the one that names some."""
    if value.ids is None:
        return f'"\\n" {_keys(rules, path, value.keys, indent)}'
    free, named = [], []
    for number, (name, child) in enumerate(value.keys.items()):
        at = f"{path}-{number}"
        if child.type != "list":
            free.append(_key(rules, at, name, indent, child))
            named.append("")
            continue
        head, own = _head(name, indent), child.ids or value.ids
        body = _list(rules, child, indent, own, named=child.ids is not None)
        free.append(rules.add(at, f"{head} {body}"))
        body = _list(rules, child, indent, own, named=True)
        named.append(rules.add(f"{at}-named", f"{head} {body}") if own == value.ids else "")
    rows = ((number, name) for number, name in enumerate(named) if name)
    ways = [" ".join((*free[:number], name, *free[number + 1 :])) for number, name in rows]
    if not ways:
        keys = ", ".join(value.keys)
        raise ConfigError(f"task: ids: none of {keys} is a list that could name {value.ids.called}")
    return f'"\\n" ({" | ".join(ways)})'


def _list(rules: Rules, value: Value, indent: int, ids: Ids | None, *, named: bool = False) -> str:
    """A list's items, flush with their key or below it; `named`: one names an identifier."""
    least = min(value.min_items, 1) if value.lenient else value.min_items
    if value.required == "filled":
        least = max(least, 1)
    most = max(least, value.max_items)
    ways = []
    for begin in (indent, indent + _STEP):
        dash, inside = spelled(" " * begin + "- "), begin + _STEP
        forms = [texts.add_text(rules, inside)]
        if ids:  # `- FR001: what it says` is how models write such items
            forms += [texts.add_entry(rules, inside), texts.add_entry(rules, inside, ids)]
        line = rules.add(f"item-{forms[-1]}", f"{dash} ({' | '.join(forms)})")
        if ids and named:
            name = texts.add_naming(rules, ids, inside)
            one = rules.add(f"item-{name}", f"{dash} ({name} | {forms[-1]})")
            before, after = f"{line}{{0,{most - 1}}}", f"{line}{{{max(least - 1, 0)},{most - 1}}}"
            ways.append(f"{before} {one} {after}" if most > 1 else one)
        else:
            ways.append(f"{line}{{{max(least, 1)},{most}}}")
    items = f'"\\n" ({" | ".join(ways)})'
    return items if named or least else f'({items} | " []\\n")'
