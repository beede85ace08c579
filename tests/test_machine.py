"""What the driver's library reports, told by one that answers in its place (`tests/nvml.py`)."""

from __future__ import annotations

import os
import platform
from dataclasses import replace

import pynvml
import pytest

from tests.nvml import Card, Driver
from vllm_eval.config.layers import load_config
from vllm_eval.config.machine import Gpu, detect

CARD = Card("Card A", 16384, (7, 5), free_mib=16000)


def test_every_device_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(CARD, Card("Card B", 81920, (9, 0), free_mib=512)).install(monkeypatch)
    assert detect().gpus == (
        Gpu("Card A", 16384, "7.5", "550.1", 16000),
        Gpu("Card B", 81920, "9.0", "550.1", 512),
    )


def test_the_driver_is_asked_once_by_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(CARD).install(monkeypatch)
    first, second = detect(), detect()
    assert first == replace(second, available_mib=first.available_mib)
    assert load_config(flags={"engine": "transformers"}).profile == "gpu"
    assert (driver.starts, driver.ends) == (1, 1)


@pytest.mark.parametrize(
    "driver",
    [
        Driver(),
        Driver(CARD, fails=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
        Driver(CARD, fails=pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
        Driver(CARD, fails=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH),
        Driver(CARD, fails=pynvml.NVML_ERROR_UNKNOWN),
        Driver(replace(CARD, lost=True)),
        Driver(replace(CARD, memory_mib=0)),
        Driver(replace(CARD, name=pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN))),
        Driver(replace(CARD, name=UnicodeDecodeError("utf-8", b"\377\376", 0, 1, "invalid"))),
    ],
)
def test_a_driver_without_an_answer_means_no_device(
    monkeypatch: pytest.MonkeyPatch, driver: Driver
) -> None:
    driver.install(monkeypatch)
    assert detect().gpus == ()


def test_a_device_that_is_lost_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(replace(CARD, lost=True), CARD).install(monkeypatch)
    assert [gpu.name for gpu in detect().gpus] == ["Card A"]


def test_processors_and_memory_are_those_of_this_machine() -> None:
    machine = detect()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_mib == pages // 2**20
    assert 0 < (machine.available_mib or 0) <= machine.memory_mib
    assert 1 <= machine.cpus <= (os.cpu_count() or 1)
    assert machine.python == platform.python_version()


def test_a_machine_without_the_library_has_no_device() -> None:
    """With the real `pynvml`, wherever that finds no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert detect().gpus == ()
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has a driver")
