"""What one adapter's folder says, read without loading weights, and what arms share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.errors import AdapterError, ConfigError, InputError
from vllm_eval.inputs.safetensors_headers import read_json
from vllm_eval.records import CONSTRAINED, Adapter, Arm

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
SLOT_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""`MaxLoRARanks` of vllm/config/lora.py; any other `max_lora_rank` is refused."""
PICKLES = ("adapter_model.bin", "adapter_model.pt")
MLX = ("adapters.safetensors", "adapters.npz")
MLX_TODO = "fuse it into its base with mlx_lm.fuse, and serve that"


def constrain_arms(arms: Sequence[Arm], config: Config, grammar: str) -> tuple[Arm, ...]:
    """The arms with `config.constrain` applied: each constrained by `grammar`, or with a variant.

    Raises:
        ConfigError: the engine cannot constrain answers, or `ignore_eos` forbids them to end.
    """
    if config.constrain == "none":
        return tuple(arms)
    if config.answering == "transformers":
        msg = "constrain: the transformers engine decodes freely; give --engine vllm"
        raise ConfigError(f"{msg}, or leave out constrain")
    if config.ignore_eos:
        raise ConfigError("constrain: an answer then ends when complete; leave out ignore_eos")
    if config.constrain == "only":
        return tuple(replace(arm, grammar=grammar) for arm in arms)
    variant = partial(replace, grammar=grammar)
    return (*arms, *(variant(a, name=a.name + CONSTRAINED, variant_of=a.name) for a in arms))


def loaded_adapters(arms: Sequence[Arm]) -> list[Adapter]:
    """The adapters that an engine holds for these arms, each once."""
    return [arm.adapter for arm in arms if arm.adapter and arm.variant_of is None]


def base_of(arms: Sequence[Arm], given: str | None) -> str:
    """The base model all arms share: `given`, or what the adapters were trained on.

    Raises:
        AdapterError: no base is known, or the adapters name different ones.
    """
    if given is not None:
        return _local_or_hub(given)
    bases = {arm.adapter.base_model for arm in arms if arm.adapter}
    if len(bases) == 1 and (base := bases.pop()):
        return _local_or_hub(base)
    if not any(arm.adapter and arm.adapter.base_model for arm in arms):
        raise AdapterError("base_model: no adapter names its base; give --base-model")
    said = "; ".join(f"{a.name}: {a.adapter.base_model}" for a in arms if a.adapter)
    raise AdapterError(f"base_model: the adapters do not agree on one ({said}); give --base-model")


def read_adapter(name: str, folder: Path) -> Adapter:
    """Read an adapter's folder; its weights are hashed, not loaded.

    Raises:
        AdapterError: a file is missing or unreadable, or it is not a LoRA in safetensors.
    """
    fields, weights = read_settings(folder), folder / WEIGHTS_FILE
    if not weights.is_file():
        raise _no_weights(folder)
    pattern = fields.get("rank_pattern") or {}
    ranks = [fields.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        msg = f"{folder / CONFIG_FILE}: r and rank_pattern must be positive whole numbers"
        raise AdapterError(f"{msg}; save it again with PEFT")
    base = fields.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise AdapterError(f"{folder / CONFIG_FILE}: base_model_name_or_path must be a string")
    try:
        content = hashlib.sha256(_ordered(fields))
        files = hashlib.sha256((folder / CONFIG_FILE).read_bytes())
        with weights.open("rb") as file:
            while chunk := file.read(2**20):
                files.update(chunk)
                content.update(chunk)
    except OSError as error:
        msg = f"adapter {folder}: cannot be read: {error.strerror}; copy it again"
        raise AdapterError(msg) from error
    except RecursionError as error:
        msg = f"{folder / CONFIG_FILE}: is nested too deeply; save it again with PEFT"
        raise AdapterError(msg) from error
    return Adapter(name, folder, base or None, max(ranks), files.hexdigest(), content.hexdigest())


def _ordered(fields: Mapping[str, Any]) -> bytes:
    """The settings as one text: PEFT writes sets, such as `target_modules`, in any order."""
    lists = {key: sorted(map(str, value)) for key, value in fields.items() if type(value) is list}
    return json.dumps({**fields, **lists}, sort_keys=True).encode()


def slot_rank(rank: int) -> int:
    """The smallest slot rank that can hold an adapter of `rank`; `rank` itself if none can."""
    return next((allowed for allowed in SLOT_RANKS if allowed >= rank), rank)


def read_settings(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, as PEFT wrote it.

    Raises:
        AdapterError: it is missing, unreadable, or not that of a LoRA.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"adapter {folder}: {_no_settings(folder)}")
    try:
        fields = read_json(path)
    except InputError as error:
        raise AdapterError(str(error)) from error
    if isinstance(fields, dict) and "lora_parameters" in fields and "peft_type" not in fields:
        raise AdapterError(
            f"{path}: was written by MLX, for tensors that vLLM cannot read; {MLX_TODO}"
        )
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type must be LORA; other adapters cannot be served")
    return fields


def _no_settings(folder: Path) -> str:
    """What is in a folder without a configuration, and what to do."""
    if (folder / CONFIG_FILE).is_symlink():
        return f"{CONFIG_FILE} is a link to nothing; copy the file itself"
    if gguf := next(folder.glob("*.gguf"), None):
        what = f"has no {CONFIG_FILE}, but {gguf.name}, which is of llama.cpp"
        return f"{what}; give the folder that PEFT's save_pretrained wrote"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        what = f"has no {CONFIG_FILE}, but config.json: a whole model, perhaps a merged one"
        return f"{what}; give the folder of its adapter, or it as --base-model"
    return f"has no {CONFIG_FILE}; is this a PEFT adapter's folder?"


def _no_weights(folder: Path) -> AdapterError:
    if (folder / WEIGHTS_FILE).is_symlink():
        msg = f"adapter {folder}: {WEIGHTS_FILE} is a link to nothing; copy the file itself"
        return AdapterError(msg)
    if pickle := next((name for name in PICKLES if (folder / name).is_file()), None):
        msg = f"adapter {folder}: {pickle} is a pickle, which can run code when it is opened"
        todo = "load it where it was made and save it again with safe_serialization=True"
        return AdapterError(f"{msg}; {todo}")
    if part := next(folder.glob("*-of-*.safetensors"), None):
        msg = f"adapter {folder}: is split into files like {part.name}, which vLLM does not read"
        return AdapterError(f"{msg}; join them, as docs/adapters.md shows")
    if mlx := next((name for name in MLX if (folder / name).is_file()), None):
        return AdapterError(
            f"adapter {folder}: {mlx} is of MLX, which vLLM cannot read; {MLX_TODO}"
        )
    msg = f"adapter {folder}: has no {WEIGHTS_FILE}; save it with safe_serialization=True"
    return AdapterError(msg)


def _local_or_hub(model: str) -> str:
    """An absolute path if the folder exists, because a relative one would look like a hub id."""
    path = resolve_path(model)
    return str(path.resolve()) if path.is_dir() else model
