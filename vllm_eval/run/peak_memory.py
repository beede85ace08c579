"""The most memory a run held: of the host by its own processes, of the devices by anyone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from vllm_eval.config.machine import MIB, nvml_devices

INTERVAL_S = 1.0


@dataclass(slots=True)
class PeakMemory:
    """The most so far."""

    host_mib: int = 0
    """Resident memory of this process and its children, shared pages counted in each."""
    device_mib: int | None = None
    """Taken on all NVIDIA devices together; None where there is none, or it cannot be asked."""


@contextlib.contextmanager
def watch_memory() -> Iterator[PeakMemory]:
    """Look once a second, in a thread of its own, and a last time at the end."""
    peak, ended = PeakMemory(), threading.Event()
    thread = threading.Thread(target=_watch, args=(peak, ended), name="peak-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _watch(peak: PeakMemory, ended: threading.Event) -> None:
    with nvml_devices(pynvml) as devices:
        while True:
            peak.host_mib = max(peak.host_mib, _resident() // MIB)
            if devices and (taken := _taken(devices)) is not None:
                peak.device_mib = max(peak.device_mib or 0, taken // MIB)
            if ended.wait(INTERVAL_S):
                return


def _resident() -> int:
    """Bytes."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            total += process.memory_info().rss
    return total


def _taken(devices: list[Any]) -> int | None:
    """Bytes; None where no device says."""
    with contextlib.suppress(pynvml.NVMLError):
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices)
    return None
