"""The run folder and the files made from its journal at the end."""

from __future__ import annotations

import hashlib
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from sys import intern
from typing import Any, BinaryIO

import orjson
import yaml

from vllm_eval.config.settings import file_name
from vllm_eval.errors import InputError
from vllm_eval.inputs.cases import read_case
from vllm_eval.inputs.formats import Lines
from vllm_eval.records import Case
from vllm_eval.store import manifest
from vllm_eval.store.journal import LOCK
from vllm_eval.tasks.declaration import Declaration

CASES = "cases.jsonl"
COMPARISON = "comparison.json"
CONFIG = "config.yaml"
JOURNAL = "attempts.jsonl"
TIME_FORMAT = "%Y%m%d-%H%M%S"
ENGINE_LOG = "engine.log"
NOT_ARCHIVED = frozenset((ENGINE_LOG, LOCK))
NOT_CONTENT = frozenset(("concept_id", "tier", "asked"))
"""Keys of a row of `cases.jsonl` that may differ between two files with the same case."""


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


def create_run(output_dir: Path, tag: str, now: datetime) -> RunFolder:
    """Make a new folder `<tag>_<timestamp>`, never one that is there already.

    Raises:
        InputError: the output folder cannot be written.
    """
    timestamp = now.strftime(TIME_FORMAT)
    name = f"{file_name(tag)}_{timestamp}"
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


def timestamp_of(folder: Path, recorded: Mapping[str, Any]) -> str:
    """The time in a run's file names, from its manifest."""
    try:
        return datetime.fromisoformat(recorded["started_at"]).strftime(TIME_FORMAT)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its manifest does not say when it was started") from error


