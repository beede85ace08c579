"""The output contract of a declared task: the first rule that an answer breaks, and how.

The declaration is compiled once into closures over prepared problems, so checking an answer only
looks things up. Source of the order: `product_owner.md`, "Output contract".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from datetime import date, datetime

from vllm_eval.records import Problem
from vllm_eval.tasks.declaration import Declaration, Ids, Value
from vllm_eval.tasks.parse import Parsed

Check = Callable[[Mapping[object, object]], Problem | None]
"""Looks at the mapping that holds a key."""

MISSING_BLOCKS = "missing_yaml_blocks"
CLUSTERS = {
    **dict.fromkeys(("not_text", "not_date", "not_list", "not_dict"), "wrong_type"),
    "not_choice": "wrong_choice",
    "too_few": "too_few",
    "too_long": "too_long",
}
"""The kind of failure by the fault of a value, which is the end of its reason."""
FAULTS = {
    "text": ("not_text", "too_long"),
    "date": ("not_date",),
    "choice": ("not_choice",),
    "list": ("not_list", "too_few"),
    "mapping": ("not_dict",),
}
"""What can be wrong with a value, by its type."""


@dataclass(frozen=True, slots=True)
class Contract:
    """A declaration's rules, compiled for checking answers."""

    checks: Mapping[str, tuple[Check, ...]]
    """By label, in order."""
    reasons: Mapping[str, str]
    """Every reason an answer can fail for, and its kind of failure: `no_blocks`,
    `invalid_yaml`, `not_a_mapping`, `missing_key`, `wrong_type`, `wrong_choice`, `too_few`,
    `too_long` or `no_ids`."""

    def missing(self, found: Mapping[str, str]) -> Problem | None:
        """The problem of an answer that lacks a block; labels are in lower case."""
        absent = [label for label in self.checks if label.lower() not in found]
        if not absent:
            return None
        message = f"the fenced {' and '.join(absent)} block is missing, empty or not closed"
        return Problem(MISSING_BLOCKS, message)

    def check(self, blocks: Mapping[str, Parsed]) -> Problem | None:
        """The first rule that the parsed blocks, by label, break; None if they keep all."""
        for label in self.checks:
            if (error := blocks[label].error) is not None:
                return _not_parsed(label, error, blocks[label])
        mappings: dict[str, Mapping[object, object]] = {}
        for label in self.checks:
            data = blocks[label].data
            if not isinstance(data, dict):
                message = f"the {label} block must be a mapping of keys to values"
                return Problem(f"{label.lower()}_not_mapping", message, label)
            mappings[label] = data
        problems = (c(mappings[label]) for label, checks in self.checks.items() for c in checks)
        return next((problem for problem in problems if problem is not None), None)


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a value, and the names of its problems."""

    label: str
    path: str
    """Of its key, such as `requirements_alignment.gaps`."""
    prefix: str
    """Of the reasons of the mapping around it."""

    @property
    def key(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def name(self) -> str:
        """The first part of the value's own reasons."""
        return f"{self.prefix}_{self.key}"

    def problem(self, reason: str, message: str) -> Problem:
        return Problem(reason, message, self.label, key=self.path)


def compile_contract(declaration: Declaration) -> Contract:
    """The rules of a declaration in the order in which they are checked.

    All blocks must be there, then parse, then be mappings. Then block by block: first the presence
    of its keys, then their values; inside a nested mapping key by key, first presence, then value.
    """
    reasons = {MISSING_BLOCKS: "no_blocks"}
    reasons |= {f"invalid_{label.lower()}_yaml": "invalid_yaml" for label in declaration.blocks}
    reasons |= {f"{label.lower()}_not_mapping": "not_a_mapping" for label in declaration.blocks}
    checks: dict[str, tuple[Check, ...]] = {}
    for label, block in declaration.blocks.items():
        values = [(_Place(label, key, label.lower()), value) for key, value in block.keys.items()]
        first = [check for place, value in values for check in _presence(place, value, reasons)]
        then = [check for place, value in values for check in _value(place, value, reasons)]
        checks[label] = (*first, *then)
    return Contract(checks, reasons)


def find_fault(value: Value) -> Callable[[object], str | None]:
    """A function that returns the fault of a value, which is the end of its reason."""
    kind, least, most = value.type, value.min_items, value.max_words
    choices = frozenset(value.of)

    def fault(found: object) -> str | None:  # noqa: PLR0911  a case for each type
        if kind == "list":
            if not isinstance(found, list):
                return "not_list"
            return "too_few" if len(found) < least else None
        if kind == "mapping":
            return None if isinstance(found, dict) else "not_dict"
        if kind == "date":
            return None if isinstance(found, date) or _is_iso_date(found) else "not_date"
        if kind == "choice":
            return None if isinstance(found, str) and found in choices else "not_choice"
        if not isinstance(found, str):
            return "not_text"
        return "too_long" if most is not None and len(found.split()) > most else None

    return fault


