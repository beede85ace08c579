"""Read from vLLM's own files: the names of multimodal bases, and the LoRA that it serves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.model_folders import (
    BASE,
    base_shapes,
    lora_shapes,
    write_adapter,
    write_base,
    write_safetensors,
)
from vllm_eval.inputs.adapters import read_adapter
from vllm_eval.inputs.base_model import NO_VOCABULARY_LORA, Base, read_base
from vllm_eval.inputs.vllm_names import lora_support, models_folder, module_prefixes, renamed
from vllm_eval.preflight.adapter import check_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.model_folders import Shapes

MODEL = "base_model.model.model."
VISION: Shapes = {"vision_tower.encoder.layers.30.fc1.weight": (16, 16)}
REGISTRY = """
_MODELS = {
    "SeesForConditionalGeneration": ("sees", "SeesForConditionalGeneration"),
    "LaterForConditionalGeneration": ("sees", "LaterForConditionalGeneration"),
    "MadeForConditionalGeneration": ("sees", "MadeForConditionalGeneration"),
}
"""
SEES = """
import no_such_library

class SeesForConditionalGeneration(no_such_library.Base):
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.text.": "language_model.model.", "lm_head.": "head."},
        orig_to_new_suffix={"a": "b"},
    )

class LaterForConditionalGeneration(SeesForConditionalGeneration):
    pass

class MadeForConditionalGeneration(SeesForConditionalGeneration):
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=made())
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "registry.py").write_text(REGISTRY, encoding="utf-8")
    (tmp_path / "sees.py").write_text(SEES, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", ["Sees", "Later"])
def test_the_prefixes_of_a_class_are_read_without_running_its_module(
    models: Path, kind: str
) -> None:
    prefixes = module_prefixes(models, f"{kind}ForConditionalGeneration") or {}
    assert renamed("model.text.layers.0.mlp.up_proj", prefixes) == (
        "language_model.model.layers.0.mlp.up_proj"
    )
    assert renamed("lm_head", prefixes) == "head"
    assert renamed("model.layers.0", prefixes) == "model.layers.0"


@pytest.mark.parametrize("kind", ["Made", "Unknown"])
def test_prefixes_that_are_not_stated_are_not_guessed(models: Path, kind: str) -> None:
    assert module_prefixes(models, f"{kind}ForConditionalGeneration") is None
    assert module_prefixes(models / "none", f"{kind}ForConditionalGeneration") is None


def multimodal(folder: Path, architecture: str) -> Base:
    """A base with the modules of the tests' decoder as its text part, and a vision part."""
    write_base(folder, architectures=[architecture], text_config=BASE)
    text = {f"language_model.{name}": shape for name, shape in base_shapes().items()}
    write_safetensors(folder / "model.safetensors", text | VISION, "BF16")
    return read_base(str(folder))


def levels(folder: Path, base: Base) -> list[str]:
    return [f.level for f in check_adapter(read_adapter("pupil", folder), base, (0, 32))]


@pytest.mark.parametrize(
    ("architecture", "prefix", "expected"),
    [
        ("Gemma3ForConditionalGeneration", "base_model.model.model.language_model.", ["ok"]),
        ("Gemma3ForConditionalGeneration", "base_model.model.language_model.model.", ["ok"]),
        ("Gemma3ForConditionalGeneration", "base_model.model.model.", ["error"]),
        ("Mistral3ForConditionalGeneration", "base_model.model.model.", ["ok"]),
        ("Mistral3ForConditionalGeneration", "base_model.model.model.text.", ["error"]),
    ],
)
def test_names_that_the_installed_vllm_would_not_find_are_refused(
    tmp_path: Path, architecture: str, prefix: str, expected: list[str]
) -> None:
    if models_folder() is None:
        pytest.skip("no vLLM here to read the names from")
    shapes = {name.replace(MODEL, prefix): shape for name, shape in lora_shapes().items()}
    base = multimodal(tmp_path / "base", architecture)
    assert levels(write_adapter(tmp_path / "pupil", shapes), base) == expected


def test_a_lora_of_the_vision_part_is_refused(tmp_path: Path) -> None:
    if models_folder() is None:
        pytest.skip("no vLLM here to read the names from")
    tower = "base_model.model.vision_tower.encoder.layers.30.fc1"
    shapes = {
        name.replace(MODEL, f"{MODEL}language_model."): s for name, s in lora_shapes().items()
    }
    shapes |= {f"{tower}.lora_A.weight": (4, 16), f"{tower}.lora_B.weight": (16, 4)}
    base = multimodal(tmp_path / "base", "Gemma3ForConditionalGeneration")
    (finding,) = check_adapter(
        read_adapter("pupil", write_adapter(tmp_path / "pupil", shapes)), base, (0, 32)
    )
    assert finding.level == "error"
    assert "outside the language model" in finding.what


def test_shapes_of_a_multimodal_base_are_compared_too(tmp_path: Path) -> None:
    if models_folder() is None:
        pytest.skip("no vLLM here to read the names from")
    wide = lora_shapes(hidden=32).items()
    shapes = {name.replace(MODEL, f"{MODEL}language_model."): shape for name, shape in wide}
    base = multimodal(tmp_path / "base", "Gemma3ForConditionalGeneration")
    assert levels(write_adapter(tmp_path / "pupil", shapes), base) == ["error"]


def test_names_of_a_multimodal_base_that_nobody_knows_are_a_warning(tmp_path: Path) -> None:
    base = multimodal(tmp_path / "base", "UnknownForConditionalGeneration")
    assert levels(write_adapter(tmp_path / "pupil"), base) == ["warning"]


def test_what_is_said_of_vocabulary_lora_without_vllm_is_what_the_installed_one_says() -> None:
    """For every type of which transformers knows the class."""
    if (models := models_folder()) is None:
        pytest.skip("no vLLM here to read it from")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    without = set()
    for model_type, named in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        with contextlib.suppress(LookupError):
            if lora_support(models, named if isinstance(named, str) else named[0]) == frozenset():
                without.add(model_type)
    assert without == NO_VOCABULARY_LORA


@pytest.mark.parametrize(
    ("architecture", "served"),
    [
        ("LlamaForCausalLM", {"embed_tokens", "lm_head"}),
        ("Phi3ForCausalLM", {"embed_tokens", "lm_head"}),  # a Llama, in another file
        ("CohereForCausalLM", {"embed_tokens"}),
        ("MistralForCausalLM", set()),  # a Llama too, but says otherwise
        ("Qwen2ForCausalLM", set()),
        ("MambaForCausalLM", None),
    ],
)
def test_embeddings_that_vllm_serves_a_lora_of_are_read_from_its_files(
    architecture: str, served: set[str] | None
) -> None:
    if (models := models_folder()) is None:
        pytest.skip("no vLLM here to read it from")
    assert lora_support(models, architecture) == served


def test_lora_of_what_vllm_does_not_know_is_not_guessed(models: Path) -> None:
    for architecture in ("MadeForConditionalGeneration", "UnknownForCausalLM"):
        with pytest.raises(LookupError):
            lora_support(models / "none", architecture)
    with pytest.raises(LookupError):
        lora_support(models, "UnknownForCausalLM")
