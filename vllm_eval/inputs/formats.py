"""Data sets in other formats: each is streamed once into a file of JSON lines."""

from __future__ import annotations

import gzip
import re
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from vllm_eval.errors import DatasetError, EvalError, InputError, foreign

HUB = "hf:"
"""Prefix of a data set on the Hugging Face hub: `hf:NAME`, or `hf:NAME:SPLIT`."""
SAVED = ("state.json", "dataset_dict.json")
"""Files that mark a folder as a saved data set, or one with several splits."""
BATCH_ROWS = 256
HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
"""What may follow the prefix; `datasets` would take anything else for a folder or a script."""
MAX_LINE = 2**24
"""Bytes; a line of a compressed file could fill the memory."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Lines:
    """A data set as a file with one JSON object per line."""

    path: Path
    """As given, for messages."""
    file: Path
    """Where the lines are; a temporary copy lives as long as this object."""
    unit: str = "line"
    """What the data set calls a record: `line` or `row`."""

    def at(self, number: int) -> str:
        """A record's place, for messages."""
        return f"{self.path}, {self.unit} {number}"


def open_lines(path: Path, fields: Sequence[str]) -> Lines:
    """Open JSON lines in place; copy gzip, Parquet and Hugging Face data sets to such a file.

    `path` is a file of JSON lines, `*.gz` of such a file, `*.parquet`, a folder written by
    `Dataset.save_to_disk`, or `hf:NAME[:SPLIT]`. The copy is a temporary file (`TMPDIR`) that holds
    only `fields` and is deleted with the result. Later changes to the data set do not reach it.

    Raises:
        DatasetError: it cannot be read; names file and row.
        InputError: its format needs an extra that is not installed.
    """
    if str(path).startswith(HUB):
        return _copy(path, lambda name: _hub_rows(name, fields), "row")
    if any((path / name).is_file() for name in SAVED):
        return _copy(path, lambda name: _folder_rows(name, fields), "row")
    if path.suffix == ".parquet":
        return _copy(path, lambda name: _parquet_rows(name, fields), "row")
    if path.suffix == ".gz":
        return _copy(path, _gzip_lines, "line")
    return Lines(path, path)


def _copy(path: Path, read: Callable[[Path], Iterable[bytes]], unit: str) -> Lines:
    done = 0
    with tempfile.NamedTemporaryFile(prefix="vllm_eval-", suffix=".jsonl", delete=False) as out:
        lines = Lines(path, Path(out.name), unit)
        weakref.finalize(lines, lines.file.unlink, missing_ok=True)

        def bad(error: Exception) -> DatasetError:
            if isinstance(error, OSError):
                msg = f"{path}: cannot read the data set: {error.strerror or error}"
                return DatasetError(f"{msg}; after {unit} {done}; give --dataset-path")
            return DatasetError(f"{lines.at(done + 1)}: the data set is damaged here: {error}")

        with foreign(bad):
            for line in read(path):
                _write(out, line)
                done += 1
    return lines


def _write(out: IO[bytes], line: bytes) -> None:
    try:
        out.write(line)
    except OSError as error:
        msg = f"{out.name}: cannot spool the data set: {error.strerror}; make room or set TMPDIR"
        raise EvalError(msg) from error


def _gzip_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"a line is longer than {MAX_LINE:,} bytes")
            yield line


def _parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[bytes]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _lacking(path, "parquet") from error
    with parquet.ParquetFile(path) as table:
        columns = [name for name in fields if name in table.schema_arrow.names]
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            yield from map(_line, batch.to_pylist())


def _folder_rows(path: Path, fields: Sequence[str]) -> Iterator[bytes]:
    datasets = _import_datasets(path)
    found = datasets.load_from_disk(path)
    if isinstance(found, datasets.DatasetDict):
        raise _several(path, [str(path / name) for name in found])
    yield from _rows(found, fields)


def _hub_rows(path: Path, fields: Sequence[str]) -> Iterator[bytes]:
    datasets = _import_datasets(path)
    name, _, split = str(path).removeprefix(HUB).partition(":")
    if not re.fullmatch(HUB_NAME, name):
        raise DatasetError(f"{path}: {name!r} is not OWNER/NAME of a data set on the hub")
    found = datasets.load_dataset(name, split=split or None, streaming=True)
    if isinstance(found, dict):
        if len(found) > 1:
            raise _several(path, [f"{HUB}{name}:{one}" for one in found])
        (found,) = found.values()
    yield from _rows(found, fields)


def _several(path: Path, splits: list[str]) -> DatasetError:
    listed = ", ".join(splits)
    return DatasetError(f"{path}: holds several splits; give --dataset-path one of {listed}")


def _import_datasets(path: Path) -> Any:  # noqa: ANN401  an untyped module
    try:
        import datasets
    except ImportError as error:
        raise _lacking(path, "datasets") from error
    return datasets


def _rows(table: Any, fields: Sequence[str]) -> Iterator[bytes]:  # noqa: ANN401  whole or streamed
    columns = table.column_names
    if columns is not None:  # a stream may not know its columns before the first row
        table = table.select_columns([name for name in fields if name in columns])
    for row in table:
        yield _line({name: row[name] for name in fields if name in row})


def _line(row: dict[str, Any]) -> bytes:
    """Bytes are decoded as text; anything else that JSON cannot hold is an error."""
    return orjson.dumps(row, default=_text, option=orjson.OPT_APPEND_NEWLINE)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise ValueError(f"holds a {type(value).__name__}, which is not text")


def _lacking(path: Path, extra: str) -> InputError:
    return InputError(f"{path}: its format needs an extra: pip install 'vllm_eval[{extra}]'")
