"""Read, check, sample and hash the cases of a data set, one line in memory at a time."""

from __future__ import annotations

import hashlib
import os
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vllm_eval.errors import DatasetError
from vllm_eval.inputs.formats import Lines, open_lines
from vllm_eval.records import Case
from vllm_eval.tasks.declaration import Declaration
from vllm_eval.tasks.parse import parse_yaml

Place = tuple[Lines, int, int]
"""Data set, line number and byte offset of a case."""

_BOM = b"\xef\xbb\xbf"
"""Byte order mark, which some editors put at the start of a file."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A checked data set and the cases drawn from it."""

    lines: Lines
    declaration: Declaration
    """The task that these cases belong to."""
    sha256: str
    """Of its lines: a file and its gzip have the same."""
    total: int
    """Records in the file."""
    drawn: array[int]
    """Line number of each drawn record, in the order drawn."""
    offsets: array[int]
    """Byte offset of each drawn record."""
    version: tuple[int, int]
    """Size in bytes and time of the last change, in ns."""

    @property
    def path(self) -> Path:
        """As given."""
        return self.lines.path


def open_dataset(
    path: Path, max_samples: int | None, seed: int, declaration: Declaration
) -> Dataset:
    """Check every record of `path`, then draw `max_samples` of them (None: all).

    Draws by `random.Random(seed).shuffle` and takes the first N, as `product_owner.md` requires.
    Reads any format that `open_lines` supports.

    Raises:
        DatasetError: the file or a record cannot be used; says what to do.
        InputError: the format needs an extra that is not installed.
    """
    lines = open_lines(path, fields_of(declaration))
    digest, numbers, offsets = hashlib.sha256(), array("q"), array("q")

    def identify(number: int, line: bytes) -> str:
        return _checked_case(lines, declaration, number, line).id

    with _opened(lines) as file:
        version = _version(file)
        for _, number, offset in _records(lines, file, digest, identify):
            numbers.append(number)
            offsets.append(offset)
    if not numbers:
        raise DatasetError(f"{path}: has no records")
    order = array("q", range(len(numbers)))
    random.Random(seed).shuffle(order)
    chosen = order[:max_samples]
    drawn = array("q", (numbers[place] for place in chosen))
    at = array("q", (offsets[place] for place in chosen))
    return Dataset(lines, declaration, digest.hexdigest(), len(numbers), drawn, at, version)


@dataclass(frozen=True, slots=True)
class CaseIndex:
    """Where the cases of a data set are; their content is read when needed."""

    path: Path
    sha256: str
    places: Mapping[str, Place]
    """By concept id."""


def index_cases(path: Path, declaration: Declaration) -> CaseIndex:
    """Find every case of a data set, without checking its inputs.

    Raises:
        DatasetError: the file cannot be read, or a line is not a record or repeats an id.
    """
    lines = open_lines(path, fields_of(declaration))
    digest = hashlib.sha256()

    def identify(number: int, line: bytes) -> str:
        return _read_record(lines, declaration, number, line)[1]

    with _opened(lines) as file:
        found = _records(lines, file, digest, identify)
        places = {case: (lines, number, offset) for case, number, offset in found}
    return CaseIndex(path, digest.hexdigest(), places)


def read_cases(dataset: Dataset) -> Iterator[Case]:
    """The drawn cases, in the order drawn, read one by one.

    Raises:
        DatasetError: the file is gone, or has changed since it was checked.
    """
    with _opened(dataset.lines) as file:
        if _version(file) != dataset.version:
            msg = f"{dataset.path}: was changed during the run; restore it, then --resume the run"
            raise DatasetError(msg)
        for number, offset in zip(dataset.drawn, dataset.offsets, strict=True):
            file.seek(offset)
            yield _case(dataset.lines, dataset.declaration, number, file.readline())


def read_case(
    lines: Lines, file: BinaryIO, declaration: Declaration, number: int, offset: int
) -> Case:
    """Read and check record `number` of `lines`, open as `file`, at byte `offset`."""
    file.seek(offset)
    return _checked_case(lines, declaration, number, file.readline())


def fields_of(declaration: Declaration) -> tuple[str, ...]:
    """Every key that is read from a record, at the top level or under `input`."""
    keys = ("input", "concept_id", *declaration.id_keys, *declaration.inputs, "tier", "prompt")
    return tuple(dict.fromkeys(keys))


def _read_record(
    lines: Lines, declaration: Declaration, number: int, line: bytes
) -> tuple[dict[str, Any], str]:
    """The fields of a record, flat or under `input`, and its id."""
    try:
        record = orjson.loads(_without_mark(number, line))
    except orjson.JSONDecodeError as error:
        raise _bad_line(lines, number, f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise _bad_line(lines, number, "must be a JSON object")
    fields = record["input"] if isinstance(record.get("input"), dict) else record
    given = (fields.get(key) for key in ("concept_id", *declaration.id_keys))
    known = next((str(found) for found in given if found not in (None, "")), f"sample-{number}")
    return {"prompt": record.get("prompt")} | fields, known


@contextmanager
def _opened(lines: Lines) -> Iterator[BinaryIO]:
    try:
        with lines.file.open("rb") as file:
            yield file
    except OSError as error:
        msg = f"{lines.path}: cannot read the data set: {error.strerror}; give --dataset-path"
        raise DatasetError(msg) from error


def _records(
    lines: Lines, file: BinaryIO, digest: hashlib._Hash, identify: Callable[[int, bytes], str]
) -> Iterator[tuple[str, int, int]]:
    """Id, line number and byte offset of each record; every line goes into `digest`."""
    seen: dict[str, int] = {}
    offset = 0
    for number, line in enumerate(file, start=1):
        digest.update(line)
        if _without_mark(number, line).strip():
            identifier = identify(number, line)
            if (first := seen.setdefault(identifier, number)) != number:
                taken = f"id {identifier!r} is taken by {lines.unit} {first}"
                raise _bad_line(lines, number, taken)
            yield identifier, number, offset
        offset += len(line)


def _without_mark(number: int, line: bytes) -> bytes:
    return line.removeprefix(_BOM) if number == 1 else line


def _checked_case(lines: Lines, declaration: Declaration, number: int, line: bytes) -> Case:
    case = _case(lines, declaration, number, line)
    for name, about in declaration.inputs.items():
        parsed = parse_yaml(case.inputs[name]) if about.yaml else None
        if parsed is not None and parsed.error is not None:
            place = f" at line {parsed.line} of the text" if parsed.line else ""
            raise _bad_line(lines, number, f"{name} is not valid YAML{place}: {parsed.error}")
    return case


def _case(lines: Lines, declaration: Declaration, number: int, line: bytes) -> Case:
    """The case, without parsing its YAML, which would take most of the time."""
    texts, identifier = _read_record(lines, declaration, number, line)
    for key, about in declaration.inputs.items():
        if about.required and texts.get(key) is None:
            raise _bad_line(lines, number, f"lacks {key!r}")
    for key in (*declaration.inputs, "tier", "prompt"):
        if not isinstance(texts.get(key), str | None):
            raise _bad_line(lines, number, f"{key!r} must be a string")
    return Case(
        id=identifier,
        line=number,
        tier=texts.get("tier"),
        inputs={key: texts.get(key) or "" for key in declaration.inputs},
        prompt=texts.get("prompt") or None,
    )


def _version(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _bad_line(lines: Lines, number: int, what: str) -> DatasetError:
    return DatasetError(f"{lines.at(number)}: {what}; correct or remove this {lines.unit}")
