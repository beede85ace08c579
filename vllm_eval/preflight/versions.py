"""Whether Python, the installed vLLM, its packages, the driver and the GPUs go together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.findings import Finding, error, ok, warning

if TYPE_CHECKING:
    from vllm_eval.machine import Machine, Software

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
