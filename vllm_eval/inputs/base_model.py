"""The sizes and modules of a base model, from its files, before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vllm_eval.errors import InputError
from vllm_eval.inputs.safetensors_headers import Tensor, read_header, read_json

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose layers have the seven linear modules of `linear_modules`, by these names."""
NO_VOCABULARY_LORA = frozenset(
    (
        *("afmoe", "axk1", "deepseek_v2", "deepseek_v3", "ernie4_5_moe", "gemma", "gemma2"),
        *("gemma3", "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified", "glm4", "glm4_moe"),
        *("glm4_moe_lite", "gpt_oss", "hy_v3", "laguna", "longcat_flash", "minimax_m2"),
        *("ministral3", "mistral", "olmo_hybrid", "olmoe", "opt", "qwen2", "qwen2_moe"),
        "qwen3_next",
    )
)
"""Model types on which vLLM 0.32 serves no LoRA of `embed_tokens` or `lm_head`; asked only where
the installed one cannot be."""
MAX_LAYERS = 10_000
_NOT_DENSE = ("num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a dense decoder, from its `config.json`."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Input and output embeddings are one tensor."""
    dtype: str
    max_len: int | None
    """The longest text it was made for, in tokens; None if the file does not say."""

    @property
    def layer_modules(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear module of a layer."""
        queries, values = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, queries),
            "self_attn.k_proj": (self.hidden, values),
            "self_attn.v_proj": (self.hidden, values),
            "self_attn.o_proj": (queries, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear modules; norms and biases are too few to count."""
        return self.layers * sum(a * b for a, b in self.layer_modules.values())

    @property
    def vocabulary_parameters(self) -> int:
        """Weights of the embeddings, input and output."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    def uneven(self, shards: int) -> str | None:
        """What cannot be split evenly over `shards`; too few key-value heads are repeated."""
        if self.heads % shards:
            return f"{self.heads} attention heads"
        if self.kv_heads % shards and shards % self.kv_heads:
            return f"{self.kv_heads} key-value heads"
        if self.intermediate % shards:
            return f"{self.intermediate} feed-forward units"
        return None


@dataclass(frozen=True, slots=True)
class Base:
    """What is known of a base model from its files."""

    name: str
    folder: Path | None = None
    """None for a hub id that cannot be reached."""
    architecture: Architecture | None = None
    """None unless `config.json` describes a dense decoder."""
    quantization: Mapping[str, Any] | None = None
    """`quantization_config` of a checkpoint that is stored quantised."""
    tensors: Mapping[str, Tensor] | None = None
    """From all its weight files; None unless all are here, as safetensors."""
    wrapper: str | None = None
    """The class of a multimodal model, whose text part `architecture` describes."""
    kind: str | None = None
    """The class of the model, as `config.json` names it."""
    model_type: str | None = None
    """The model's type, or that of its text part."""


SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""Configuration and tokenizer of a hub model, without its weights."""


def read_base(name: str, revision: str | None = None, *, weights: bool = True) -> Base:
    """Read a base model's folder, or the small files of a hub id, which are fetched.

    If `weights` is false, the weights may be missing, because nothing will load them.

    Raises:
        InputError: there is no such folder, or its files are not those of a model.
    """
    folder = _find(name, revision)
    if folder is None:
        return Base(name)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: must hold a JSON object; copy it again")
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    quantization = config.get("quantization_config")
    stored = quantization if isinstance(quantization, dict) else None
    tensors = _read_weights(folder) if weights else None
    classes = config.get("architectures")
    kind = str(classes[0]) if isinstance(classes, list) and classes else None
    wrapper, model_type = kind if text is not config else None, str(text.get("model_type"))
    dense = _read_architecture(text)
    return Base(name, folder, dense, stored, tensors, wrapper, kind, model_type)


def linear_modules(base: Base) -> dict[str, tuple[int, int]] | None:
    """Inputs and outputs of every linear module by its full name, or None where unknown."""
    architecture = None if base.wrapper else base.architecture
    if architecture is not None and architecture.model_type in LLAMA_LIKE:
        modules, layers = architecture.layer_modules.items(), range(architecture.layers)
        return {f"model.layers.{n}.{name}": shape for n in layers for name, shape in modules}
    if base.tensors is None or base.quantization is not None:
        return None
    return {
        name.removesuffix(".weight"): (tensor.shape[1], tensor.shape[0])
        for name, tensor in base.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not is_vocabulary(name)
    }


def vocabulary_modules(base: Base) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the input and output embedding by full name; empty where unknown."""
    architecture, modules = base.architecture, {}
    for name, tensor in (base.tensors or {}).items():
        if name.endswith(".weight") and len(tensor.shape) == 2 and is_vocabulary(name):
            rows, hidden = tensor.shape
            head = not {"lm_head", "embed_out"}.isdisjoint(name.split("."))
            modules[name.removesuffix(".weight")] = (hidden, rows) if head else (rows, hidden)
    if architecture is not None and (architecture.model_type in LLAMA_LIKE or modules):
        modules.setdefault("lm_head", (architecture.hidden, architecture.vocab))
    if architecture is not None and architecture.model_type in LLAMA_LIKE and not base.wrapper:
        modules["model.embed_tokens"] = (architecture.vocab, architecture.hidden)
    return modules


def is_vocabulary(name: str) -> bool:
    """Whether a tensor or module is an input or output embedding."""
    return not {"embed_tokens", "lm_head", "wte", "embed_out"}.isdisjoint(name.split("."))


def has_experts(base: Base) -> bool:
    """Whether its weights are known to hold experts; false where they are not known."""
    return any(".experts." in name for name in base.tensors or ())


def stored_as(base: Base, tensor: str) -> tuple[Path, str] | None:
    """The file of a base's tensor and its name there; None if it is not among the weights read.

    A tied output embedding may be stored as the input embedding alone.
    """
    if base.folder is None or base.tensors is None:
        return None
    tied = base.architecture is not None and base.architecture.tied
    if tensor == "lm_head.weight" and tensor not in base.tensors and tied:
        tensor = "model.embed_tokens.weight"
    if tensor not in base.tensors:
        return None
    files = (base.folder / name for name in sorted(_weight_files(base.folder)))
    return next(((file, tensor) for file in files if tensor in read_header(file)), None)


def missing_modules(base: Base) -> list[str]:
    """Modules of `config.json` that the weights lack or have with a different shape."""
    modules, stored = linear_modules(base), base.tensors
    if modules is None or stored is None or base.quantization is not None:
        return []
    if not any(name.startswith("model.") for name in stored):
        return []  # saved without the head, under shorter names that vLLM accepts too
    return [
        name
        for name, (inputs, outputs) in modules.items()
        if (found := stored.get(f"{name}.weight")) is None or found.shape != (outputs, inputs)
    ]


def _find(name: str, revision: str | None) -> Path | None:
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"{name}: no such folder; give --base-model FOLDER or a hub id")
    try:
        from huggingface_hub import snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(found, str):
            return Path(found).parent
        # A few megabytes that the engine will fetch anyway; without the hub nothing is known.
        fetch = partial(snapshot_download, name, revision=revision, etag_timeout=5)
        return Path(fetch(allow_patterns=SMALL_FILES))
    except HFValidationError as error:
        msg = f"{name}: neither a folder nor a hub id; give --base-model FOLDER or a hub id"
        raise InputError(msg) from error
    except (OSError, HfHubHTTPError):
        return None


