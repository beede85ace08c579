"""The values of single tensors in safetensors files, read in pieces."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.errors import InputError
from vllm_eval.inputs.safetensors_headers import FLOATS, Tensor, read_header

PIECE = 2**20
"""Values compared at a time."""
META = "__metadata__"
"""The entry of a header that is no tensor."""
_BITS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),  # has no infinity, and one NaN of either sign
}
"""How each type is stored, and the bits that are all set in what is no finite number."""
_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def same_values(file: Path, name: str, other_file: Path, other_name: str) -> bool:
    """Whether two tensors are equal once the one is rounded to the other's type.

    A copy that was saved in 16 bits counts as its 32-bit original.

    Raises:
        InputError: a file cannot be read.
    """
    one, other = read_header(file)[name], read_header(other_file)[other_name]
    if one.shape != other.shape or not {one.dtype, other.dtype} <= FLOATS:
        return False
    import numpy as np

    left = _stored(file, _spans(file)[name], _STORED[one.dtype])
    right = _stored(other_file, _spans(other_file)[other_name], _STORED[other.dtype])
    down = up = True
    for start in range(0, one.count, PIECE):
        pieces = [values[start : start + PIECE] for values in (left, right)]
        if one.dtype == other.dtype:
            if not np.array_equal(*pieces):
                return False
            continue
        a, b = map(_widened, pieces)
        down = down and np.array_equal(_rounded(a, other.dtype), b)
        up = up and np.array_equal(a, _rounded(b, one.dtype))
        if not down and not up:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Values:
    """What the values of a file's tensors are, where they are floats."""

    not_finite: Sequence[str]
    """Names of tensors with NaN or infinity."""
    zero: frozenset[str]
    """Names of tensors of nothing but zeros."""


def survey(file: Path, header: Mapping[str, Tensor]) -> Values:
    """Read all floats of a file whose header has been read.

    Raises:
        InputError: the file cannot be read.
    """
    not_finite, zero = [], set()
    spans = _spans(file)
    for name, tensor in header.items():
        if tensor.dtype not in _BITS or not tensor.count:
            continue
        bits, exponent = _BITS[tensor.dtype]
        finite, empty = _kinds(_stored(file, spans[name], bits), exponent)
        if not finite:
            not_finite.append(name)
        if empty:
            zero.add(name)
    return Values(not_finite, frozenset(zero))


def _kinds(bits: Any, exponent: int) -> tuple[bool, bool]:
    """Whether all values are finite, and whether all are zero; a piece at a time."""
    import numpy as np

    exponent, size = bits.dtype.type(exponent), bits.dtype.itemsize * 8 - 1
    rest = bits.dtype.type((1 << size) - 1)  # all but the sign
    finite = empty = True
    for start in range(0, len(bits), PIECE):
        piece = np.asarray(bits[start : start + PIECE])
        finite = finite and not ((piece & exponent) == exponent).any()
        empty = empty and not (piece & rest).any()
    return finite, empty


def _spans(file: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor begins and ends in a file whose header `read_header` has checked."""
    try:
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            entries = orjson.loads(opened.read(length))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; copy it again") from error
    found = {name: entry["data_offsets"] for name, entry in entries.items() if name != META}
    return {name: (8 + length + start, 8 + length + end) for name, (start, end) in found.items()}


def _stored(file: Path, span: tuple[int, int], dtype: str) -> Any:
    """The values in a part of the file, as NumPy's `dtype`."""
    import numpy as np

    stored = np.dtype(dtype)
    start, end = span
    count = (end - start) // stored.itemsize
    return np.memmap(file, stored, "r", start, (count,)) if count else np.zeros(0, stored)


def _widened(values: Any) -> Any:
    import numpy as np

    if values.dtype == np.uint16:  # bfloat16: the upper half of a 32-bit float
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values if values.dtype == np.float64 else values.astype(np.float32)


def _rounded(values: Any, dtype: str) -> Any:
    """The values as `dtype` can hold them, to the nearest, ties to even."""
    import numpy as np

    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return _widened(values.astype(_STORED[dtype]))
    bits = values.astype(np.float32).view(np.uint32)
    even = (bits >> 16) & 1
    return ((bits + 0x7FFF + even) & 0xFFFF0000).view(np.float32)