def is_missing(found: object, need: str) -> bool:
    """Whether a value is null, or empty where it must be `filled`; 0 and false are not empty."""
    return found is None or (need == "filled" and isinstance(found, Sized) and not found)


def id_pattern(ids: Ids) -> re.Pattern[str]:
    """Finds the identifiers in a text, in any case."""
    return re.compile(rf"\b(?:{'|'.join(ids.prefixes)})\d{{{ids.min_digits},}}\b", re.IGNORECASE)


def _not_parsed(label: str, error: str, block: Parsed) -> Problem:
    place = f"line {block.line}: " if block.line else ""
    message = f"the {label} block is not valid YAML ({place}{error})"
    return Problem(f"invalid_{label.lower()}_yaml", message, label, block.line, block.column)


def _presence(place: _Place, value: Value, reasons: dict[str, str]) -> Iterator[Check]:
    if value.required == "no":
        return
    reason, key, need = f"{place.prefix}_missing_{place.key}", place.key, value.required
    reasons[reason] = "missing_key"
    problem = place.problem(reason, _lacks(place, value))

    def check(mapping: Mapping[object, object]) -> Problem | None:
        if need == "present":
            return None if key in mapping else problem
        return problem if is_missing(mapping.get(key), need) else None

    yield check


def _lacks(place: _Place, value: Value) -> str:
    nested = "." in place.path
    if value.required == "present" and not nested:
        return f"{place.label} lacks the key `{place.key}`"
    if value.required == "filled":
        if value.type not in ("list", "mapping") and not nested:
            return f"{place.label} lacks a `{place.key}`"
        return f"`{place.path}` is missing or empty"
    hint = "; write [] where there is nothing" if value.type == "list" else ""
    return f"`{place.path}` is missing{hint}"


def _value(place: _Place, value: Value, reasons: dict[str, str]) -> Iterator[Check]:
    if value.lenient:
        return
    name = (value.prefix or place.name) if value.type == "mapping" else place.name
    problems: dict[str, Problem] = {}
    for fault in _possible(value):
        reason = value.reason or f"{name}_{fault}"
        reasons[reason] = CLUSTERS[fault]
        problems[fault] = place.problem(reason, f"`{place.path}` must be {_expected(value)}")
    key, find, optional = place.key, find_fault(value), value.required == "no"

    def check(mapping: Mapping[object, object]) -> Problem | None:
        found = mapping.get(key)
        if found is None and optional:
            return None
        fault = find(found)
        return problems[fault] if fault else None

    yield check
    inner = [replace(place, path=f"{place.path}.{sub}", prefix=name) for sub in value.keys]
    for one, about in zip(inner, value.keys.values(), strict=True):
        for nested in (*_presence(one, about, reasons), *_value(one, about, reasons)):
            yield _inside(key, nested)
    if value.ids is not None:
        yield _ids(place, value, value.ids, reasons)


def _inside(key: str, check: Check) -> Check:
    """The check of the mapping under `key`, if any; its type was checked before."""

    def inside(mapping: Mapping[object, object]) -> Problem | None:
        inner = mapping.get(key)
        return check(inner) if isinstance(inner, dict) else None

    return inside


def _ids(place: _Place, value: Value, ids: Ids, reasons: dict[str, str]) -> Check:
    reasons[ids.reason] = "no_ids"
    example = ids.example or f"{ids.prefixes[0]}{1:0{ids.min_digits}}"
    message = f"no item of `{place.path}` names {ids.called} such as {example}"
    problem = place.problem(ids.reason, message)
    key, pattern = place.key, id_pattern(ids)
    lists = tuple(sub for sub, about in value.keys.items() if about.type == "list")

    def check(mapping: Mapping[object, object]) -> Problem | None:
        found = mapping.get(key)
        if found is None:
            return None
        every = [found.get(sub) for sub in lists] if isinstance(found, dict) else [found]
        items = (item for one in every if isinstance(one, list) for item in one)
        return None if any(pattern.search(str(item)) for item in items) else problem

    return check


def _possible(value: Value) -> tuple[str, ...]:
    """The faults that a value of this declaration can have."""
    impossible = {"too_few": not value.min_items, "too_long": value.max_words is None}
    return tuple(fault for fault in FAULTS[value.type] if not impossible.get(fault))


def _expected(value: Value) -> str:
    if value.type == "list":
        least = value.min_items
        items = f"{least} item{'s' if least > 1 else ''}"
        return f"a list of at least {items}" if least else "a list"
    if value.type == "mapping":
        return f"a mapping of {_listed(list(value.keys), 'and')}"
    if value.type == "choice":
        return f"one of {_listed(list(value.of), 'or')}"
    if value.type == "date":
        return "an ISO 8601 date, or date and time"
    return f"one text of at most {value.max_words} words" if value.max_words else "one text"


def _listed(words: list[str], link: str) -> str:
    return f"{', '.join(words[:-1])} {link} {words[-1]}" if len(words) > 1 else words[0]


def _is_iso_date(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value.strip())
    except ValueError:
        return False
    return True
