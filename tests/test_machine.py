"""What the driver's tool reports, told by a script in its place on PATH."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import pytest

from vllm_eval.config.machine import Gpu, detect
from vllm_eval.config.settings import load_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Install = Callable[[str], None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a shell script of this body where `nvidia-smi` is looked for."""

    def install(body: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def test_every_device_is_reported(nvidia_smi: Install) -> None:
    nvidia_smi("echo 'Card A, 16384, 7.5, 550.1'; echo 'Card B, 81920, 9.0, 550.1'")
    assert detect().gpus == (
        Gpu("Card A", 16384, "7.5", "550.1"),
        Gpu("Card B", 81920, "9.0", "550.1"),
    )


def test_numbers_are_asked_for_without_units(nvidia_smi: Install) -> None:
    nvidia_smi('case "$*" in *csv,noheader,nounits*) echo "Card, 1024, 8.0, 1";; esac')
    assert len(detect().gpus) == 1


def test_the_tool_is_asked_once_by_a_process(nvidia_smi: Install, tmp_path: Path) -> None:
    nvidia_smi(f"echo asked >> {tmp_path / 'log'}; echo 'Card, 16384, 8.0, 550.1'")
    assert detect() == detect()
    assert load_config(flags={"engine": "transformers"}).profile == "gpu"
    assert (tmp_path / "log").read_text("utf-8") == "asked\n"


@pytest.mark.parametrize(
    "body",
    [
        "exit 9",
        "echo 'No devices were found'",
        "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9",
        "true",
        "kill -9 $$",
        r"printf '\377\376, 1\n'",
    ],
)
def test_a_tool_without_an_answer_means_no_device(nvidia_smi: Install, body: str) -> None:
    nvidia_smi(body)
    assert detect().gpus == ()


def test_a_file_that_cannot_be_run_means_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect().gpus == ()


def test_a_machine_without_the_tool_has_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect().gpus == ()


def test_processors_and_memory_are_those_of_this_machine() -> None:
    machine = detect()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory_mib == pages // 2**20
    assert 1 <= machine.cpus <= (os.cpu_count() or 1)
    assert machine.python == platform.python_version()
