"""One model split over two processes of the real engine answers as the model in one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.config.settings import resolve_path

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.deep]

TWO = (
    *("--tensor-parallel-size", "2"),
    # A worker is a process of its own, and gets one processor.
    *("-c", "engine_env.VLLM_ENABLE_V1_MULTIPROCESSING='1'"),
    *("-c", "engine_env.VLLM_CPU_OMP_THREADS_BIND='0|1'"),
)


def with_a_key_value_head_for_each_head(name: str, folder: Path) -> Path:
    """A copy of the demo's base or adapter that computes the same and can be halved.

    Its three key-value heads serve two heads each; here each head gets its own copy. In an
    adapter only the second matrix knows of heads.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(resolve_path(f"package:demo/{name}"), folder)
    config = json.loads(resolve_path("package:demo/base/config.json").read_text("utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if name == "base":
        config["num_key_value_heads"] = heads
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    for key, tensor in tensors.items():
        if ("k_proj" in key or "v_proj" in key) and "lora_A" not in key:
            each = tensor.reshape(kv_heads, -1, *tensor.shape[1:])
            repeated = torch.repeat_interleave(each, heads // kv_heads, dim=0)
            tensors[key] = repeated.reshape(-1, *tensor.shape[1:]).contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def demo(output_dir: Path, *more: str) -> dict[str, Any]:
    """The run's comparison."""
    command = [sys.executable, "-m", "vllm_eval", "--config", "demo", "--retries", "0"]
    command += ["--max-samples", "3", "--output-dir", str(output_dir), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    (path,) = output_dir.glob("*/comparison.json")
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def test_tensor_parallel_gives_the_verdict_of_one_process(tmp_path: Path) -> None:
    base = with_a_key_value_head_for_each_head("base", tmp_path / "base")
    student = with_a_key_value_head_for_each_head("po_student_demo", tmp_path / "po_student_demo")
    model = ("--base-model", str(base), "-c", f"adapters=[{student}]")
    one = demo(tmp_path / "one")
    two = demo(tmp_path / "two", *model, *TWO)
    (log,) = (tmp_path / "two").glob("*/engine.log")
    assert "Worker_TP1" in log.read_text("utf-8")
    assert two["passed"] == one["passed"]
    for arm in ("baseline", "po_student_demo"):
        assert two["arms"][arm]["valid"] == one["arms"][arm]["valid"]
        # In another order of summation a token may fall otherwise; measured: none did.
        assert two["arms"][arm]["mean"] == pytest.approx(one["arms"][arm]["mean"], abs=0.02)
