"""A model made of its `config.json` alone, and an adapter that fits it: shapes without a meaning.

The adapter's values are random and small. They are written straight into the safetensors format
(a length, a JSON header, the bytes), which needs no library and no copy in memory.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import ConfigError
from vllm_eval.inputs.adapters import CONFIG_FILE, WEIGHTS_FILE
from vllm_eval.inputs.base_model import linear_modules, read_base

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SIGNS = bytes(0x3C | (number & 0x80) for number in range(256))
"""Upper bytes of bfloat16 numbers from 2**-7 to 2**-5, either sign."""


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
    header, at = {}, 0
    shapes = list(_tensors(modules, rank))
    for name, rows, columns in shapes:
        end = at + 2 * rows * columns
        header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    source = random.Random(rank)
    with (folder / WEIGHTS_FILE).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _, rows, columns in shapes:
            file.write(_numbers(source, rows * columns))


def _tensors(modules: dict[str, tuple[int, int]], rank: int) -> Iterator[tuple[str, int, int]]:
    for name, (inputs, outputs) in modules.items():
        yield f"base_model.model.{name}.lora_A.weight", rank, inputs
        yield f"base_model.model.{name}.lora_B.weight", outputs, rank


def _numbers(source: random.Random, count: int) -> bytes:
    """So many small bfloat16 numbers, the lower byte of each first."""
    data = bytearray(2 * count)
    data[0::2] = source.randbytes(count)
    data[1::2] = source.randbytes(count).translate(SIGNS)
    return bytes(data)
