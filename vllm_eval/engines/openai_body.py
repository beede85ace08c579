"""What a request says: everything that decides an answer is said, nothing is left to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_eval.config import Config

PLAIN_SAMPLING = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What vLLM takes from the model's generation_config.json where a request does not say it."""


def held_to(grammar: str | None) -> dict[str, Any]:
    """What has vLLM hold an answer to a grammar, in the body; nothing without one."""
    return {"structured_outputs": {"grammar": grammar}} if grammar else {}


def fields(config: Config, model: str, prompt: str, seed: int, *, vllm: bool) -> dict[str, Any]:
    """A request's body as keywords of the client's `create`."""
    extra: dict[str, Any] = dict(PLAIN_SAMPLING) if vllm else {}
    if config.ignore_eos and vllm:
        extra |= {"ignore_eos": True, "min_tokens": config.max_new_tokens}
    asked: dict[str, Any] = (
        {"prompt": prompt}
        if config.prompt_format == "raw"
        else {"messages": [{"role": "user", "content": prompt}]}
    )
    return asked | {
        "model": model,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_new_tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": extra,
    }
