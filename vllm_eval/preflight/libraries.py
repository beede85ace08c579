"""Whether Python, the installed vLLM, its packages, the driver and the GPUs go together."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vllm_eval.preflight.finding import Finding, error, ok, warning
from vllm_eval.preflight.memory import ALLOWANCE, MIB, estimate, size

if TYPE_CHECKING:
    from vllm_eval.config.machine import Machine, Software
    from vllm_eval.config.settings import Config
    from vllm_eval.inputs.base_model import Base
    from vllm_eval.preflight.memory import Demand

LIBRARIES = ("torch", "transformers", "peft", "accelerate")
PEFT_RELEASE = (sys.maxsize, 0)
"""As a release of vLLM for `check_adapter`: PEFT has always scaled by its own patterns."""


_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""Oldest driver for each CUDA major version: NVIDIA, CUDA compatibility, table 1."""
LAST_FOR_CUDA_12 = "vllm==0.19.1 transformers==5.9.0"
"""With the transformers of its days, as in the notebooks and guides."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a configuration asks of the machine and of vLLM."""

    gpus: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    ray: bool = False
    """The GPUs may lie in other machines."""
    attention_backend: str | None = None
    half: str = "--dtype half"
    """The flag that asks for float16 instead of `dtype`."""


def check_versions(machine: Machine, software: Software, needs: Needs) -> list[Finding]:
    """Python and the installed vLLM against this machine."""
    findings = []
    if _numbers(machine.python) < (3, 11):
        what = f"version {machine.python}, and vllm_eval needs 3.11 or newer"
        findings.append(error("Python", what, "make the environment with a newer Python"))
    if software.vllm is None:
        extra = "pip install 'vllm_eval[vllm]'"
        if not machine.gpus:
            extra += ", which needs a GPU, or without one run scripts/environment in a clone"
        return [*findings, error("vLLM", "is not installed", extra)]
    if software.too_old:
        what = f"version {software.vllm}, and vllm_eval needs 0.19.1 or newer"
        findings.append(error("vLLM", what, "pip install --upgrade 'vllm_eval[vllm]'"))
    findings += _check_quantization(software, needs)
    if software.for_cpu:
        if machine.gpus:
            what = f"{software.vllm} is a CPU build and leaves {machine.gpus[0].name} unused"
            findings.append(warning("vLLM", what, "pip install 'vllm_eval[vllm]' to use the GPU"))
    elif not machine.gpus:
        what = f"{software.vllm} is a GPU build, and no GPU is to be seen"
        todo = "see what nvidia-smi says, or use the CPU build (requirements/cpu.lock)"
        findings.append(warning("vLLM", what, todo))
    else:
        findings += _check_gpus(machine, software, needs)
    if not findings:
        device = machine.gpus[0].name if machine.gpus else f"{machine.cpus} CPUs"
        findings.append(ok("versions", f"Python {machine.python}, vLLM {software.vllm}, {device}"))
    return findings


def _check_quantization(software: Software, needs: Needs) -> list[Finding]:
    if needs.quantization != "bitsandbytes":
        return []
    plugin = software.release >= (0, 28)
    name = "vllm-bnb-plugin" if plugin else "bitsandbytes"
    if software.has(name):
        return []
    what = f"bitsandbytes with vLLM {software.vllm} needs the package {name}"
    return [error("quantization", what, f"pip install {name}")]


def _check_gpus(machine: Machine, software: Software, needs: Needs) -> list[Finding]:
    findings = []
    if needs.gpus > len(machine.gpus) and not needs.ray:
        there = len(machine.gpus)
        what = (
            f"tensor_parallel_size x pipeline_parallel_size is {needs.gpus}, "
            f"and this machine shows {there} GPU{'s' if there > 1 else ''}"
        )
        todo = f"lower them to {there} in all, or see CUDA_VISIBLE_DEVICES"
        findings.append(error("engine_args", what, todo))
    used = machine.gpus[: needs.gpus]
    findings += _check_driver(used[0].driver, software, compat=machine.cuda_compat)
    oldest = min(used, key=lambda gpu: _numbers(gpu.compute_capability))
    capability = _numbers(oldest.compute_capability)
    where = f"GPU {oldest.name}"
    floor = "7.5" if software.release >= (0, 20) else "7.0"
    has = f"has compute capability {oldest.compute_capability}"
    if capability < _numbers(floor):
        what = f"{has}, and vLLM {software.vllm} needs {floor}"
        findings.append(error(where, what, "use a newer GPU"))
    elif capability < (8, 0) and needs.dtype == "bfloat16":
        findings.append(error(where, f"{has} and no bfloat16", f"give {needs.half}"))
    elif capability < (8, 0) and (needs.attention_backend or "").upper() == "FLASHINFER":
        what = f"{has}, and FlashInfer does not run on it"
        findings.append(error(where, what, "give -c engine_args.attention_backend=TRITON_ATTN"))
    return findings


def _check_driver(driver: str, software: Software, *, compat: bool) -> list[Finding]:
    oldest = _DRIVERS.get(software.cuda)
    if oldest is None or _numbers(driver) >= oldest or not _numbers(driver):
        return []
    need = ".".join(map(str, oldest))
    what = f"{driver}, and vLLM {software.vllm} is built for CUDA {software.cuda}: {need} or newer"
    if compat:
        todo = "nothing, if the forward compatibility libraries on the library path are in use"
        return [warning("driver", what, todo)]
    older = f", or pip install {LAST_FOR_CUDA_12}, the last for CUDA 12"
    serves = software.cuda > 12 and _numbers(driver) >= _DRIVERS[12]
    return [error("driver", what, "update the driver" + (older if serves else ""))]


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, for comparison; empty where there is none."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


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


def check_ray(config: Config) -> list[Finding]:
    """A finding for the ray engine; nothing for another one without its options."""
    if config.engine != "ray":
        given = config.ray_address is not None or config.replicas is not None
        what = f"replicas are asked for, but the engine is {config.engine}"
        todo = "give --engine ray, or neither --ray-address nor --replicas"
        return [error("ray", what, todo)] if given else []
    if find_spec("ray") is None:
        return [error("ray engine", "needs ray, not installed", "pip install 'vllm_eval[ray]'")]
    if config.engine_args.get("distributed_executor_backend") == "ray":
        what = "a replica of the ray engine lies within one node"
        todo = "give --engine vllm for a model across nodes (docs/cluster.md)"
        return [error("engine_args.distributed_executor_backend", what, todo)]
    count = f"{config.replicas} replicas" if config.replicas else "as many replicas as it holds"
    return [ok("ray", f"cluster {config.ray_address or 'of this machine'}, {count}")]
