"""Which options the vLLM engine is started with: derived from the adapters, then as configured."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from vllm_eval.config.machine import installed
from vllm_eval.errors import ConfigError
from vllm_eval.inputs.adapters import loaded_adapters, slot_rank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.config.settings import Config
    from vllm_eval.records import Arm

OURS = frozenset(
    {"model", "enable_lora", "disable_log_stats", "skip_tokenizer_init", "trust_remote_code"}
)
"""Engine options the evaluation itself depends on; a model's own code is never run."""
CONSTRAINING: Mapping[str, Any] = {"structured_outputs_config": {"backend": "guidance"}}
"""xgrammar 0.2.8 masks tokens that it would accept: with `rements` in a vocabulary, `requirements`
where a grammar wants that very word."""


def engine_options(config: Config, arms: Sequence[Arm]) -> dict[str, Any]:
    """Keyword arguments of `LLM`: derived ones, overridden by the configured `engine_args`.

    Only `bnb_compute_dtype` goes before them.

    Raises:
        ConfigError: an option is unknown to the installed vLLM, or is ours to set.
    """
    from vllm import EngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in config.engine_args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            msg = f"engine_args: the installed vLLM has no option {name!r}{hint}"
            raise ConfigError(msg)
        if name in OURS:
            msg = f"engine_args: {name!r} is set by the evaluation itself; remove it"
            raise ConfigError(msg)
    adapters = loaded_adapters(arms)
    # CPU builds up to 0.32 give base rows the adapter of the last slot; one slot that stays
    # empty makes that adapter none (https://github.com/vllm-project/vllm/pull/48421).
    spare = 1 if current_platform.is_cpu() else 0
    options: dict[str, Any] = {
        "enable_lora": bool(adapters),
        "disable_log_stats": False,  # without statistics no request has a timing
        "seed": config.seed,
        **(CONSTRAINING if any(arm.grammar for arm in arms) else {}),
    }
    if adapters:
        rank = max(adapter.rank for adapter in adapters)
        options["max_loras"] = len(adapters) + spare
        options["max_lora_rank"] = slot_rank(rank)
    if config.load_4bit:
        options["quantization"] = "bitsandbytes"
    options |= config.engine_args
    if config.bnb_compute_dtype:  # a profile names the type of its card
        options["dtype"] = config.dtype
    if current_platform.is_cpu():
        # Without chunked prefill, which breaks seeds there, a prompt must fit into one step.
        length, batched = options.get("max_model_len"), options.get("max_num_batched_tokens")
        if isinstance(length, int) and isinstance(batched, int):
            options["max_num_batched_tokens"] = max(length, batched)
    elif installed().has_flashinfer_trap and not current_platform.has_device_capability(80):
        options.setdefault("attention_backend", "TRITON_ATTN")
    return options
