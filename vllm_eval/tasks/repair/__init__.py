"""Repairs of an answer's text: few, named, and only if the answer cannot be read without them.

A repair changes fences, white space and quotes, never a word. Repaired grades stand beside the
strict ones and never replace them; whatever breaks a rule of the contract stays broken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from vllm_eval.records import Case
from vllm_eval.tasks.declaration import Declaration, Value
from vllm_eval.tasks.parse import extract_block, find_block, parse_block
from vllm_eval.tasks.repair import fences, values
from vllm_eval.tasks.task import Task

_Mend = Callable[[str, Collection[str]], str]

MAX_CHARACTERS = 32 * 1024
"""Five times the longest answer seen; a longer one is not repaired."""
LABEL_FENCE, CLOSE_FENCE = "label_fence", "close_fence"
INDENT_CONTINUATION = "indent_continuation"
IN_BLOCKS: dict[str, _Mend] = {
    "odd_spaces": values.even_spaces,
    "tabs": values.expand_tabs,
    INDENT_CONTINUATION: values.indent_continuation,
    "quote_quotes": values.quote_quotes,
    "quote_specials": values.quote_specials,
    "quote_colons": values.quote_colons,
}
"""In the order tried: quotes come last, when the lines of a text are known."""
NAMES = (LABEL_FENCE, CLOSE_FENCE, *IN_BLOCKS)
"""All repairs."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """An answer after repair."""

    text: str
    names: tuple[str, ...]
    """The repairs needed, in the order of `NAMES`; empty if the text is unchanged."""
    score: float | None = None
    """As graded after the repair, as are the parts; only `mend` grades."""
    parts: Mapping[str, float] = field(default_factory=dict)


def mend(task: Task, case: Callable[[], Case], text: str, *, ended: bool) -> Repaired | None:
    """A failed answer repaired and graded again; None if no repair makes it keep the contract.

    `case` reads the case if there is something to grade; `ended` is as for `repair`.
    """
    if not task.grades:  # a module that only a stored run names is never run
        return None
    keys = keys_of(task.declaration)
    found = repair(text, tuple(task.declaration.blocks), keys, ended=ended)
    if not found.names:
        return None
    graded = task.grade(case(), found.text)
    if graded.problem is not None:
        return None
    return replace(found, score=graded.score, parts=graded.parts)


def keys_of(declaration: Declaration) -> frozenset[str]:
    """Every key that a task declares, at any depth."""

    def inside(keys: Mapping[str, Value]) -> frozenset[str]:
        return frozenset(keys).union(*(inside(value.keys) for value in keys.values()))

    return frozenset[str]().union(*(inside(block.keys) for block in declaration.blocks.values()))


def repair(
    text: str, labels: Sequence[str], keys: Collection[str] = (), *, ended: bool = True
) -> Repaired:
    """Make every labelled block of an answer parse, with no more repairs than that takes.

    An answer whose blocks all parse is returned unchanged, byte for byte, and so is one that no set
    of repairs makes parse. Never raises, whatever the text.

    Labels are in the order asked for. A line that begins with one of `keys` never continues a text.
    If an answer was, or may have been, truncated, `ended` is false and its last fence stays open,
    because words of the block may be missing.
    """
    unchanged = Repaired(text, ())
    if len(text) > MAX_CHARACTERS or _parses(text, labels):
        return unchanged
    labelled = fences.label_fences(text, labels)
    closed = fences.close_fence(labelled, labels) if ended else labelled
    used = {LABEL_FENCE} if labelled != text else set()
    fixed = closed
    for label in labels:
        span = find_block(fixed, label)
        if span is None:
            return unchanged
        block = fixed[span[0] : span[1]]
        # What follows a text in an unclosed block may not be part of the answer at all.
        last = closed != labelled and fixed.find("```", span[1] + 3) < 0
        found = _mend(block, keys, {INDENT_CONTINUATION} if last else set())
        if found is None or (last and keys and _has_others(found[0], keys)):
            return unchanged
        fixed = fixed[: span[0]] + found[0] + fixed[span[1] :]
        used |= found[1]
    if closed != labelled:
        used.add(CLOSE_FENCE)
    if not used or not _parses(fixed, labels):
        return unchanged
    return Repaired(fixed, tuple(name for name in NAMES if name in used))


def _mend(block: str, keys: Collection[str], without: set[str]) -> tuple[str, set[str]] | None:
    """A block that parses and the repairs that it needed; None if none help."""
    if _reads(block):
        return block, set()
    if values.is_unsure(block, keys):
        return None
    used: list[str] = []
    mended = block
    for name in (name for name in IN_BLOCKS if name not in without):
        changed = IN_BLOCKS[name](mended, keys)
        if changed != mended:
            used.append(name)
            mended = changed
            if _reads(mended):
                break
    else:
        return None
    for name in used[:-1]:
        fewer = [other for other in used if other != name]
        shorter = reduce(lambda text, name: IN_BLOCKS[name](text, keys), fewer, block)
        if _reads(shorter) and _data(shorter) == _data(mended):
            used, mended = fewer, shorter
    return mended, set(used)


def _reads(block: str) -> bool:
    return parse_block(block).error is None


def _has_others(block: str, keys: Collection[str]) -> bool:
    """Whether a block has unknown keys, as from a `Note: …` below its end."""
    data = parse_block(block).data
    return isinstance(data, dict) and not set(data) <= set(keys)


def _data(block: str) -> str:
    """The content of a block, in a form that can be compared despite aliases."""
    return repr(parse_block(block).data)


def _parses(text: str, labels: Sequence[str]) -> bool:
    blocks = (extract_block(text, label) for label in labels)
    return all(block is not None and _reads(block) for block in blocks)
