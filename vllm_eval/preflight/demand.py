"""The memory that a configuration needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_eval.config.settings import Config, quantization_of, whole
from vllm_eval.inputs.adapters import loaded_adapters, slot_rank
from vllm_eval.inputs.base_model import Base
from vllm_eval.records import Arm


@dataclass(frozen=True, slots=True)
class Demand:
    """How the configuration loads a base model."""

    max_len: int
    dtype: str = "auto"
    quantization: str | None = None
    """Requested at load time; a checkpoint that is stored quantised says so itself."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    slots: int = 1
    """Adapter slots."""
    rank: int = 16
    """The rank that every slot has room for."""
    adapters: int = 0
    """Adapters that take turns in the slots, if there are more of them; else 0 will do."""
    lora_bytes: int = 0
    """Of an adapter's value; 0 for those of a computed value."""
    cache_bytes: int | None = None
    """Fixed size of the cache; None gives it what the budget leaves."""
    fp8_cache: bool = False
    utilization: float = 0.92
    block: int = 16
    """Tokens per block of the cache."""

    @property
    def gpus(self) -> int:
        """GPUs that it is split over."""
        return self.tensor_parallel * self.pipeline_parallel


def demand_of(config: Config, arms: Sequence[Arm], base: Base, *, on_gpu: bool) -> Demand:
    """As `engines.vllm.options.engine_options` derives the engine's options."""
    args = config.engine_args
    ranks = [adapter.rank for adapter in loaded_adapters(arms)]
    longest = base.architecture.max_len if base.architecture else None
    share = args.get("gpu_memory_utilization")
    cache = whole(args.get("kv_cache_memory_bytes"), 0)
    space = config.engine_env.get("VLLM_CPU_KVCACHE_SPACE", "")
    if not cache and not on_gpu and space.isdigit():
        cache = int(space) * 2**30
    return Demand(
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


def as_loaded(base: Base, demand: Demand, adapters: int) -> Demand:
    """The same for the transformers engine: one device, the checkpoint's own type.

    It holds all adapters, and PEFT keeps their values in 32 bits.
    """
    own = base.architecture.dtype if base.architecture and demand.dtype == "auto" else demand.dtype
    return Demand(
        max_len=demand.max_len,
        dtype=own,
        quantization=demand.quantization,
        slots=adapters,
        rank=demand.rank,
        lora_bytes=4,
        utilization=1.0,
        block=1,
    )
