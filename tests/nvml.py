"""A driver's library that answers as told, in the place of `pynvml`: NVML itself needs a GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pynvml

if TYPE_CHECKING:
    from types import ModuleType

    import pytest

MIB = 2**20


@dataclass
class Card:
    """What the driver says of one device; an error in the place of an answer is raised."""

    name: str | Exception
    memory_mib: int
    capability: tuple[int, int] = (8, 0)
    free_mib: int = 0
    lost: bool = False


class Driver:
    """The functions of NVML that are used here."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *cards: Card, version: str = "550.1", fails: int | None = None) -> None:
        self.cards = cards
        self.version = version
        self.fails = fails
        """The error code of its start."""
        self.starts = 0
        self.ends = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Driver:
        """Have the program meet this driver, with every device visible."""
        monkeypatch.setitem(sys.modules, "pynvml", cast("ModuleType", self))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return self

    def nvmlInit(self) -> None:  # noqa: N802  NVML's names
        self.starts += 1
        if self.fails is not None:
            raise pynvml.NVMLError(self.fails)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.ends += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if self.cards[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:  # noqa: N802
        if isinstance(card.name, Exception):
            raise card.name
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> SimpleNamespace:  # noqa: N802
        if not card.memory_mib:  # as where the GPU has no memory of its own
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=card.memory_mib * MIB, free=card.free_mib * MIB)

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:  # noqa: N802
        return card.capability

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.version
