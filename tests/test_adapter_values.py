"""What an adapter's values and layers say: no numbers, nothing but zeros, a part of the model.

Covered: every float type; experts; named layers. What is said is in test_broken_adapters.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.documented import run_documented
from tests.model_folders import lora_shapes, write_adapter, write_base, write_safetensors
from vllm_eval.inputs.adapters import read_adapter
from vllm_eval.inputs.base_model import read_base
from vllm_eval.inputs.safetensors_headers import read_header
from vllm_eval.inputs.tensor_values import survey
from vllm_eval.preflight.adapter import check_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model_folders import Shapes
    from vllm_eval.preflight.finding import Finding

WEIGHTS = "adapter_model.safetensors"
MODEL = "base_model.model.model"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", model_type="llama")


def found(folder: Path, base: Path) -> list[Finding]:
    return check_adapter(read_adapter("pupil", folder), read_base(str(base)), (0, 32))


def levels(folder: Path, base: Path) -> list[str]:
    return [finding.level for finding in found(folder, base)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_found_in_any_type(
    tmp_path: Path, dtype: str, odd: float
) -> None:
    values, zeros = np.ones(2**20 + 5, dtype), np.zeros(9, dtype)
    save_file({"a": values, "b": -values, "c": -zeros}, tmp_path / "file")
    assert survey(tmp_path / "file", read_header(tmp_path / "file")).not_finite == []
    changed = values.copy()
    changed[-1] = odd
    save_file({"a": changed, "b": -values, "c": -zeros}, tmp_path / "file")
    seen = survey(tmp_path / "file", read_header(tmp_path / "file"))
    assert seen.not_finite == ["a"]
    assert seen.zero == {"c"}


def test_eight_and_sixteen_bits_have_signs_of_their_own_for_what_is_no_number(
    tmp_path: Path,
) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    types = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    rows = torch.tensor([[448.0, -1.0], [float("nan"), 1.0], [0.0, -0.0]])
    tensors = {f"{kind} {n}": row.to(kind) for kind in types for n, row in enumerate(rows)}
    save_torch(tensors, tmp_path / "file")
    seen = survey(tmp_path / "file", read_header(tmp_path / "file"))
    assert sorted(seen.not_finite) == sorted(name for name in tensors if name.endswith(" 1"))
    assert seen.zero == {name for name in tensors if name.endswith(" 2")}


def test_zeros_are_a_fault_only_where_nothing_else_is_left(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "pupil")
    values = {name: np.ones(shape, "float32") for name, shape in lora_shapes().items()}
    halves = [name for name in values if "lora_B" in name]
    for name in halves:
        assert levels(folder, base) == ["ok"]
        values[name] *= 0
        save_file(values, folder / WEIGHTS)
    (finding,) = found(folder, base)
    assert "every lora_B is zero" in finding.what


def test_a_lora_of_layers_that_its_configuration_names_is_no_warning(
    tmp_path: Path, base: Path
) -> None:
    shapes = lora_shapes(layers=1)
    assert levels(write_adapter(tmp_path / "pupil", shapes), base) == ["warning"]
    assert levels(write_adapter(tmp_path / "pupil", shapes, layers_to_transform=[0]), base) == [
        "ok"
    ]


def test_a_lora_of_experts_is_taken_if_it_is_of_all_of_a_layer(tmp_path: Path) -> None:
    """PEFT 0.21 answers with all as the merged model does; a part of them changes nothing."""
    base = write_base(tmp_path / "base", model_type="mixtral", num_local_experts=2)
    experts = [f"layers.0.mlp.experts.{n}.{name}" for n in (0, 1) for name in ("w1", "w2", "w3")]
    weights: Shapes = {f"model.{name}.weight": (16, 16) for name in experts}
    write_safetensors(base / "model.safetensors", weights, "BF16")
    loras: Shapes = {}
    for name in experts:
        loras[f"{MODEL}.{name}.lora_A.weight"] = (4, 16)
        loras[f"{MODEL}.{name}.lora_B.weight"] = (16, 4)
    assert levels(write_adapter(tmp_path / "whole", loras), base) == ["ok"]
    part = dict(list(loras.items())[:2])
    (finding,) = found(write_adapter(tmp_path / "part", part), base)
    assert "5 modules (first 'model.layers.0.mlp.experts.0.w2') of experts without" in finding.what
    run_documented("torch.zeros", tmp_path / "part", base)
    assert levels(tmp_path / "part", base) == ["ok"]
