"""Tiny model and adapter folders: real files, whose weights are one repeated byte.

Safetensors files are written by hand: the library's writer for NumPy has no bfloat16.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from vllm_eval.inputs.safetensors_headers import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BASE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}
SPLIT = {"type": "Whitespace"}
WORDS = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
MARKS = {"<s>": 1, "</s>": 2}

PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)

Shapes = dict[str, tuple[int, ...]]


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", byte: int = 1
) -> None:
    """Tensors of one repeated byte."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + Tensor(dtype, shape).size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes([byte]) * at)


def base_shapes(layers: int = 2) -> Shapes:
    """Weights of a base as `BASE` describes it."""
    layer = {
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_proj": (32, 16),
        "mlp.up_proj": (32, 16),
        "mlp.down_proj": (16, 32),
    }
    shapes: Shapes = {"model.embed_tokens.weight": (64, 16), "model.norm.weight": (16,)}
    for number in range(layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def write_tokenizer(folder: Path, **added: int) -> None:
    """A tokenizer that makes a token of each word, with these added tokens and their numbers."""
    more = [{"id": number, "content": token, **PLAIN} for token, number in added.items()]
    tokenizer = {"version": "1.0", "added_tokens": more, "pre_tokenizer": SPLIT, "model": WORDS}
    write_json(folder / "tokenizer.json", tokenizer)


def write_llama_tokenizer(folder: Path, template: str = "{{ messages[0].content }}") -> None:
    """A tokenizer of words w0 to w60 that puts `<s>` before every text, as that of a Llama does."""
    words = {"[UNK]": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n + 3 for n in range(61)}
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    then = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    marks = [{"id": n, "content": token, **PLAIN, "special": True} for token, n in MARKS.items()]
    tokenizer = {
        "version": "1.0",
        "added_tokens": marks,
        "pre_tokenizer": SPLIT,
        "model": WORDS | {"vocab": words},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, then],
            "pair": [first, then, then],
            "special_tokens": special,
        },
    }
    write_json(folder / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    write_json(folder / "tokenizer_config.json", settings | {"eos_token": "</s>"})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_base(folder: Path, **changes: object) -> Path:
    """A base model whose tokenizer makes a token of each word."""
    folder.mkdir(parents=True)
    kind = str(changes.get("model_type", BASE["model_type"])).title()
    write_json(folder / "config.json", BASE | {"architectures": [f"{kind}ForCausalLM"]} | changes)
    write_tokenizer(folder)
    write_safetensors(folder / "model.safetensors", base_shapes(), "BF16")
    return folder


def lora_shapes(layers: int = 2, rank: int = 4, hidden: int = 16) -> Shapes:
    """LoRA weights of the queries and values of each layer."""
    shapes: Shapes = {}
    for number in range(layers):
        for name, outputs in (("q_proj", hidden), ("v_proj", hidden // 2)):
            module = f"base_model.model.model.layers.{number}.self_attn.{name}"
            shapes[f"{module}.lora_A.weight"] = (rank, hidden)
            shapes[f"{module}.lora_B.weight"] = (outputs, rank)
    return shapes


def write_adapter(folder: Path, shapes: Shapes | None = None, **changes: object) -> Path:
    """An adapter that fits `write_base`, but for what is given."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = lora_shapes() if shapes is None else shapes
    targets = {
        name.partition(".lora_")[0].rpartition(".")[2] for name in shapes if ".lora_" in name
    }
    named = {"target_modules": sorted(targets)} if targets else {}
    write_json(folder / "adapter_config.json", ADAPTER | named | changes)
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    return folder
