"""Arguments for a tokenizer's chat template: what may be given, and as what."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

OURS = frozenset(
    (
        *("conversation", "messages", "tools", "documents", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "return_dict", "return_tensors"),
        *("return_assistant_tokens_mask", "padding", "truncation", "max_length"),
        "tokenizer_kwargs",
    )
)
"""Arguments of `apply_chat_template` itself; all others reach the template."""
LONGEST = 10_000
"""Characters of JSON."""


def _from_json(given: object) -> object:
    """A mapping that the command line gives as text."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        example = '{"enable_thinking": false}'
        raise ValueError(f"must be a JSON object, for example {example}") from error


def _for_the_template(given: dict[str, Any]) -> dict[str, Any]:
    if ours := sorted(OURS & given.keys()):
        raise ValueError(f"{ours[0]!r} is set by the evaluation itself; remove it")
    if len(json.dumps(given)) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters of JSON; give less")
    return given


TemplateKwargs = Annotated[
    dict[str, Any], BeforeValidator(_from_json), AfterValidator(_for_the_template)
]
"""JSON values by the names that the template gives them."""
