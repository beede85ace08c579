"""The lengths of the prompts by the model's own tokenizer, before the model is loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllm_eval.errors import InputError
from vllm_eval.findings import Finding, error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

SHOWN_IDS = 3


def check_lengths(
    prompts: Iterable[tuple[str, str]],
    count: Callable[[str], int],
    max_len: int,
    max_new_tokens: int,
) -> list[Finding]:
    """Case ids and prompts against the length the engine takes, answer included."""
    longest, total = 0, 0
    beyond: list[str] = []
    for case_id, prompt in prompts:
        tokens = count(prompt)
        total += 1
        longest = max(longest, tokens)
        if tokens == 0 or tokens + max_new_tokens > max_len:
            beyond.append(case_id)
    sums = f"longest {longest} tokens + {max_new_tokens} for the answer, of {max_len}"
    if not beyond:
        return [ok("prompts", f"{total} checked, {sums}")]
    named = ", ".join(repr(name[:60]) for name in beyond[:SHOWN_IDS])
    what = f"{len(beyond)} of {total} are empty or too long ({named}): {sums}"
    todo = f"raise --max-model-len to {longest + max_new_tokens}, or lower --max-new-tokens"
    return [(error if len(beyond) == total else warning)("prompts", what, todo)]


def open_counter(
    folder: Path, prompt_format: str, environment: Mapping[str, str]
) -> Callable[[str], int]:
    """A function that counts a prompt's tokens as the engine is going to.

    Args:
        folder: where the tokenizer's files lie.
        prompt_format: `raw`, or `chat` for the tokenizer's own template.
        environment: the engine's, as PyTorch comes along with some tokenizers and reads it once.

    Raises:
        InputError: the tokenizer cannot be read, or has no chat template and one is asked for.
        ImportError: the library that reads it is not installed.
    """
    try:
        if prompt_format == "raw" and (folder / "tokenizer.json").is_file():
            return _fast_counter(folder / "tokenizer.json")
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        return _chat_counter(folder) if prompt_format == "chat" else _raw_counter(folder)
    except (ImportError, InputError):
        raise
    except Exception as failed:
        words = f"{type(failed).__name__}: {' '.join(str(failed).split())[:200]}"
        msg = f"tokenizer {folder}: cannot be read: {words}; copy the tokenizer's files too"
        raise InputError(msg) from failed


def _fast_counter(file: Path) -> Callable[[str], int]:
    """The library below transformers: the same tokens, without 8 s of importing PyTorch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda prompt: len(tokenizer.encode(prompt).ids)


def _raw_counter(folder: Path) -> Callable[[str], int]:
    from transformers import AutoTokenizer  # noqa: TID251  the tokenizer alone

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return lambda prompt: len(tokenizer.encode(prompt))


def _chat_counter(folder: Path) -> Callable[[str], int]:
    from transformers import AutoTokenizer  # noqa: TID251  the tokenizer alone

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        msg = f"tokenizer {folder}: has no chat template; give --prompt-format raw"
        raise InputError(msg)

    def count(prompt: str) -> int:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return len(ids)

    return count
