"""Tensors whose rank alone fits: other vocabularies, embeddings saved beside, other names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.documented import run_documented
from tests.model_folders import lora_shapes, write_adapter, write_base, write_safetensors
from vllm_eval.errors import AdapterError
from vllm_eval.inputs.adapters import read_adapter
from vllm_eval.inputs.base_model import Base, read_base
from vllm_eval.inputs.tensor_values import same_values
from vllm_eval.preflight.adapter import check_adapter
from vllm_eval.preflight.needs import PEFT_RELEASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model_folders import Shapes
    from vllm_eval.preflight.finding import Finding

REPOSITORY = Path(__file__).parents[1]
MODEL = "base_model.model.model"
HEAD, INPUT = "base_model.model.lm_head", f"{MODEL}.embed_tokens"
INPUT_LORA: Shapes = {f"{INPUT}.lora_embedding_A": (4, 64), f"{INPUT}.lora_embedding_B": (16, 4)}


def head_lora(rows: int) -> Shapes:
    return {f"{HEAD}.lora_A.weight": (4, 16), f"{HEAD}.lora_B.weight": (rows, 4)}


def found(folder: Path, base: Base) -> list[Finding]:
    return check_adapter(read_adapter("pupil", folder), base, (0, 32))


def levels(folder: Path, base: Base) -> list[str]:
    return [finding.level for finding in found(folder, base)]


@pytest.fixture
def llama(tmp_path: Path) -> Base:
    """A base with tied embeddings, whose every value is 0.5 in bfloat16."""
    folder = write_base(tmp_path / "base", model_type="llama")
    header = read_base(str(folder)).tensors or {}
    shapes = {name: tensor.shape for name, tensor in header.items()}
    write_safetensors(folder / "model.safetensors", shapes, "BF16", 0x3F)
    return read_base(str(folder))


@pytest.mark.parametrize(
    ("adapter", "base", "said"),
    [
        ("l32_smaller", "llama32", "128 to 1500, not 128 to 1536"),
        ("ll_lmhead_nosave_resized", "llama", "64 to 1600, not 64 to 1536"),
        ("l32_embed", "llama32", None),
        ("l32_changed", "llama32", "which differ from the base's"),
        ("qm_experts", "qwen3moe", "fused experts"),
    ],
)
def test_an_adapter_of_a_real_tool_is_judged_as_vllm_serves_it(
    adapter: str, base: str, said: str | None
) -> None:
    cases = REPOSITORY / "../shared/cases/adapters"
    if not cases.is_dir():
        pytest.skip("no ../shared/cases/adapters beside this checkout")
    findings = found(cases / "ad" / adapter, read_base(str(cases / "bases" / base)))
    errors = [finding.message for finding in findings if finding.level == "error"]
    assert (len(errors) == 1 and said in errors[0]) if said else not errors


@pytest.mark.parametrize("rows", [60, 70])
def test_a_head_of_another_vocabulary_is_refused_with_both_shapes(
    tmp_path: Path, llama: Base, rows: int
) -> None:
    folder = write_adapter(tmp_path / "pupil", lora_shapes() | head_lora(rows))
    (finding,) = found(folder, llama)
    assert finding.level == "error"
    assert f"16 to {rows}, not 16 to 64" in finding.what


def test_a_head_of_an_unknown_kind_of_base_is_compared_with_its_weights(tmp_path: Path) -> None:
    base = read_base(str(write_base(tmp_path / "base", model_type="new", vocab_size=64)))
    good = write_adapter(tmp_path / "good", lora_shapes() | head_lora(64) | INPUT_LORA)
    wrong = write_adapter(tmp_path / "wrong", lora_shapes() | head_lora(70))
    assert (levels(good, base), levels(wrong, base)) == (["ok"], ["error"])


def test_a_lora_of_embeddings_that_fit_is_taken(tmp_path: Path, llama: Base) -> None:
    shapes = lora_shapes() | head_lora(64) | INPUT_LORA
    assert levels(write_adapter(tmp_path / "pupil", shapes), llama) == ["ok"]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("byte", "expected"), [(0x3F, ["ok"]), (0x3E, ["error"])])
def test_embeddings_saved_with_their_lora_must_equal_the_base_s(
    tmp_path: Path, llama: Base, dtype: str, byte: int, expected: list[str]
) -> None:
    beside = {f"{INPUT}.base_layer.weight": (64, 16), f"{HEAD}.base_layer.weight": (64, 16)}
    shapes = lora_shapes() | head_lora(64) | INPUT_LORA | beside
    folder = write_adapter(tmp_path / "pupil", shapes)
    write_safetensors(folder / "adapter_model.safetensors", shapes, dtype, byte)
    assert levels(folder, llama) == expected


def test_resized_embeddings_saved_with_their_lora_are_refused(tmp_path: Path, llama: Base) -> None:
    shapes: Shapes = lora_shapes() | INPUT_LORA | {f"{INPUT}.base_layer.weight": (70, 16)}
    folder = write_adapter(tmp_path / "pupil", shapes)
    write_safetensors(folder / "adapter_model.safetensors", shapes, byte=0x3F)
    assert levels(folder, llama) == ["error"]


def test_embeddings_that_cannot_be_compared_are_a_warning(tmp_path: Path) -> None:
    base = read_base(str(write_base(tmp_path / "base", model_type="llama")), weights=False)
    shapes: Shapes = lora_shapes() | INPUT_LORA | {f"{INPUT}.base_layer.weight": (64, 16)}
    (finding,) = found(write_adapter(tmp_path / "pupil", shapes), base)
    assert finding.level == "warning"
    assert "not compared" in finding.what


def test_embeddings_are_found_in_a_base_of_several_files(tmp_path: Path, llama: Base) -> None:
    assert llama.folder is not None
    (llama.folder / "model.safetensors").rename(llama.folder / "model-2-of-2.safetensors")
    write_safetensors(llama.folder / "model-1-of-2.safetensors", {"model.more.weight": (2, 2)})
    shapes: Shapes = lora_shapes() | INPUT_LORA | {f"{INPUT}.base_layer.weight": (64, 16)}
    folder = write_adapter(tmp_path / "pupil", shapes)
    write_safetensors(folder / "adapter_model.safetensors", shapes, "BF16", 0x3F)
    assert levels(folder, read_base(str(llama.folder))) == ["ok"]


def test_fused_experts_are_named_as_such_and_not_as_another_rank(
    tmp_path: Path, llama: Base
) -> None:
    experts = f"{MODEL}.layers.0.mlp.experts"
    shapes: Shapes = {f"{experts}.lora_A.weight": (16, 32), f"{experts}.lora_B.weight": (16, 16)}
    up = {name.replace("experts", "experts.base_layer"): shape for name, shape in shapes.items()}
    shapes = lora_shapes() | shapes | up
    (finding,) = found(write_adapter(tmp_path / "tensors", shapes), llama)
    assert "fused experts" in finding.message
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    folder = write_adapter(tmp_path / "key", shapes, target_parameters=parameters)
    refused, rest = found(folder, llama)
    assert (refused.level, rest.level) == ("error", "ok")
    assert rest.what.startswith("4 modules")


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("use_dora", "layers.0.self_attn.q_proj.lora_magnitude_vector"),
        ("lora_bias", "layers.0.self_attn.q_proj.lora_B.bias"),
        ("trainable_token_indices", "embed_tokens.token_adapter.trainable_tokens_delta"),
        ("kasa_config", "layers.0.self_attn.q_proj.lora_diag"),
        ("monteclora_config", "layers.0.self_attn.q_proj.lora_monteclora_sampler.expert_weights"),
        ("modules_to_save", "norm.weight"),
        ("modules_to_save", "layers.0.input_layernorm.weight"),
    ],
)
def test_a_refused_key_and_its_tensors_are_one_error(
    tmp_path: Path, llama: Base, key: str, tensor: str
) -> None:
    value = ["norm"] if key == "modules_to_save" else [1]
    shapes = lora_shapes() | {f"{MODEL}.{tensor}": (16,)}
    folder = write_adapter(tmp_path / "pupil", shapes, **{key: value})
    assert levels(folder, llama) == ["error", "ok"]


def test_a_lora_of_the_weight_of_a_linear_module_is_one_like_any_other(
    tmp_path: Path, llama: Base
) -> None:
    """Measured: vLLM 0.32 answers with it as PEFT 0.21 does."""
    parameters = ["self_attn.q_proj.weight", "v_proj.weight"]
    for targets in ([], ["q_proj"]):
        more: dict[str, Any] = {"target_modules": targets, "target_parameters": parameters}
        assert levels(write_adapter(tmp_path / "pupil", **more), llama) == ["ok"]


def test_layers_used_twice_are_one_error(tmp_path: Path, llama: Base) -> None:
    twice = {"layer_replication": [[0, 2], [1, 2]]}
    folder = write_adapter(tmp_path / "pupil", lora_shapes(layers=3), **twice)
    assert levels(folder, llama) == ["error", "ok"]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F64"])
def test_lora_weights_of_any_float_are_taken(tmp_path: Path, llama: Base, dtype: str) -> None:
    """vLLM 0.32 converts them to its own type; measured with F8_E4M3 and F64."""
    folder = write_adapter(tmp_path / "pupil")
    write_safetensors(folder / "adapter_model.safetensors", lora_shapes(), dtype)
    assert levels(folder, llama) == ["ok"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"{MODEL}.", "base_model.model._orig_mod.model."),
        (f"{MODEL}.", f"_orig_mod.{MODEL}."),
        (f"{MODEL}.", f"module.{MODEL}."),
        (".self_attn", "._checkpoint_wrapped_module.self_attn"),
        (".layers", "._fsdp_wrapped_module.layers"),
        (f"{MODEL}.", f"{MODEL}.language_model."),
        (f"{MODEL}.", "base_model.model.language_model.model."),
        (f"{MODEL}.", "base_model.model."),
        (".weight", ".default.weight"),
        (f"{MODEL}.", f"base_model.model.{MODEL}."),
    ],
)
def test_names_that_vllm_would_not_find_are_renamed_by_the_lines_in_the_documentation(
    tmp_path: Path, llama: Base, old: str, new: str
) -> None:
    shapes = {name.replace(old, new): shape for name, shape in lora_shapes().items()}
    folder = write_adapter(tmp_path / "pupil", shapes)
    finding = found(folder, llama)[0]
    assert finding.level == ("warning" if "base_model.model.base_model" in new else "error")
    assert "docs/adapters.md" in finding.todo
    run_documented("RENAMED", folder)
    assert levels(folder, llama) == ["ok"]


def test_weights_in_several_files_are_joined_by_the_lines_in_the_documentation(
    tmp_path: Path, llama: Base
) -> None:
    folder, names = write_adapter(tmp_path / "pupil"), list(lora_shapes())
    (folder / "adapter_model.safetensors").unlink()
    for part, some in enumerate((names[:3], names[3:]), 1):
        shapes = {name: lora_shapes()[name] for name in some}
        write_safetensors(folder / f"adapter_model-0000{part}-of-00002.safetensors", shapes)
    with pytest.raises(AdapterError, match="is split into files like adapter_model-"):
        read_adapter("pupil", folder)
    run_documented("-of-", folder)
    assert levels(folder, llama) == ["ok"]


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda name: f"base_model.model.{name}", {}),
        (lambda name: name.removeprefix("base_model.model."), {}),
        (lambda name: name, {"target_modules": []}),
    ],
    ids=["wrapped twice", "no prefix", "no targets"],
)
def test_what_vllm_serves_and_peft_does_not_is_an_error_for_peft_alone(
    tmp_path: Path, llama: Base, change: Callable[[str], str], settings: dict[str, object]
) -> None:
    """Measured with vLLM 0.32 and PEFT 0.21: the adapter's answers, and the base's or an error."""
    shapes = {change(name): shape for name, shape in lora_shapes().items()}
    adapter = read_adapter("pupil", write_adapter(tmp_path / "pupil", shapes, **settings))
    for release, level in (((0, 32), "warning"), (PEFT_RELEASE, "error")):
        findings = [f for f in check_adapter(adapter, llama, release) if f.level != "ok"]
        assert [finding.level for finding in findings] == [level]


@pytest.mark.parametrize(
    ("trained", "base", "said"),
    [
        ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "Qwen/Qwen2.5-7B-Instruct", "ok: a 4-bit copy"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "Qwen/Qwen3-4B", "ok: a 4-bit copy"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B", "ok: a 4-bit copy"),
        ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", ""),
        ("/content/merged", "Qwen/Qwen3-4B", "ok: a folder of another machine"),
        ("/kaggle/input/qwen2.5/7b/1", "Qwen/Qwen2.5-7B", "ok: a folder of another machine"),
        ("../models/mine", "Qwen/Qwen3-4B", "ok: a folder of another machine"),
        ("C:\\models\\mine", "Qwen/Qwen3-4B", "ok: a folder of another machine"),
        ("/content/Qwen3-4B", "Qwen/Qwen3-4B", ""),
        ("unsloth/Qwen3-8B-bnb-4bit", "Qwen/Qwen3-4B", "warning: but the base is"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B", "warning: but the base is"),
    ],
)
def test_a_mirror_of_the_base_and_a_folder_of_another_machine_are_no_warning(
    tmp_path: Path, trained: str, base: str, said: str
) -> None:
    folder = write_adapter(tmp_path / "pupil", base_model_name_or_path=trained)
    level, _, words = said.partition(": ")
    lines = [f for f in found(folder, Base(base)) if "trained on" in f.what]
    assert [f.level for f in lines] == ([level] if said else [])
    assert all(words in finding.what for finding in lines)


@pytest.mark.parametrize(
    ("one", "other"), [("float32", "float16"), ("float64", "float32"), ("float16", "float16")]
)
def test_a_tensor_equals_its_rounded_copy(tmp_path: Path, one: str, other: str) -> None:
    values = np.random.default_rng(0).normal(size=(30, 7))
    save_file({"a": values.astype(one)}, tmp_path / "one")
    save_file({"pad": np.zeros(3, "int8"), "b": values.astype(other)}, tmp_path / "other")
    assert same_values(tmp_path / "one", "a", tmp_path / "other", "b")
    assert same_values(tmp_path / "other", "b", tmp_path / "one", "a")


def test_one_changed_value_in_the_last_piece_makes_tensors_differ(tmp_path: Path) -> None:
    values = np.zeros(2**20 + 5, "float32")
    save_file({"a": values}, tmp_path / "one")
    values[-1] = 1e-3
    save_file({"a": values}, tmp_path / "other")
    assert not same_values(tmp_path / "one", "a", tmp_path / "other", "a")


def test_rounding_to_bfloat16_is_to_the_nearest_even(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    save_torch({"a": values}, tmp_path / "one")
    save_torch({"a": values.bfloat16()}, tmp_path / "other")
    save_torch({"a": (values * 1.01).bfloat16()}, tmp_path / "third")
    assert same_values(tmp_path / "one", "a", tmp_path / "other", "a")
    assert not same_values(tmp_path / "one", "a", tmp_path / "third", "a")


@pytest.mark.parametrize("held", [5, "lm_head", [None], {"a": 1}])
@pytest.mark.parametrize("key", ["modules_to_save", "target_parameters"])
def test_a_key_of_another_form_is_refused_and_not_followed(
    tmp_path: Path, llama: Base, key: str, held: object
) -> None:
    shapes = lora_shapes() | {f"{MODEL}.norm.weight": (16,)}
    assert "error" in levels(write_adapter(tmp_path / "pupil", shapes, **{key: held}), llama)


def test_a_whole_model_saved_beside_the_lora_is_refused(tmp_path: Path, llama: Base) -> None:
    whole = {f"base_model.model.{name}": t.shape for name, t in (llama.tensors or {}).items()}
    folder = write_adapter(tmp_path / "pupil", lora_shapes() | whole)
    messages = [finding.message for finding in found(folder, llama) if finding.level == "error"]
    assert any("saved whole beside the LoRA" in message for message in messages)
