"""Measures for parts of the metric that need no module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vllm_eval.records import Case
from vllm_eval.tasks.check import find_fault, id_pattern, is_missing
from vllm_eval.tasks.declaration import Block, Declaration, Part, Value

Blocks = Mapping[str, Mapping[object, object]]
"""By label; a block that does not parse, or is not a mapping, is empty."""
Measure = Callable[[Blocks, Case], float]
"""Points of one part, clamped to the range from 0 to the part's points."""

BUILT_IN = ("shape", "mentions")


def built_in(part: Part, declaration: Declaration) -> Measure:
    """The measure of a part that names one of `BUILT_IN`."""
    return _shape(part, declaration) if part.measure == "shape" else _mentions(part)


def _shape(part: Part, declaration: Declaration) -> Measure:
    """The share of declared keys, nested ones included, whose value is as declared.

    Nothing is lenient here: an absent value does not count, nor an empty one that must be filled.
    """
    tests = [(label, test) for label, block in declaration.blocks.items() for test in _tests(block)]

    def shape(blocks: Blocks, _case: Case) -> float:
        return part.points * sum(test(blocks[label]) for label, test in tests) / len(tests)

    return shape


def _tests(inside: Block | Value) -> Iterator[Callable[[object], bool]]:
    """One per declared key; each gets the mapping around it."""
    for key, value in inside.keys.items():
        yield _test(key, value)
        for nested in _tests(value):
            yield lambda found, key=key, nested=nested: nested(_under(found, key))  # type: ignore[misc]


def _test(key: str, value: Value) -> Callable[[object], bool]:
    fault = find_fault(value)

    def test(around: object) -> bool:
        found = _under(around, key)
        return not is_missing(found, value.required) and fault(found) is None

    return test


def _under(around: object, key: str) -> object:
    return around.get(key) if isinstance(around, dict) else None


def _mentions(part: Part) -> Measure:
    """The share of the identifiers in an input that the answer names, in a key or a value.

    If the input has none, nothing can be missing: all points.
    """
    assert part.ids is not None  # noqa: S101  the declaration was checked
    pattern, name = id_pattern(part.ids), part.input or ""

    def mentions(blocks: Blocks, case: Case) -> float:
        asked = {found.upper() for found in pattern.findall(case.inputs[name])}
        if not asked:
            return part.points
        text = " ".join(word for block in blocks.values() for word in _words(block))
        return part.points * len(asked & {w.upper() for w in pattern.findall(text)}) / len(asked)

    return mentions


def _words(whole: object) -> Iterator[str]:
    """Every key and value; each list and mapping once, since an alias can nest it in itself."""
    waiting, seen = [whole], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list):
            yield str(value)
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
