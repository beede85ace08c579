"""Peak memory of a run: host memory of its own processes, device memory of all processes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pynvml

from vllm_eval.config.machine import MIB, nvml_devices

INTERVAL_S = 1.0


@dataclass(slots=True)
class PeakMemory:
    """The peak so far, in MiB."""

    host_mib: int = 0
    """Resident memory of this process and its children; shared pages count in each."""
    device_mib: int | None = None
    """Memory in use on all NVIDIA devices; None without a device, or if it cannot be read."""


@contextlib.contextmanager
def watch_memory() -> Iterator[PeakMemory]:
    """Measure once a second, in a separate thread, and once more at the end."""
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
            with contextlib.suppress(pynvml.NVMLError):
                used = [int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices]
                if used:
                    peak.device_mib = max(peak.device_mib or 0, sum(used) // MIB)
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
