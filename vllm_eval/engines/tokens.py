"""From a prompt to the model's tokens, the same way for every engine that loads a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_eval.config.settings import Config
from vllm_eval.errors import InputError, foreign, one_line


def encode(
    tokenizer: Any, prompt: str, prompt_format: str, template: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of `prompt`, unchanged (`raw`) or in the tokenizer's chat template (`chat`).

    The tokenizer is one of transformers, or vLLM's wrapper of one; `template` holds arguments of
    its chat template. A tokenizer that begins every text with a token, such as `<s>`, adds none to
    a raw prompt that begins with that token itself. What a chat template writes is taken as it is.
    """
    if prompt_format == "raw":
        return _begun_once(lambda text: list(tokenizer.encode(text)), prompt)
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **(template or {})
    )
    return list(ids)


def _begun_once(ids_of: Callable[[str], list[int]], prompt: str) -> list[int]:
    """Without the token that the tokenizer puts first, if the prompt begins with that one."""
    ids, first = ids_of(prompt), ids_of("")[:1]
    return ids[1:] if first and ids[:2] == first * 2 else ids


def too_long(tokens: int, answer: int, limit: int, whose: str = "") -> str | None:
    """Why a prompt of `tokens` tokens can never be asked, or None.

    It must leave room for the whole `answer`, or the model would be blamed for our truncation.
    `whose` names the owner of the limit, if it is not this process.
    """
    if tokens == 0:
        return "the prompt is empty"
    if tokens + answer <= limit:
        return None
    return (
        f"the prompt's {tokens} tokens and {answer} for the answer exceed {whose}max_model_len "
        f"{limit}; raise {whose}--max-model-len or lower --max-new-tokens"
    )


def open_counter(folder: Path, config: Config) -> Callable[[str], int]:
    """A function that counts a prompt's tokens as the engine of this configuration will.

    Its environment is set first; some tokenizers import PyTorch, which reads it once.

    Raises:
        InputError: the tokenizer cannot be read, or has no chat template but one is needed.
        ImportError: the library that reads it is not installed.
    """

    def unreadable(error: Exception) -> Exception:
        if isinstance(error, ImportError):
            return error
        why = f"cannot be read: {type(error).__name__}: {one_line(error, 200)}"
        return InputError(f"tokenizer {folder}: {why}; copy the tokenizer's files too")

    with foreign(unreadable):
        if config.prompt_format == "raw" and (folder / "tokenizer.json").is_file():
            return _fast_counter(folder / "tokenizer.json")
        for name, value in config.engine_env.items():
            os.environ.setdefault(name, value)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if config.prompt_format == "chat" and not tokenizer.chat_template:
            raise InputError(f"tokenizer {folder}: has no chat template; give --prompt-format raw")
        given = (config.prompt_format, config.chat_template_kwargs)
        return lambda prompt: len(encode(tokenizer, prompt, *given))


def _fast_counter(file: Path) -> Callable[[str], int]:
    """The library under transformers: the same tokens without 8 s of importing PyTorch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda prompt: len(_begun_once(lambda text: tokenizer.encode(text).ids, prompt))
