"""The most memory a run held: of the host by its own processes, of the devices by anyone."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pynvml

from vllm_eval.config.machine import MIB, nvml_devices

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

INTERVAL_S = 1.0


class PeakMemory:
    """Looks once a second, in a thread of its own, from `with` to its end."""

    def __init__(self) -> None:
        """Nothing is looked at before `with`."""
        self.host_mib = 0
        """Resident memory of this process and its children, shared pages counted in each."""
        self.device_mib: int | None = None
        """Taken on all NVIDIA devices together; None where there is none, or it cannot be asked."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        """Start looking."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Look a last time."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        with nvml_devices(pynvml) as devices:
            while True:
                self.host_mib = max(self.host_mib, _resident() // MIB)
                if devices and (taken := _taken(devices)) is not None:
                    self.device_mib = max(self.device_mib or 0, taken // MIB)
                if self._ended.wait(INTERVAL_S):
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
