"""What to change when an engine cannot go on: known causes in vLLM's words, and their remedy.

Sources of the texts: vllm/v1/worker/utils.py, v1/core/kv_cache_utils.py, v1/worker/
gpu_model_runner.py, v1/worker/cpu_worker.py, lora/peft_helper.py of vLLM 0.10 to 0.33.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_eval.engines.log import OutputToFile

LOG_TAIL_BYTES = 200_000
_LESS_MEMORY = (
    "take less memory: --max-model-len 2048, --max-num-seqs 16, --load-4bit, "
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
    (
        "To serve at least one request with the model",
        "one full-length request does not fit: lower --max-model-len to the estimate named above",
    ),
    ("Cannot auto-fit max_model_len", _LESS_MEMORY),
    ("Failed to load model - not enough GPU memory", _LESS_MEMORY),
    (
        "CUDA out of memory occurred when warming up sampler",
        "lower --max-num-seqs to 16, or --gpu-memory-utilization to 0.80",
    ),
    ("out of memory", _LESS_MEMORY),
    ("OutOfMemoryError", _LESS_MEMORY),
    (
        "Available memory on node",
        "the cache does not fit into RAM: lower it with -c engine_args.kv_cache_memory_bytes=N",
    ),
    (
        "is greater than the derived max_model_len",
        "the model was made for shorter texts: lower --max-model-len to the length named above",
    ),
    (
        "Bfloat16 is only supported on GPUs with compute capability",
        "this GPU has no bfloat16: give --dtype half",
    ),
    ("libcudart.so.13", "this vLLM needs a CUDA 13 driver (580 or newer): install vllm==0.19.1"),
    (
        "CPU Generator does not use offset",
        "the CPU engine cannot split a seeded prompt: -c engine_args.enable_chunked_prefill=false",
    ),
    (
        "is greater than max_lora_rank",
        "raise it with -c engine_args.max_lora_rank=N, or leave it out: it is derived",
    ),
    (
        "does not yet support DoRA",
        "train without DoRA, or merge the adapter into a copy of the base",
    ),
    (
        "Unknown quantization method: bitsandbytes",
        "since vLLM 0.28 --load-4bit needs the package vllm-bnb-plugin",
    ),
)
"""Part of the message, and what to do. The first that fits counts: narrow ones stand first."""


def advise(message: str, output: OutputToFile) -> str | None:
    """What to change, from the error's message or else from the end of the engine's log.

    With worker processes the message only says that one of them failed; why is in the log.
    """
    for text in (message, _tail(output)):
        for cause, remedy in ADVICE:
            if cause in text:
                return remedy
    return None


def _tail(output: OutputToFile) -> str:
    """The end of what this engine printed; an earlier one's troubles are over."""
    try:
        with output.log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(output.begin, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
