"""What a configuration asks of the machine, of vLLM and of the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_eval.config.settings import gpus_of, quantization_of, whole
from vllm_eval.inputs.adapters import loaded_adapters, slot_rank
from vllm_eval.preflight import memory
from vllm_eval.preflight.libraries import Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_eval.config.settings import Config
    from vllm_eval.inputs.base_model import Base
    from vllm_eval.records import Arm


def needs_of(config: Config) -> Needs:
    """GPUs, type and backend, as far as the installed software must go with them."""
    args = config.engine_args
    return Needs(
        gpus=gpus_of(config),
        dtype=config.dtype,
        quantization=quantization_of(config),
        ray="ray" in (config.engine, args.get("distributed_executor_backend")),
        attention_backend=args.get("attention_backend"),
        half="--bnb-compute-dtype float16" if config.bnb_compute_dtype else "--dtype half",
    )


def demand_of(config: Config, arms: Sequence[Arm], base: Base, *, on_gpu: bool) -> memory.Demand:
    """As `engines.vllm_options.engine_options` derives the engine's options."""
    args = config.engine_args
    ranks = [adapter.rank for adapter in loaded_adapters(arms)]
    longest = base.architecture.max_len if base.architecture else None
    share = args.get("gpu_memory_utilization")
    cache = whole(args.get("kv_cache_memory_bytes"), 0)
    space = config.engine_env.get("VLLM_CPU_KVCACHE_SPACE", "")
    if not cache and not on_gpu and space.isdigit():
        cache = int(space) * memory.GIB
    return memory.Demand(
        max_len=whole(args.get("max_model_len"), longest or 4096),
        dtype=config.dtype,
        quantization=quantization_of(config),
        tensor_parallel=whole(args.get("tensor_parallel_size")),
        pipeline_parallel=whole(args.get("pipeline_parallel_size")),
        slots=whole(args.get("max_loras"), len(ranks) + (0 if on_gpu else 1)),
        rank=whole(args.get("max_lora_rank"), slot_rank(max(ranks, default=1))),
        cache_bytes=cache or None,
        fp8_cache=str(args.get("kv_cache_dtype")).startswith("fp8"),
        utilization=share if isinstance(share, float) and 0 < share <= 1 else 0.92,
        block=16 if on_gpu else 128,
    )
