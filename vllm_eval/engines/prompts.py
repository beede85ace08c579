"""From a prompt to the tokens the model reads: one way for every engine that loads a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_eval.config import Config


def encode(tokenizer: Any, prompt: str, config: Config) -> list[int]:
    """Token ids of `prompt`, as it stands or inside the tokenizer's chat template.

    Args:
        tokenizer: of transformers, or vLLM's wrapper of one.
        prompt: what is asked.
        config: its `prompt_format` says how.
    """
    if config.prompt_format == "raw":
        return list(tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def too_long(tokens: int, answer: int, limit: int) -> str | None:
    """Why a prompt of so many `tokens` can never be asked, or None.

    It must leave room for the whole `answer`, or the model is blamed for our cut.
    """
    if tokens == 0:
        return "the prompt is empty"
    if tokens + answer <= limit:
        return None
    return (
        f"the prompt's {tokens} tokens and {answer} for the answer exceed max_model_len "
        f"{limit}; raise --max-model-len or lower --max-new-tokens"
    )
