"""Which notebook platform this is, and which shipped profile a machine gets.

Both are pure functions of their arguments. `docs/platforms.md` lists the choices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vllm_eval.config.machine import COLAB, KAGGLE, LIGHTNING, Gpu, Machine

_FULL_24GB, _FULL_80GB = 22_000, 72_000
"""MiB: cards sold as 24 GB show 22.5 GiB, those sold as 80 GB show 79 GiB."""
_T4_CLASS = range(14_000, 17_000)
"""MiB of a T4; the same of any other card of compute capability 7.5."""

_FOUR_BITS: dict[str | None, str] = {COLAB: "colab_t4", LIGHTNING: "lightning_t4"}
"""Platforms that provide one T4, with their profiles."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A shipped profile, and why it was chosen."""

    profile: str
    reason: str


def choose(machine: Machine, *, for_cpu: bool = False) -> Choice:
    """The shipped profile for this machine's platform and GPUs.

    With `for_cpu` the engine is a CPU build of vLLM, which ignores GPUs. Only the profiles of
    platforms that provide one card of 15 GiB quantise the base, and the reason then says so; every
    other choice measures the model as its checkpoint is.
    """
    profile, why = _choose(machine.platform, machine.gpus)
    if for_cpu and machine.gpus:
        profile, why = "cpu", "the installed vLLM is a CPU build and leaves GPUs unused"
    return Choice(profile, f"{describe(machine)}: {why}")


def describe(machine: Machine) -> str:
    """Platform and GPUs in words, as in the table of the docs."""
    counts = Counter((gpu.name, gpu.memory_mib) for gpu in machine.gpus)
    cards = [f"{count} x {name}, {mib / 1024:.1f} GiB" for (name, mib), count in counts.items()]
    return f"{machine.platform or 'this machine'}, {' and '.join(cards) or 'no GPU'}"


def _choose(platform: str | None, gpus: tuple[Gpu, ...]) -> tuple[str, str]:
    alone = len(gpus) == 1
    if not gpus:
        return "cpu", "vLLM's CPU engine, for small models"
    if platform == KAGGLE and alone and gpus[0].memory_mib < _FULL_24GB:
        return "gpu", "one card alone; the accelerator 'GPU T4 x2' holds a 7B model in 16 bits"
    if all(_is_t4_class(gpu) for gpu in gpus):
        if not alone:
            why = "two cards hold a 7B model in 16 bits together, nothing quantised"
            more = len(gpus) - 2
            idle = f"; {more} more stay idle at --tensor-parallel-size 2" if more else ""
            return "kaggle_t4x2", why + idle
        if platform in _FOUR_BITS:
            why = "a 7B model in 16 bits does not fit, so the base is quantised to 4 bits"
            return _FOUR_BITS[platform], why
    profile, why = _by_memory(min(gpu.memory_mib for gpu in gpus))
    idle = "" if alone else f"; {len(gpus) - 1} more stay idle without --tensor-parallel-size"
    return profile, why + idle


def _by_memory(mib: int) -> tuple[str, str]:
    if mib >= _FULL_80GB:
        return "gpu_80gb", "room for a 7B model in 16 bits and large batches"
    if mib >= _FULL_24GB:
        return "gpu_24gb", "room for a 7B model in 16 bits"
    return "gpu", "general settings, nothing quantised"


def _is_t4_class(gpu: Gpu) -> bool:
    return gpu.compute_capability == "7.5" and gpu.memory_mib in _T4_CLASS