def _read_architecture(config: Mapping[str, Any]) -> Architecture | None:
    def number(key: str, default: int = 0) -> int:
        value = config.get(key)
        return value if type(value) is int and 0 < value < 2**31 else default

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    sizes = (hidden, heads, number("intermediate_size"), number("num_hidden_layers"))
    if not all((*sizes, number("vocab_size"))) or sizes[3] > MAX_LAYERS:
        return None
    if any(config.get(key) for key in _NOT_DENSE):
        return None
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = (rope.get("rope_type") or rope.get("type")) if isinstance(rope, dict) else "unknown"
    return Architecture(
        model_type=str(config.get("model_type")),
        hidden=hidden,
        intermediate=sizes[2],
        layers=sizes[3],
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", max(1, hidden // heads)),
        vocab=number("vocab_size"),
        tied=config.get("tie_word_embeddings") is True,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        max_len=(number("max_position_embeddings") or None) if kind in (None, "default") else None,
    )


def _read_weights(folder: Path) -> dict[str, Tensor] | None:
    """The tensors of all weight files; None unless they are safetensors."""
    names = _weight_files(folder)
    if not names:
        if any(folder.glob("*.bin")) or "snapshots" in folder.parts:
            return None
        raise InputError(f"{folder}: has no weights (*.safetensors); is the copy complete?")
    lacking = sorted(name for name in names if not (folder / name).is_file())
    if lacking and "snapshots" in folder.parts:  # vLLM will complete the download
        return None
    if lacking:
        what = f"lacks {len(lacking)} weight files, the first {lacking[0]}"
        raise InputError(f"{folder}: {what}; copy them too")
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        tensors |= read_header(folder / name)
    return tensors


def _weight_files(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {path.name for path in folder.glob("*.safetensors")}
    held = read_json(index)
    listed = held.get("weight_map") if isinstance(held, dict) else None
    names = set(map(str, listed.values())) if isinstance(listed, dict) else set()
    if not names or any("/" in name for name in names):
        raise InputError(f"{index}: does not name files in its own folder; copy it again")
    return names