def note_config(folder: Path, text: str) -> list[str]:
    """Store the configuration a run is resumed with; the keys that were others before.

    Raises:
        InputError: the stored one cannot be read.
    """
    path = folder / CONFIG
    try:
        before, now = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text)
        changed = [key for key in now if now[key] != before.get(key)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        msg = f"{path}: cannot be read as the configuration of this run: {error}"
        raise InputError(msg) from error
    write_text(path, text)
    return changed


def find_run(name: str, output_dir: str) -> Path:
    """The folder of a run given by its path, or by its name in `output_dir`.

    Raises:
        InputError: there is no such run.
    """
    places = [Path(name), Path(output_dir) / name]
    for place in places:
        if (place / manifest.FILE).is_file():
            return place
    msg = f"no run at {' or '.join(str(place) for place in places)}: no {manifest.FILE} there"
    raise InputError(msg)


def find_like(
    output_dir: Path,
    identity: Mapping[str, Any],
    *,
    finished: bool = True,
    usable: Callable[[Path, Mapping[str, Any]], bool] = lambda _folder, _engine: True,
) -> Path | None:
    """The newest run folder in `output_dir` with the same identity.

    It may be finished if `finished`; `usable` decides on one that is not, from its folder and what
    its manifest says of the engine.
    """
    newest: tuple[float, Path] | None = None
    for journal in output_dir.glob(f"*/{JOURNAL}"):
        folder = journal.parent
        try:
            recorded = orjson.loads(_bytes_of(folder / manifest.FILE))
            engine = recorded.get("engine", {})
            changed = manifest.differing(recorded["identity"], identity)
            if not changed and (finished if is_finished(folder) else usable(folder, engine)):
                newest = max(newest or (0.0, folder), (journal.stat().st_mtime, folder))
        except (OSError, KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
            continue  # not a run folder
    return newest[1] if newest else None


def _bytes_of(path: Path) -> bytes:
    """What a file beside our own runs holds; a pipe of its name could keep us waiting for ever."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end and was concluded."""
    comparison = read_comparison(folder)
    return comparison is not None and comparison.get("partial") is False


def read_comparison(folder: Path) -> dict[str, Any] | None:
    """The conclusion of a run; None without one, or if the journal has changed since."""
    try:
        comparison: dict[str, Any] = orjson.loads(_bytes_of(folder / COMPARISON))
        counted = comparison.get("index", {}).get("journal_bytes")  # schema 4 had none
    except (OSError, AttributeError, orjson.JSONDecodeError):
        return None
    journal = folder / JOURNAL
    if counted is not None and journal.is_file() and journal.stat().st_size != counted:
        return None
    return comparison


def write_json(path: Path, data: Mapping[str, Any]) -> Path:
    """Write a small JSON file, whole or not at all."""
    return write_bytes(path, orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")


def write_text(path: Path, text: str) -> Path:
    """Write a small text file, whole or not at all."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a small file, whole or not at all."""
    with written_whole(path) as out:
        out.write(data)
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once it is whole; never through a link."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with part.open("xb") as out:
        yield out
    part.replace(path)


def write_cases(folder: RunFolder, rows: Iterable[tuple[Case, str]]) -> Path:
    """The drawn cases, as a data set of their own, each with the prompt of its first attempt.

    With it the folder alone is enough to grade the answers again, and to show what was asked.
    """
    path = folder.path / CASES
    with written_whole(path) as out:
        for case, asked in rows:
            row = {"concept_id": case.id, "tier": case.tier, **case.inputs}
            row |= {"prompt": case.prompt, "asked": asked}
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path


@dataclass(frozen=True, slots=True)
class CaseRows:
    """Where the cases of a run lie in its `cases.jsonl`."""

    path: Path
    order: Mapping[str, int]
    """Place of each case, by its id, in the order drawn."""
    offsets: array[int]
    """The byte at which each of them begins."""
    contents: array[int]
    """64 bits of a hash of the texts of each: of the same case in another data set, the same."""


def index_rows(folder: Path) -> CaseRows:
    """Find every row of `write_cases`.

    Raises:
        InputError: the file is missing or damaged.
    """
    path, order, offset = folder / CASES, {}, 0
    offsets, contents = array("q"), array("Q")
    try:
        with path.open("rb") as file:
            for place, line in enumerate(file):
                row = orjson.loads(line)
                order[intern(row["concept_id"])] = place
                offsets.append(offset)
                contents.append(_hash_content(row))
                offset += len(line)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return CaseRows(path, order, offsets, contents)


def _hash_content(row: Mapping[str, Any]) -> int:
    """Of a case's inputs and its own prompt; of its id only where it has no text."""
    texts = {key: text for key, text in row.items() if text and key not in NOT_CONTENT}
    data = orjson.dumps(texts or row["concept_id"], option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def read_row(rows: CaseRows, declaration: Declaration, concept_id: str) -> Case:
    """One case of a run, read from the disk.

    Raises:
        DatasetError: the row cannot be used.
    """
    place, lines = rows.order[concept_id], Lines(rows.path, rows.path)
    with rows.path.open("rb") as file:
        return read_case(lines, file, declaration, place + 1, rows.offsets[place])


def row_at(path: Path, file: BinaryIO, offset: int) -> dict[str, Any]:
    """The row that begins at byte `offset` of the opened `cases.jsonl`.

    Raises:
        InputError: no row begins there.
    """
    file.seek(offset)
    try:
        row: dict[str, Any] = orjson.loads(file.readline())
    except orjson.JSONDecodeError as error:
        raise _damaged(path, error) from error
    return row


def _damaged(path: Path, error: Exception) -> InputError:
    why = f"missing or damaged ({error}); restore it, evaluate again, or use `score`"
    return InputError(f"{path}: {why}")


def write_zip(folder: RunFolder) -> Path:
    """Everything needed to read and grade the run again, in one archive: all but engine logs."""
    path = folder.path / f"eval_results_{folder.timestamp}.zip"
    files = [file for file in sorted(folder.path.rglob("*")) if file.is_file()]
    with written_whole(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            if file.name not in NOT_ARCHIVED and file.suffix not in (".zip", ".part"):
                archive.write(file, folder.path.name / file.relative_to(folder.path))
    return path
