"""JSON files and safetensors headers of models, which may come from anywhere.

No tensor is read, and every number is checked before it is used.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.errors import InputError

MAX_JSON_BYTES = 50_000_000
MAX_REASON = 200
"""Characters kept of a message from safetensors, which may quote a hostile name."""
POINTER = b"version https://git-lfs"
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    """As safetensors names it: `BF16`, `F8_E4M3`, `F4`."""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file. The first number in a type's name is its bits; `BOOL` has 8."""
        bits = re.search(r"\d+", self.dtype)
        return self.count * (int(bits[0]) if bits else 8) // 8


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; only the header is read.

    Raises:
        InputError: the file is truncated, damaged or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            parts = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118  no dict
            return {name: Tensor(one.get_dtype(), tuple(one.get_shape())) for name, one in parts}
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror or error}; copy or save it again"
        raise InputError(msg) from error
    except SafetensorError as error:
        refuse_pointer(path)
        reason = str(error).removeprefix("Error while deserializing header: ")[:MAX_REASON]
        msg = f"{path}: is truncated, damaged or not a safetensors file ({reason})"
        raise InputError(f"{msg}; copy or save it again") from error


def read_json(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """The content of a JSON file of reasonable size.

    Raises:
        InputError: the file is missing, too large, or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            msg = f"{path}: is larger than {MAX_JSON_BYTES} bytes; is it the right file?"
            raise InputError(msg)
        return orjson.loads(path.read_bytes())
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}; is the folder complete?"
        raise InputError(msg) from error
    except orjson.JSONDecodeError as error:
        refuse_pointer(path)
        if path.read_bytes()[:3].startswith(MARKS):
            what = "begins with a byte order mark, which JSON must not"
            raise InputError(f"{path}: {what}; save it as UTF-8 without one") from error
        raise InputError(f"{path}: not readable as JSON: {error}; copy it again") from error


def refuse_pointer(path: Path) -> None:
    """InputError if Git LFS has left its pointer in the file's place."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            what = "is a pointer of Git LFS, not the file itself"
            raise InputError(f"{path}: {what}; run git lfs pull where it was cloned")
