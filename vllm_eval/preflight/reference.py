"""Whether the transformers engine can run here: its libraries, and room in the memory.

It takes memory as it goes, so the sum is of what it needs and not of what it claims: weights,
adapters, and the cache of one batch.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_eval.findings import Finding, error, ok, warning
from vllm_eval.preflight.memory import ALLOWANCE, MIB, estimate, size

if TYPE_CHECKING:
    from vllm_eval.machine import Machine, Software
    from vllm_eval.preflight.base_model import Base
    from vllm_eval.preflight.memory import Demand

LIBRARIES = ("torch", "transformers", "peft", "accelerate")
PEFT_RELEASE = (sys.maxsize, 0)
"""As a release of vLLM for `check_adapter`: PEFT has always scaled by its own patterns."""


def check_libraries(hardware: Machine, software: Software, *, four_bit: bool) -> list[Finding]:
    """Whether everything is installed that the engine imports."""
    needed = (*LIBRARIES, "bitsandbytes") if four_bit else LIBRARIES
    if lacking := [name for name in needed if not software.has(name)]:
        what = f"needs {', '.join(lacking)}, not installed"
        todo = "pip install 'vllm_eval[transformers]'"
        return [error("transformers engine", what, todo)]
    versions = dict(software.packages)
    named = ", ".join(f"{name} {versions[name]}" for name in ("transformers", "peft"))
    device = hardware.gpus[0].name if hardware.gpus else f"{hardware.cpus} CPUs"
    return [ok("versions", f"Python {hardware.python}, {named}, {device}")]


def as_loaded(base: Base, demand: Demand, adapters: int) -> Demand:
    """What vLLM would be asked, as this engine does it: one device, the checkpoint's own type."""
    own = base.architecture.dtype if base.architecture else "auto"
    return replace(
        demand,
        dtype=own if demand.dtype == "auto" else demand.dtype,
        tensor_parallel=1,
        pipeline_parallel=1,
        slots=adapters,
        cache_bytes=None,
        fp8_cache=False,
        utilization=1.0,
        block=1,
    )


def check_memory(base: Base, demand: Demand, batch: int, hardware: Machine) -> list[Finding]:
    """Whether model, adapters and one batch of so many requests fit the device."""
    if hardware.gpus:
        gpu = hardware.gpus[0]
        where, memory, free = f"memory of {gpu.name}", gpu.memory_mib, gpu.free_mib
    else:
        where, free = "memory", hardware.available_mib
        memory = min(hardware.memory_mib, hardware.limit_mib or hardware.memory_mib)
    fit = estimate(base, demand, memory * MIB)
    if fit is None:
        what = "not checked: the base's files do not tell its size"
        return [warning(where, what, "the engine will say so if it is too large")]
    needed = fit.fixed + batch * fit.sequence
    sums = (
        f"weights {size(fit.weights)} + LoRA {size(fit.loras)} + computing {size(ALLOWANCE)} "
        f"+ cache {size(batch * fit.sequence)} ({batch} x {demand.max_len} tokens) "
        f"= {size(needed)}, of {size(memory * MIB)}"
    )
    if needed > memory * MIB:
        todo = "--load-4bit, or a smaller base" if batch == 1 else "lower --batch-size"
        return [error(where, f"does not fit: {sums}", todo)]
    if free is not None and needed > free * MIB:
        what = f"{size(free * MIB)} are free: {sums}"
        return [warning(where, what, "end other processes")]
    return [ok(where, sums)]
