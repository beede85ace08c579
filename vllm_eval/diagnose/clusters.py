"""Why an answer failed, by the shape of the text at the place to blame.

A reason says which rule of the contract an answer breaks; a cluster says what its writer did, which
is what a remedy must address. Both are found without the arm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_eval.diagnose.example import Blocks, split_lines
from vllm_eval.diagnose.yaml_shapes import yaml_shape
from vllm_eval.records import Attempt
from vllm_eval.tasks.check import CLUSTERS, find_fault, is_missing
from vllm_eval.tasks.declaration import Declaration, Value
from vllm_eval.tasks.parse import parse_block

_FENCE = re.compile(r"^[ \t]*(?:`{2,}|~{3,})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a cluster is called, and what could be changed in training or prompt."""

    what: str
    """For a reader: what the model did."""
    todo: str
    """One sentence of advice where no setting helps."""


_DUMP = "Write the training targets with a YAML library, which quotes and indents as needed."
_FENCES = "Show both blocks with their exact fences in prompt and training targets."
_CHECK = "Check every training target against the contract; correct or remove those that break it."
_SHORTER = "Where more tokens do not help, ask for shorter texts, and train on shorter ones."
_MINIMUM = "State the minimum in the prompt, and add training targets that meet it."
_LIMIT = "State the limit earlier in the prompt, and shorten the training targets."
_IDS = "Add training targets that name the identifiers they were given."
KINDS: Mapping[str, Kind] = {
    "unindented_continuation": Kind("a text goes on at the left margin", _DUMP),
    "unquoted_colon": Kind("a colon inside a text without quotes", _DUMP),
    "missing_colon": Kind("a key without its colon", _CHECK),
    "tab": Kind("tabs as indentation", _DUMP),
    "broken_quotes": Kind("quotes that do not close, or text after them", _DUMP),
    "reserved_character": Kind("a text begins with a character of YAML's own", _DUMP),
    "bad_indentation": Kind("a key or an item where none can stand", _DUMP),
    "other_yaml": Kind("no YAML for another cause", _DUMP),
    "unclosed_fence": Kind("the closing fence is missing", _FENCES),
    "mislabelled_fence": Kind("a fence that is not labelled as asked", _FENCES),
    "missing_block": Kind("a block is left out", _FENCES),
    "prose": Kind("prose in place of the blocks", _FENCES),
    "empty": Kind("an empty answer or block", _FENCES),
    "truncated": Kind("truncated at the token limit", _SHORTER),
    "not_a_mapping": Kind("a list or a text in place of keys", _CHECK),
    "missing_key": Kind("a required key is missing or empty", _CHECK),
    "wrong_type": Kind("a value of another type", _CHECK),
    "wrong_choice": Kind("a value that is none of the choices", _CHECK),
    "too_few": Kind("too few items in a list", _MINIMUM),
    "too_long": Kind("a text above its limit of words", _LIMIT),
    "no_ids": Kind("no identifier is named", _IDS),
    "other_rule": Kind("a rule of the task's own", _CHECK),
    "no_answer": Kind("no answer to grade", "See `engine.log`; this is not the model's fault."),
}
"""Every cluster there is."""

MENDABLE = frozenset(KINDS) - {
    *("truncated", "empty", "missing_block", "prose", "no_answer", "other_rule"),
    *("not_a_mapping", "missing_key", "wrong_type", "wrong_choice"),
    *("too_few", "too_long", "no_ids"),
}
"""Clusters of texts that do not parse, which a repair may fix."""

BEYOND_GRAMMAR = frozenset(("truncated", "other_rule", "no_answer"))
"""Clusters that are possible even under the task's grammar."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Where one failed attempt belongs."""

    cluster: str
    place: str | None = None
    """Block and key to blame, as `REVIEW.narrative`, where the contract names one."""
    size: int | None = None
    """Items of a list that has too few, words of a text that has too many."""


def find_cause(attempt: Attempt, blocks: Blocks, declaration: Declaration) -> Cause:
    """The cluster of one failed attempt; never raises.

    `blocks` gives the text of each block of an answer, by its label in lower case.
    """
    if attempt.status == "error":
        return Cause("no_answer")
    found = blocks(attempt.raw_response)
    if missing := [label for label in declaration.blocks if label.lower() not in found]:
        return Cause(_missing(attempt, missing[0], partly=bool(found)))
    label = attempt.block or ""
    block = found.get(label.lower())
    if block is None or label not in declaration.blocks:
        return Cause("other_rule")
    if attempt.reason == f"invalid_{label.lower()}_yaml":
        return Cause(yaml_shape(split_lines(block), attempt), label)
    data = parse_block(block).data
    if not isinstance(data, dict):
        return Cause("not_a_mapping", label)
    cluster, size = _broken_rule(attempt, data, declaration.blocks[label].keys)
    return Cause(cluster, f"{label}.{attempt.key}" if attempt.key else label, size)


def _missing(attempt: Attempt, label: str, *, partly: bool) -> str:
    """Why there is no block of this label; `partly`: another block is there."""
    text = attempt.raw_response
    if not text.strip():
        return "empty"
    if attempt.truncated:
        return "truncated"
    opening = re.search(rf"```yaml\s*{re.escape(label)}\s*\n", text)
    if opening is not None:
        return "empty" if "```" in text[opening.end() :] else "unclosed_fence"
    # Each right block takes two fences; a label in another form needs one more.
    if partly:
        alone = rf"(?im)^[^\w\n]*(?:\w+[^\w\n]+)?{re.escape(label)}\b[^\w\n]*$"
        named = re.search(alone, text)
        return "mislabelled_fence" if named or len(_FENCE.findall(text)) > 2 else "missing_block"
    return "mislabelled_fence" if _FENCE.search(text) else "prose"


def _broken_rule(
    attempt: Attempt, data: Mapping[object, object], keys: Mapping[str, Value]
) -> tuple[str, int | None]:
    """What is wrong with the value at the attempt's key, and its size where that is what counts."""
    value: object = data
    declared: Value | None = None
    for name in (attempt.key or "").split("."):
        declared = keys.get(name)
        if declared is None or not isinstance(value, dict):
            return "other_rule", None
        if value.get(name) is None:
            return "missing_key", None
        value, keys = value[name], declared.keys
    return _fault(value, declared, attempt.reason) if declared else ("other_rule", None)


def _fault(value: object, declared: Value, reason: str | None) -> tuple[str, int | None]:
    if declared.ids is not None and reason == declared.ids.reason:
        return "no_ids", None
    if is_missing(value, declared.required):
        return "missing_key", None
    fault = find_fault(declared)(value)
    if fault is None:
        return "other_rule", None
    counted = value.split() if isinstance(value, str) else value
    if fault in ("too_few", "too_long") and isinstance(counted, list):
        return CLUSTERS[fault], len(counted)
    return CLUSTERS[fault], None
