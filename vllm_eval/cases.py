"""Read, check, sample and hash the cases of a data set, one line in memory at a time."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.errors import DatasetError
from vllm_eval.records import Case
from vllm_eval.tasks.yaml_blocks import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_BOM = b"\xef\xbb\xbf"
"""Byte order mark: some editors put it at the start of a file; it belongs to no record."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A checked data set and the cases drawn from it."""

    path: Path
    sha256: str
    total: int
    """Records in the file."""
    drawn: tuple[tuple[int, int], ...]
    """Line number and byte offset of each drawn record, in the order drawn."""
    version: tuple[int, int]
    """Size in bytes and time of the last change, in ns."""


def open_dataset(path: Path, max_samples: int | None, seed: int) -> Dataset:
    """Check every line of `path`, then draw `max_samples` records (all where None).

    Drawing is `random.Random(seed).shuffle` and the first N, as `product_owner.md` fixes it.

    Raises:
        DatasetError: file or line that cannot be used, with what to do.
    """
    digest = hashlib.sha256()
    records: list[tuple[int, int]] = []
    seen: dict[str, int] = {}
    offset = 0
    try:
        with path.open("rb") as file:
            version = _version(file)
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if holds_record(number, line):
                    add_id(path, number, _parse_line(path, number, line).id, seen)
                    records.append((number, offset))
                offset += len(line)
    except OSError as error:
        msg = f"{path}: cannot read the data set: {error.strerror}; give --dataset-path"
        raise DatasetError(msg) from error
    if not records:
        msg = f"{path}: holds no record"
        raise DatasetError(msg)
    random.Random(seed).shuffle(records)
    return Dataset(path, digest.hexdigest(), len(records), tuple(records[:max_samples]), version)


def read_cases(dataset: Dataset) -> Iterator[Case]:
    """The drawn cases, in the order drawn, read again from the file one by one.

    Raises:
        DatasetError: the file is gone, or was changed since it was checked.
    """
    try:
        file = dataset.path.open("rb")
    except OSError as error:
        msg = f"{dataset.path}: cannot read the data set any more: {error.strerror}"
        raise DatasetError(msg) from error
    with file:
        if _version(file) != dataset.version:
            msg = f"{dataset.path}: was changed during the run; put it back, then --resume the run"
            raise DatasetError(msg)
        for number, offset in dataset.drawn:
            yield read_case(dataset.path, file, number, offset)


def read_case(path: Path, file: BinaryIO, number: int, offset: int) -> Case:
    """The case in line `number` of `path`, opened as `file`, which begins at `offset`.

    Raises:
        DatasetError: the line cannot be used.
    """
    file.seek(offset)
    return _parse_line(path, number, file.readline())


def _version(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def holds_record(number: int, line: bytes) -> bool:
    """Whether line `number` of a data set is more than white space."""
    return bool(_without_mark(number, line).strip())


def read_record(path: Path, number: int, line: bytes) -> tuple[dict[str, Any], str]:
    """The fields of a record, flat or under `input`, and its concept id.

    Raises:
        DatasetError: the line is no JSON object.
    """
    try:
        record = orjson.loads(_without_mark(number, line))
    except orjson.JSONDecodeError as error:
        raise _bad_line(path, number, f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise _bad_line(path, number, "must be a JSON object")
    fields = record["input"] if isinstance(record.get("input"), dict) else record
    identifier = fields.get("concept_id")
    known = f"sample-{number}" if identifier in (None, "") else str(identifier)
    return {"prompt": record.get("prompt")} | fields, known


def add_id(path: Path, number: int, identifier: str, seen: dict[str, int]) -> None:
    """Note in `seen` the line of an id.

    Raises:
        DatasetError: another line has it.
    """
    if identifier in seen:
        raise _bad_line(path, number, f"id {identifier!r} is taken by line {seen[identifier]}")
    seen[identifier] = number


def _without_mark(number: int, line: bytes) -> bytes:
    return line.removeprefix(_BOM) if number == 1 else line


def _parse_line(path: Path, number: int, line: bytes) -> Case:
    texts, identifier = read_record(path, number, line)
    for key in ("concept", "requirements_yaml"):
        if texts.get(key) is None:
            raise _bad_line(path, number, f"lacks {key!r}")
    for key in ("concept", "requirements_yaml", "tier", "prompt"):
        if not isinstance(texts.get(key), str | None):
            raise _bad_line(path, number, f"{key!r} must be a string")
    requirements = parse_yaml(texts["requirements_yaml"])
    if requirements.error is not None:
        place = f" at its line {requirements.line}" if requirements.line else ""
        message = f"requirements_yaml is not valid YAML{place}: {requirements.error}"
        raise _bad_line(path, number, message)
    return Case(
        id=identifier,
        line=number,
        tier=texts.get("tier"),
        concept=texts["concept"],
        requirements_yaml=texts["requirements_yaml"],
        prompt=texts.get("prompt") or None,
    )


def _bad_line(path: Path, number: int, what: str) -> DatasetError:
    return DatasetError(f"{path}, line {number}: {what}; mend or remove this line")
