"""Whether everything an engine needs is there: Python, vLLM, packages, driver, GPUs, servers."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from vllm_eval.config.machine import Machine, Software
from vllm_eval.config.settings import Config, gpus_of, quantization_of
from vllm_eval.engines.openai import wire
from vllm_eval.engines.openai.start import HINTS, missing_arms, name_models, read_models
from vllm_eval.errors import EngineError
from vllm_eval.preflight.finding import Finding, error, ok, warning
from vllm_eval.records import Arm

LIBRARIES = ("torch", "transformers", "peft", "accelerate")
PEFT_RELEASE = (sys.maxsize, 0)
"""For `check_adapter`, in place of vLLM's release: PEFT always scaled patterns correctly."""
_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
"""Oldest driver for each CUDA major version: NVIDIA, CUDA compatibility, table 1."""
LAST_FOR_CUDA_12 = "vllm==0.19.1 transformers==5.9.0"
"""With the transformers release of its time, as in the notebooks and guides."""
ANSWER_S = 10.0
"""Seconds to wait for a server's list of models."""
START = "make sure that it runs and that its address ends in /v1"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a configuration needs from the machine and from vLLM."""

    gpus: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    ray: bool = False
    """The GPUs may be in other machines."""
    attention_backend: str | None = None
    half: str = "--dtype half"
    """The flag that asks for float16 instead of `dtype`."""


def needs_of(config: Config) -> Needs:
    """What of a configuration the installed software must support."""
    args = config.engine_args
    return Needs(
        gpus=gpus_of(config),
        dtype=config.dtype,
        quantization=quantization_of(config),
        ray="ray" in (config.engine, args.get("distributed_executor_backend")),
        attention_backend=args.get("attention_backend"),
        half="--bnb-compute-dtype float16" if config.bnb_compute_dtype else "--dtype half",
    )


def check_versions(machine: Machine, software: Software, needs: Needs) -> list[Finding]:
    """Check Python and the installed vLLM against this machine."""
    findings = []
    if _numbers(machine.python) < (3, 11):
        what = f"version {machine.python}, but vllm_eval needs 3.11 or newer"
        findings.append(error("Python", what, "create the environment with a newer Python"))
    if software.vllm is None:
        gpu = ", which needs a GPU; without one, run scripts/environment in a clone"
        todo = "pip install 'vllm_eval[vllm]'" + ("" if machine.gpus else gpu)
        return [*findings, error("vLLM", "is not installed", todo)]
    if software.too_old:
        what = f"version {software.vllm}, but vllm_eval needs 0.19.1 or newer"
        findings.append(error("vLLM", what, "pip install --upgrade 'vllm_eval[vllm]'"))
    findings += _check_quantization(software, needs)
    if software.for_cpu:
        if machine.gpus:
            what = f"{software.vllm} is a CPU build and leaves {machine.gpus[0].name} unused"
            findings.append(warning("vLLM", what, "pip install 'vllm_eval[vllm]' to use the GPU"))
    elif not machine.gpus:
        what = f"{software.vllm} is a GPU build, but no GPU is visible"
        todo = "check nvidia-smi, or use the CPU build (requirements/cpu.lock)"
        findings.append(warning("vLLM", what, todo))
    else:
        findings += _check_gpus(machine, software, needs)
    named = f"Python {machine.python}, vLLM {software.vllm}, {_device(machine)}"
    return findings or [ok("versions", named)]


def _check_quantization(software: Software, needs: Needs) -> list[Finding]:
    if needs.quantization != "bitsandbytes":
        return []
    name = "vllm-bnb-plugin" if software.release >= (0, 28) else "bitsandbytes"
    if software.has(name):
        return []
    what = f"bitsandbytes with vLLM {software.vllm} needs the package {name}"
    return [error("quantization", what, f"pip install {name}")]


def _check_gpus(machine: Machine, software: Software, needs: Needs) -> list[Finding]:
    findings, there = [], len(machine.gpus)
    if needs.gpus > there and not needs.ray:
        what = f"tensor_parallel_size x pipeline_parallel_size is {needs.gpus}, "
        what += f"but this machine has {there} GPU{'s' if there > 1 else ''}"
        todo = f"lower them to {there} in all, or check CUDA_VISIBLE_DEVICES"
        findings.append(error("engine_args", what, todo))
    used = machine.gpus[: needs.gpus]
    findings += _check_driver(used[0].driver, software, compat=machine.cuda_compat)
    oldest = min(used, key=lambda gpu: _numbers(gpu.compute_capability))
    capability, where = _numbers(oldest.compute_capability), f"GPU {oldest.name}"
    floor = "7.5" if software.release >= (0, 20) else "7.0"
    has = f"has compute capability {oldest.compute_capability}"
    if capability < _numbers(floor):
        what = f"{has}, but vLLM {software.vllm} needs {floor}"
        findings.append(error(where, what, "use a newer GPU"))
    elif capability < (8, 0) and needs.dtype == "bfloat16":
        findings.append(error(where, f"{has}, so no bfloat16", f"give {needs.half}"))
    elif capability < (8, 0) and (needs.attention_backend or "").upper() == "FLASHINFER":
        what = f"{has}, on which FlashInfer does not run"
        findings.append(error(where, what, "give -c engine_args.attention_backend=TRITON_ATTN"))
    return findings


def _check_driver(driver: str, software: Software, *, compat: bool) -> list[Finding]:
    oldest = _DRIVERS.get(software.cuda)
    if oldest is None or _numbers(driver) >= oldest or not _numbers(driver):
        return []
    need = ".".join(map(str, oldest))
    what = f"{driver}, but vLLM {software.vllm} is built for CUDA {software.cuda}: {need} or newer"
    if compat:
        todo = "nothing, if the forward compatibility libraries are on the library path"
        return [warning("driver", what, todo)]
    older = f", or pip install {LAST_FOR_CUDA_12}, the last for CUDA 12"
    serves = software.cuda > 12 and _numbers(driver) >= _DRIVERS[12]
    return [error("driver", what, "update the driver" + (older if serves else ""))]


def check_libraries(hardware: Machine, software: Software, *, four_bit: bool) -> list[Finding]:
    """Whether everything that the engine imports is installed."""
    needed = (*LIBRARIES, "bitsandbytes") if four_bit else LIBRARIES
    if lacking := [name for name in needed if not software.has(name)]:
        what = f"needs {', '.join(lacking)}, which is not installed"
        return [error("transformers engine", what, "pip install 'vllm_eval[transformers]'")]
    versions = dict(software.packages)
    named = f"transformers {versions['transformers']}, peft {versions['peft']}"
    return [ok("versions", f"Python {hardware.python}, {named}, {_device(hardware)}")]


def _device(machine: Machine) -> str:
    return machine.gpus[0].name if machine.gpus else f"{machine.cpus} CPUs"


def check_ray(config: Config) -> list[Finding]:
    """A finding for the ray engine; none for other engines, unless its options are given."""
    if config.engine != "ray":
        given = config.ray_address is not None or config.replicas is not None
        what = f"replicas are asked for, but the engine is {config.engine}"
        todo = "give --engine ray, or leave out --ray-address and --replicas"
        return [error("ray", what, todo)] if given else []
    if find_spec("ray") is None:
        what = "needs ray, which is not installed"
        return [error("ray engine", what, "pip install 'vllm_eval[ray]'")]
    if config.engine_args.get("distributed_executor_backend") == "ray":
        what = "a replica of the ray engine must fit into one node"
        todo = "give --engine vllm for a model across nodes (docs/cluster.md)"
        return [error("engine_args.distributed_executor_backend", what, todo)]
    count = f"{config.replicas} replicas" if config.replicas else "as many replicas as it holds"
    return [ok("ray", f"cluster {config.ray_address or 'of this machine'}, {count}")]


def check_servers(config: Config, arms: Sequence[Arm]) -> list[Finding]:
    """A finding for each server; none for an engine that needs no server."""
    if config.engine != "openai":
        what = f"names servers, but the engine is {config.engine}"
        todo = "give --engine openai, or leave out --base-url"
        return [error("base_url", what, todo)] if config.base_url else []
    if not config.base_url:
        what = "the openai engine needs a server"
        return [error("base_url", what, "give --base-url http://HOST:8000/v1")]
    if find_spec("openai") is None:
        what = "needs openai, which is not installed"
        return [error("openai engine", what, "pip install 'vllm_eval[openai]'")]
    findings = [_check_server(url, config, arms) for url in config.base_url]
    away = [finding for finding in findings if finding.level == "warning"]
    if len(away) < len(findings):
        return findings
    return [error(finding.where, finding.what, finding.todo or START) for finding in away]


def _check_server(url: str, config: Config, arms: Sequence[Arm]) -> Finding:
    """A missing server is only a warning if another is there; the run continues without it."""
    from openai import OpenAI

    where = f"server {url}"
    try:
        key = wire.api_key() or wire.NO_KEY
        opened = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=ANSWER_S)
        with opened as client, wire.faults():
            listed = read_models(client.get("/models", cast_to=object))
        absent = missing_arms(listed, config, arms)
        there = [arm for arm in arms if arm not in absent or not config.load_adapters]
        name_models(listed, config, there, url)
    except wire.FaultError as fault:
        if fault.kind in ("forbidden", "refused", "missing"):
            return error(where, fault.words, HINTS.get(fault.kind, START).strip("; "))
        return warning(where, f"does not answer: {fault.words}", START)
    except EngineError as failed:
        what, _, todo = str(failed).removeprefix(f"{url}: ").partition("; ")
        return error(where, what, todo)
    more = f", {', '.join(arm.name for arm in absent)} to be loaded" if absent else ""
    return ok(where, f"lists {', '.join(listed)}{more}")


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, for comparison; empty if there are none."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
