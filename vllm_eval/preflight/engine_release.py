"""Whether an engine is the one that gave earlier answers: found out before and after it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_eval.config import machine
from vllm_eval.config.machine import Machine, Software
from vllm_eval.inputs.plan import Plan

NO_BFLOAT16_BELOW = 8.0
_TORCH_NAMES = {"half": "float16", "float": "float32"}
DECISIVE = ("engine", "vllm", "transformers", "dtype", "quantization", "models")
"""What an engine says of itself that decides its answers."""


def other_engine(
    plan: Plan,
    recorded: Mapping[str, Any],
    hardware: Machine | None = None,
    software: Software | None = None,
) -> str | None:
    """Why the engine installed here may not add to a run, found before a model is loaded.

    `recorded` is what the run's manifest says of its engine, empty if none had started; hardware
    and software are this machine's by default. `other_about` compares again once the engine
    describes itself.
    """
    software, engine = software or machine.installed(), plan.config.engine
    if engine not in ("vllm", "transformers"):
        return None
    now = software.vllm if engine == "vllm" else dict(software.packages).get(engine)
    before = recorded.get(engine)
    # Without the local tag, which says what a release was built for.
    if before and now and str(before).partition("+")[0] != now.partition("+")[0]:
        return f"begun with {engine} {before}, but {now} is installed"
    if engine == "vllm" and not software.for_cpu:
        dtype, before = _dtype_on(hardware or machine.detect(), plan), recorded.get("dtype")
        if before and dtype and before != dtype:
            return f"begun with dtype {before}, but this machine computes in {dtype}"
    return None


def other_about(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How an engine's description of itself differs from an earlier one, or None."""
    for key in DECISIVE:
        if before.get(key) != now.get(key):
            return f"begun with {key} {before.get(key)!r}, not {now.get(key)!r}"
    return None


def _dtype_on(hardware: Machine, plan: Plan) -> str | None:
    """PyTorch's name of the type that vLLM will compute in on these GPUs; None if unknown."""
    asked = plan.config.dtype
    if asked != "auto":
        return _TORCH_NAMES.get(asked, asked)
    base, gpus = plan.base, hardware.gpus
    own = base.architecture.dtype if base and base.architecture else None
    if own not in ("float16", "bfloat16") or not gpus:
        return None
    old = any(float(gpu.compute_capability) < NO_BFLOAT16_BELOW for gpu in gpus)
    return "float16" if old else own
