"""JSON files and safetensors headers of models, which may come from anywhere.

Every number in them is checked before it is believed, and no tensor is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
MAX_JSON_BYTES = 50_000_000
MAX_DIMENSIONS = 16
_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "U16 I16 F16 BF16",
    32: "U32 I32 F32",
    64: "U64 I64 F64 C64",
}
BITS = {name: bits for bits, names in _BY_BITS.items() for name in names.split()}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.count * BITS[self.dtype] // 8


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; nothing but the header is read.

    Raises:
        InputError: the file is cut short, or no safetensors file at all.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _broken(path, "is cut short, or no safetensors file")
            header = orjson.loads(file.read(length))
    except OSError as error:
        raise _broken(path, f"cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise _broken(path, "has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "has a header that is no object")
    header.pop("__metadata__", None)
    tensors, ends = {}, []
    for name, entry in header.items():
        tensor, span = _read_tensor(path, name, entry)
        tensors[name] = tensor
        ends.append(span)
    at = 0
    for begin, end in sorted(ends):
        if begin != at:
            raise _broken(path, "has tensors that overlap or leave gaps")
        at = end
    if at != size - 8 - length:
        raise _broken(path, f"should have {at} bytes of tensors and has {size - 8 - length}")
    return tensors


def read_json(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """What a JSON file of reasonable size holds.

    Raises:
        InputError: the file is missing, too large, or no JSON.
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
        msg = f"{path}: not readable as JSON: {error}; copy it again"
        raise InputError(msg) from error


def _read_tensor(path: Path, name: str, entry: object) -> tuple[Tensor, tuple[int, int]]:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape = fields.get("dtype"), _naturals(fields.get("shape"))
    span = _naturals(fields.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS or shape is None or len(span or ()) != 2:
        raise _broken(path, f"describes tensor {name[:100]!r} in a way nobody can read")
    tensor = Tensor(dtype, shape)
    begin, end = span or (0, 0)
    if end - begin != tensor.size:
        raise _broken(path, f"has tensor {name[:100]!r} with more or fewer bytes than its shape")
    return tensor, (begin, end)


def _naturals(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(item) is int and item >= 0 for item in value) else None


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}; copy or save it again")
