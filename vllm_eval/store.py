"""The run folder: an append-only journal of attempts, and the files made from it at the end."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.errors import EvalError, InputError
from vllm_eval.records import Attempt, Begun, Key, Ledger, Outcome, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO, Self

    from vllm_eval.stats import Summary

SCHEMA_VERSION = 1
JOURNAL = "attempts.jsonl"
ENGINE_LOG = "engine.log"
METRICS = ("mean", "std", "min", "max", "mean_all")
CASE_KEYS = ("arm", "concept_id", "tier")
"""Keys of an attempt that its case states once."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one run's files lie."""

    path: Path
    timestamp: str
    """When the run began, as it stands in file names."""

    @property
    def journal(self) -> Path:
        """Every attempt, in the order they finished."""
        return self.path / JOURNAL

    @property
    def engine_log(self) -> Path:
        """What the engine and its processes printed."""
        return self.path / ENGINE_LOG


class Journal:
    """Appends attempts; what `append` returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        """Open or create the file at `path` for appending."""
        self._file: BinaryIO = path.open("ab")

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Write each attempt as one line.

        Raises:
            EvalError: the disk refuses; what was written before is intact.
        """
        if not attempts:
            return
        try:
            self._file.write(b"".join(_dump(asdict(attempt)) for attempt in attempts))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            msg = f"{self._file.name}: cannot write: {error.strerror}; free space and run again"
            raise EvalError(msg) from error

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()


def create_run(output_dir: Path, tag: str, now: datetime) -> RunFolder:
    """Make a new folder `<tag>_<timestamp>`, never one that is there already.

    Raises:
        InputError: the output folder cannot be written.
    """
    timestamp = now.strftime("%Y%m%d-%H%M%S")
    name = f"{_UNSAFE.sub('_', tag)}_{timestamp}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        path = output_dir / (name + suffix)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            msg = f"output_dir: cannot make {path}: {error.strerror}; give --output-dir"
            raise InputError(msg) from error
        return RunFolder(path, timestamp)
    msg = f"output_dir: {output_dir / name} and its ninety-nine neighbours exist already"
    raise InputError(msg)


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write a small JSON file, whole or not at all."""
    return write_text(path, orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a small text file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path


def read_journal(path: Path) -> Iterator[tuple[int, Attempt]]:
    """Every whole line's byte offset and attempt; a torn last line is passed over."""
    names = {field.name for field in fields(Attempt)}
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                row = orjson.loads(line)
                yield offset, Attempt(**{name: row[name] for name in names})
            offset += len(line)


def read_outcomes(path: Path) -> list[Outcome]:
    """One outcome for each arm, case and sample that the journal has brought to an end."""
    first_valid: dict[Key, bool] = {}
    outcomes = []
    for _, attempt in read_journal(path):
        key = (attempt.arm, attempt.concept_id, attempt.sample)
        first = first_valid.setdefault(key, attempt.status == "success")
        if attempt.final:
            outcomes.append(
                Outcome(
                    arm=attempt.arm,
                    concept_id=attempt.concept_id,
                    tier=attempt.tier,
                    sample=attempt.sample,
                    status=attempt.status,
                    reason=attempt.reason,
                    score=attempt.score,
                    attempts=attempt.attempt,
                    first_valid=first,
                )
            )
    return outcomes


def read_ledger(path: Path) -> Ledger:
    """What the journal at `path` has brought to an end, and what it has begun."""
    done: set[Key] = set()
    begun: dict[Key, Begun] = {}
    for _, attempt in read_journal(path):
        key = (attempt.arm, attempt.concept_id, attempt.sample)
        if attempt.final:
            done.add(key)
            begun.pop(key, None)
        else:
            judged = attempt.status == "format_error"
            place = (attempt.block, attempt.line, attempt.column)
            problem = Problem(attempt.reason or "", attempt.error or "", *place) if judged else None
            begun[key] = Begun(attempt.attempt, problem)
    return Ledger(done, begun)


def check_complete(outcomes: Iterable[Outcome], expected: Iterable[Key]) -> None:
    """Exactly one outcome for each expected arm, case and sample, and no other.

    Raises:
        EvalError: one is missing, twice there or foreign; no verdict can stand on that.
    """
    owed = set(expected)
    for outcome in outcomes:
        key = (outcome.arm, outcome.concept_id, outcome.sample)
        if key not in owed:
            msg = f"the journal holds an outcome twice, or one nobody asked for: {key}"
            raise EvalError(msg)
        owed.remove(key)
    if owed:
        msg = f"the journal lacks {len(owed)} outcomes, for example {min(owed)}"
        raise EvalError(msg)


def write_results(
    path: Path,
    journal: Path,
    order: Mapping[str, int],
    head: Mapping[str, Any],
    summary: Summary,
    blocks: Callable[[str], Mapping[str, str]],
) -> Path:
    """One arm's result file, its cases in data set order, with all their attempts.

    The structure is the predecessor's (`design.md`, "The run folder") with more in it.
    Memory holds one case at a time: its attempts are fetched from the journal by offset.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for offset, attempt in read_journal(journal):
        if attempt.arm == head["arm"]:
            places.setdefault((order[attempt.concept_id], attempt.sample), []).append(offset)
    top = {
        **head,
        "total_samples": summary.total,
        "valid_samples": summary.valid,
        "failed_samples": summary.failed,
        "error_samples": summary.errors,
        "first_attempt_valid_samples": summary.first_valid,
        "metrics": {key: getattr(summary, key) for key in METRICS},
    }
    part = path.with_name(path.name + ".part")
    with part.open("wb") as out, journal.open("rb") as file:
        out.write(orjson.dumps(top)[:-1] + b',"results":[')
        for number, key in enumerate(sorted(places)):
            attempts = [_read_at(file, offset) for offset in places[key]]
            out.write(b",\n" if number else b"\n")
            out.write(orjson.dumps(_result(attempts, blocks)))
        out.write(b"\n]}\n")
    part.replace(path)
    return path


def write_zip(folder: RunFolder, files: Sequence[Path]) -> Path:
    """Everything needed to read and judge the run again, in one archive."""
    path = folder.path / f"eval_results_{folder.timestamp}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f"{folder.path.name}/{file.name}")
    return path


def _read_at(file: BinaryIO, offset: int) -> dict[str, Any]:
    file.seek(offset)
    row: dict[str, Any] = orjson.loads(file.readline())
    return row


def _result(
    attempts: Sequence[dict[str, Any]], blocks: Callable[[str], Mapping[str, str]]
) -> dict[str, Any]:
    last = attempts[-1]
    keys = ("concept_id", "tier", "sample", "status", "score", "parts", "reason", "error")
    return {
        **{key: last[key] for key in keys},
        "truncated": last["truncated"],
        "attempts": len(attempts),
        "blocks": blocks(last["raw_response"]),
        "raw_response": last["raw_response"],
        "history": [
            {key: value for key, value in attempt.items() if key not in CASE_KEYS}
            for attempt in attempts
        ],
    }


def _dump(row: dict[str, Any]) -> bytes:
    """One line; what JSON cannot hold (a lone surrogate) is replaced, not refused."""
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        clean = {
            key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for key, value in row.items()
        }
        return orjson.dumps(clean, option=orjson.OPT_APPEND_NEWLINE)
