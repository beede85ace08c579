"""What hardware this is, and which profile fits it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

_QUERY = "name,memory.total,compute_cap,driver_version"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as the driver's own tool reports it."""

    name: str
    memory_mib: int
    compute_capability: str
    driver: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware a run happens on; stored with its results."""

    system: str
    python: str
    cpus: int
    """Processors this process may use."""
    memory_mib: int
    gpus: tuple[Gpu, ...]


def detect() -> Machine:
    """Look at this machine. Needs no GPU library: the driver's `nvidia-smi` is asked."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_mib=memory // 2**20,
        gpus=_gpus(),
    )


def choose_profile(machine: Machine) -> str:
    """The name of the shipped profile that fits `machine`."""
    return "gpu" if machine.gpus else "cpu"


def _gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # the tool is there but no driver answers: no usable device
    rows = (line.split(", ") for line in done.stdout.splitlines())
    return tuple(
        Gpu(row[0], int(row[1]), row[2], row[3])
        for row in rows
        if len(row) == 4 and row[1].isdigit()
    )
