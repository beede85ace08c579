"""A run's outcomes as one Parquet table, for tools that take millions of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.errors import InputError
from vllm_eval.records import Attempt
from vllm_eval.store import manifest
from vllm_eval.store.folder import JOURNAL, written_whole
from vllm_eval.store.journal import read_journal

if TYPE_CHECKING:
    import pyarrow as pa


COLUMNS = tuple(field.name for field in fields(Attempt))
"""The columns of every table of outcomes, in their order."""
GROUP_ROWS = 4_096
"""Rows in memory at a time: one row group of the file."""
TEXT = (
    *("arm", "concept_id", "tier", "status", "reason", "error", "block", "key"),
    *("finish_reason", "parts", "raw_response"),
)
WHOLE = (
    *("sample", "attempt", "line", "column", "seed"),
    *("prompt_tokens", "output_tokens", "cached_tokens", "engine_errors"),
)
REAL = ("score", "queued_s", "ttft_s", "total_s", "finished_at")
YES_NO = ("final", "truncated", "reused")


def export_run(folder: Path, path: Path, *, attempts: bool = False) -> int:
    """Write every outcome of a run to `path`, whole or not at all, in the journal's order.

    The columns are the keys of the journal's lines; `attempt` is the number of attempts that an
    outcome took, `engine_errors` how many of them an engine error ended, and `parts` the points of
    each part of the metric as JSON. With `attempts` every attempt is written; `final` marks the
    outcomes. Returns the number of rows.

    Raises:
        InputError: the folder holds no run, or pyarrow is not installed.
    """
    pa = _import_pyarrow("export")
    manifest.read(folder)
    if path.resolve().parent == folder.resolve() and path.suffix != ".parquet":
        raise InputError(f"{path}: may be a file of the run; name one that ends in .parquet")
    schema = _schema(pa)
    rows, count = read_rows(folder, attempts=attempts), 0
    with (
        written_whole(path) as out,
        pa.parquet.ParquetWriter(out, schema, compression="zstd") as table,
    ):
        while group := list(islice(rows, GROUP_ROWS)):
            table.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
    return count


def read_table(folder: Path, *, attempts: bool = False) -> pa.Table:
    """What `export_run` would write, in memory.

    Raises:
        InputError: pyarrow is not installed.
    """
    pa = _import_pyarrow("to_arrow")
    return pa.Table.from_pylist(list(read_rows(folder, attempts=attempts)), _schema(pa))


def read_rows(folder: Path, *, attempts: bool) -> Iterator[dict[str, Any]]:
    """The lines of a run's journal: those of outcomes, or of all `attempts`."""
    for _, attempt in read_journal(folder / JOURNAL):
        if attempts or attempt.final:
            yield asdict(attempt) | {"parts": orjson.dumps(attempt.parts).decode()}


def _import_pyarrow(wanted_by: str) -> Any:  # noqa: ANN401  a module
    try:
        import pyarrow.parquet
    except ImportError as error:
        msg = f"{wanted_by}: pyarrow is not installed; run: pip install 'vllm_eval[parquet]'"
        raise InputError(msg) from error
    return pyarrow


def _schema(pa: Any) -> pa.Schema:  # noqa: ANN401  a module
    groups = ((TEXT, pa.string()), (WHOLE, pa.int64()), (REAL, pa.float64()), (YES_NO, pa.bool_()))
    kinds = {name: kind for names, kind in groups for name in names}
    return pa.schema([(name, kinds[name]) for name in COLUMNS])
