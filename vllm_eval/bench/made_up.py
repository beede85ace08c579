"""A model made of its `config.json` alone, and an adapter that fits it: shapes without a meaning.

The adapter's values are random and small.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import ConfigError
from vllm_eval.inputs.adapters import CONFIG_FILE, WEIGHTS_FILE
from vllm_eval.inputs.base_model import linear_modules, read_base

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Folders for a base and an adapter without a meaning."""

    base: Path
    adapter: Path


def make_up(base_model: str | None, rank: int, folder: Path) -> MadeUp:
    """A base folder with a tokenizer, and an adapter of `rank` on all its linear modules.

    Args:
        base_model: folder with at least a `config.json`; where it has no tokenizer, a copy with
            the demo's stands in for it.
        rank: of the adapter.
        folder: where both are made; it exists.

    Raises:
        ConfigError: there is no such folder, or its configuration names no known modules.
    """
    source = resolve_path(base_model or "")
    if not base_model or not (source / "config.json").is_file():
        msg = f"base_model: --load-format dummy needs a folder with a config.json, not {source}"
        raise ConfigError(msg)
    base = source.resolve()
    if not (source / TOKENIZER[0]).is_file():
        base = folder / "base"
        base.mkdir(parents=True)
        for path in source.glob("*config.json"):
            shutil.copy(path, base)
        for name in TOKENIZER:
            shutil.copy(resolve_path(f"package:demo/base/{name}"), base)
    modules = linear_modules(read_base(str(base), weights=False))
    if modules is None:
        msg = f"base_model: {source / 'config.json'} is of no model whose modules are known here"
        raise ConfigError(msg)
    adapter = folder / f"made_up_rank_{rank}"
    _write_adapter(adapter, modules, rank, str(base))
    return MadeUp(base, adapter)


def _write_adapter(folder: Path, modules: dict[str, tuple[int, int]], rank: int, base: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "bias": "none",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    source = np.random.default_rng(rank)
    tensors = {
        name: _numbers(source, rows, columns) for name, rows, columns in _tensors(modules, rank)
    }
    save_file(tensors, folder / WEIGHTS_FILE)


def _tensors(modules: dict[str, tuple[int, int]], rank: int) -> Iterator[tuple[str, int, int]]:
    for name, (inputs, outputs) in modules.items():
        yield f"base_model.model.{name}.lora_A.weight", rank, inputs
        yield f"base_model.model.{name}.lora_B.weight", outputs, rank


def _numbers(source: Any, rows: int, columns: int) -> Any:
    """Float16 from 2**-7 to 2**-5, either sign."""
    numbers = source.uniform(2**-7, 2**-5, (rows, columns))
    return (numbers * source.choice((-1, 1), (rows, columns))).astype("float16")
