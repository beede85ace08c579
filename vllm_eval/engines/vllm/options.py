"""The options that the vLLM engine starts with, and which to change when it fails.

They are derived from the adapters and overridden by the configuration. Sources of vLLM's messages,
0.10 to 0.33: vllm/v1/worker/utils.py, v1/core/kv_cache_utils.py, v1/worker/gpu_model_runner.py,
v1/worker/cpu_worker.py, lora/peft_helper.py.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_eval.config.machine import installed
from vllm_eval.config.settings import Config
from vllm_eval.engines.engine_log import OutputToFile
from vllm_eval.errors import ConfigError
from vllm_eval.inputs.adapters import loaded_adapters, slot_rank
from vllm_eval.records import Arm

OURS = frozenset(
    {"model", "enable_lora", "disable_log_stats", "skip_tokenizer_init", "trust_remote_code"}
)
"""Engine options that the evaluation depends on; code that comes with a model never runs."""
CONSTRAINING: Mapping[str, Any] = {"structured_outputs_config": {"backend": "guidance"}}
"""xgrammar 0.2.8 masks tokens that it should accept: with `rements` in the vocabulary, it masks
`requirements` even where a grammar requires that word."""

LOG_TAIL_BYTES = 200_000
_LESS_MEMORY = (
    "use less memory: --max-model-len 2048, --max-num-seqs 16, --load-4bit, "
    "or split over GPUs with --tensor-parallel-size"
)
ADVICE = (
    (
        "is less than desired GPU memory utilization",
        "another process holds GPU memory: end it, or lower --gpu-memory-utilization (0.80)",
    ),
    (
        "No available memory for the cache blocks",
        "the weights leave nothing for the cache: raise --gpu-memory-utilization to 0.95, or "
        + _LESS_MEMORY,
    ),
    ("To serve at least one request", "lower --max-model-len to the estimate named above"),
    ("Cannot auto-fit max_model_len", _LESS_MEMORY),
    ("Failed to load model - not enough GPU memory", _LESS_MEMORY),
    ("when warming up sampler", "lower --max-num-seqs to 16, or --gpu-memory-utilization to 0.80"),
    ("out of memory", _LESS_MEMORY),
    ("OutOfMemoryError", _LESS_MEMORY),
    (
        "Available memory on node",
        "the cache does not fit into RAM: lower it with -c engine_args.kv_cache_memory_bytes=N",
    ),
    ("greater than the derived max_model_len", "lower --max-model-len to the length named above"),
    ("Bfloat16 is only supported on GPUs", "this GPU has no bfloat16: give --dtype half"),
    ("libcudart.so.13", "this vLLM needs a CUDA 13 driver (580 or newer): install vllm==0.19.1"),
    (
        "CPU Generator does not use offset",
        "the CPU engine cannot split a seeded prompt: -c engine_args.enable_chunked_prefill=false",
    ),
    ("is greater than max_lora_rank", "leave out engine_args.max_lora_rank: it is derived"),
    ("does not yet support DoRA", "train without DoRA, or merge the adapter into its base"),
    ("Unknown quantization method: bitsandbytes", "vLLM 0.28 and later need vllm-bnb-plugin"),
)
"""Part of a message, and what to do. The first match counts, so specific ones come first."""


def refuse_ours(config: Config) -> None:
    """ConfigError if `engine_args` holds an option that is the evaluation's to set."""
    if ours := sorted(OURS & config.engine_args.keys()):
        raise ConfigError(f"engine_args: {ours[0]!r} is set by the evaluation itself; remove it")


def engine_options(config: Config, arms: Sequence[Arm]) -> dict[str, Any]:
    """Keyword arguments of `LLM`: derived ones, overridden by the configured `engine_args`.

    `bnb_compute_dtype` alone overrides `engine_args`.

    Raises:
        ConfigError: the installed vLLM does not know an option, or the evaluation sets it.
    """
    from vllm import EngineArgs
    from vllm.platforms import current_platform

    refuse_ours(config)
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in config.engine_args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"engine_args: the installed vLLM has no option {name!r}{hint}")
    adapters = loaded_adapters(arms)
    # CPU builds up to 0.32 give base rows the adapter of the last slot; a slot that stays
    # empty makes that adapter none (https://github.com/vllm-project/vllm/pull/48421).
    spare = 1 if current_platform.is_cpu() else 0
    options: dict[str, Any] = {
        "enable_lora": bool(adapters),
        "disable_log_stats": False,  # without statistics no request has a timing
        "seed": config.seed,
        **(CONSTRAINING if any(arm.grammar for arm in arms) else {}),
    }
    if adapters:
        options["max_loras"] = len(adapters) + spare
        options["max_lora_rank"] = slot_rank(max(adapter.rank for adapter in adapters))
    if config.load_4bit:
        options["quantization"] = "bitsandbytes"
    options |= config.engine_args
    if config.bnb_compute_dtype:  # a profile sets the type of its card
        options["dtype"] = config.dtype
    if current_platform.is_cpu():
        # Without chunked prefill, which breaks seeds there, a prompt must fit into one step.
        length, batched = options.get("max_model_len"), options.get("max_num_batched_tokens")
        if isinstance(length, int) and isinstance(batched, int):
            options["max_num_batched_tokens"] = max(length, batched)
    elif installed().has_flashinfer_trap and not current_platform.has_device_capability(80):
        options.setdefault("attention_backend", "TRITON_ATTN")
    return options


def advise(message: str, output: OutputToFile) -> str | None:
    """What to change, according to the error's message or the end of the engine's log.

    With worker processes the message only says that one failed; the log says why.
    """
    texts = (message, _tail(output))
    return next((todo for text in texts for cause, todo in ADVICE if cause in text), None)


def _tail(output: OutputToFile) -> str:
    """The end of this engine's output; leaves out what earlier engines printed."""
    try:
        with output.log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(output.begin, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
