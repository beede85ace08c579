"""Tokenizers and chat templates: an adapter's own against those that all arms get.

vLLM gives every adapter the base's tokenizer; one prompt for all arms is what a comparison needs.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.errors import InputError
from vllm_eval.inputs.base_model import Base, vocabulary_modules
from vllm_eval.inputs.safetensors_headers import read_json
from vllm_eval.preflight.finding import Finding, counted, error, from_error, warning
from vllm_eval.records import Adapter

TOKENIZER = "tokenizer.json"
_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""What trainers add to a template to find the answers; it changes no prompt."""


def check_tokenizer(adapter: Adapter, base: Base, config: Config) -> list[Finding]:
    """How the adapter's tokenizer differs from the one in use, and how to use the adapter's."""
    given = config.engine_args.get("tokenizer") or base.folder
    if given is None or not (used := resolve_path(str(given))).is_dir():
        return []
    try:
        same = _same(adapter.path / TOKENIZER, used / TOKENIZER)
        own, template = {} if same else _tokens(adapter.path), _template(adapter.path)
    except InputError as failed:
        return [replace(from_error(failed), level="warning", cause=None)]
    try:
        common, other = _tokens(used) if own else {}, _template(used) if template else None
    except InputError:
        return []  # the one in use has a finding of its own
    where, findings = f"tokenizer of {adapter.path}", []
    modules = vocabulary_modules(base).items()
    rows = next((inputs for name, (inputs, _) in modules if "lm_head" not in name), None)
    beyond = [token for token, number in own.items() if rows is not None and number >= rows]
    option = f"-c engine_args.tokenizer={adapter.path}"
    if beyond:
        what = f"has {counted(beyond, 'token')} beyond the {rows} embeddings of the base"
        todo = "merge the adapter into a copy of its base with those tokens, or train without them"
        findings.append(error(where, what, todo))
    elif common and (new := [token for token in own if common.get(token) != own[token]]):
        what = f"has {counted(new, 'token')} missing in {used}, or with another number"
        findings.append(warning(where, what, f"to use it for all arms, give {option}"))
    if template and template != other:
        has = "has a chat template other than that of" if other else "has a chat template, unlike"
        option = option if config.prompt_format == "chat" else f"--prompt-format chat {option}"
        todo = f"to use it for all arms, give {option}"
        findings.append(warning(where, f"{has} {used}", todo))
    return findings


def check_template(folder: Path, arguments: Iterable[str]) -> list[Finding]:
    """Arguments of the chat template in use that do nothing there: a name may be misspelt."""
    try:
        template = _template(folder)
    except InputError:
        return []  # reported where the tokenizer is opened
    unused = [
        name for name in arguments if not re.search(rf"\b{re.escape(name)}\b", template or "")
    ]
    if template is None or not unused:
        return []
    what = f"{counted(unused, 'argument')} that the chat template of {folder} does not use"
    return [warning("chat_template_kwargs", what, "look into the template for its own names")]


def _same(one: Path, other: Path) -> bool:
    """Whether both are the same bytes; a large vocabulary takes longer to parse."""
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _tokens(folder: Path) -> dict[str, int]:
    """All tokens and their numbers, as far as JSON files tell them."""
    held: dict[Any, Any] = {}
    if (folder / TOKENIZER).is_file():
        fields = read_json(folder / TOKENIZER)
        model = fields.get("model") if isinstance(fields, dict) else None
        known = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(known, list):  # of a Unigram model: token and score
            known = {one[0]: n for n, one in enumerate(known) if isinstance(one, list) and one}
        added = fields.get("added_tokens") if isinstance(fields, dict) else None
        more = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
        held = (known if isinstance(known, dict) else {}) | {
            str(one.get("content")): one.get("id") for one in more
        }
    elif (folder / "added_tokens.json").is_file():
        fields = read_json(folder / "added_tokens.json")
        held = fields if isinstance(fields, dict) else {}
    return {str(token): number for token, number in held.items() if type(number) is int}


def _template(folder: Path) -> str | None:
    """The chat template, from the first file that transformers would take it from."""
    text: object = None
    if (folder / "chat_template.jinja").is_file():
        text = (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    elif (folder / "tokenizer_config.json").is_file():
        held = read_json(folder / "tokenizer_config.json")
        text = held.get("chat_template") if isinstance(held, dict) else None
    if isinstance(text, list):
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
        text = named.get("default")
    return _MARK.sub("", text).strip() if isinstance(text, str) else None
