"""How fast this machine's memory and arithmetic are, measured: the two roofs of the roofline.

Bandwidth as STREAM's copy counts it (McCalpin 1995): each byte once read and once written, best of
several rounds. Arithmetic by one large matrix product in the type that is computed with.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """A machine's roofs."""

    device: str
    dtype: str
    threads: int
    bytes_per_s: float
    flops_per_s: float


def measure_speed(dtype: str, env: Mapping[str, str]) -> Speed:
    """Measure in a process of its own, which leaves no memory behind and no library loaded.

    Args:
        dtype: PyTorch's name of the type computed with.
        env: of the engine; what limits its threads limits these.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, dtype, dict(env)).result()


def _measure(dtype: str, env: dict[str, str]) -> Speed:
    import os

    os.environ.update({name: value for name, value in env.items() if name not in os.environ})
    import torch  # noqa: TID251  nothing else reaches every device

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    kind: Any = getattr(torch, dtype)
    wait: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None
    count = (1 if cuda else 2**-2) * 2**30  # bytes; far more than any cache holds
    one = torch.ones(int(count) // 4, dtype=torch.float32, device=device)
    other = torch.empty_like(one)
    copy_s = _best(lambda: other.copy_(one), wait)
    size = 8192 if cuda else 1024
    left = torch.randn(size, size, device=device).to(kind)
    product = torch.empty_like(left)
    matmul_s = _best(lambda: torch.matmul(left, left, out=product), wait)
    return Speed(
        device=torch.cuda.get_device_name() if cuda else "cpu",
        dtype=dtype,
        threads=torch.get_num_threads(),
        bytes_per_s=2 * one.numel() * 4 / copy_s,
        flops_per_s=2 * size**3 / matmul_s,
    )


def _best(call: Callable[[], object], wait: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS + 1):  # the first is among them and never the best
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)
