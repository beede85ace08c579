"""Cases found by their place: in a data set, in a run folder, in a result file."""

from __future__ import annotations

import hashlib
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.errors import DatasetError, InputError
from vllm_eval.inputs.cases import add_id, fields_of, holds_record, read_case, read_record
from vllm_eval.inputs.formats import Lines, open_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import BinaryIO, Self

    from vllm_eval.records import Case
    from vllm_eval.tasks.declaration import Declaration

CASES = "cases.jsonl"


Place = tuple[Lines, int, int]
"""Data set, line number and byte offset of a case."""


class CaseFile:
    """The cases of a run folder by their ids, each read from the disk when it is asked for."""

    def __init__(self, folder: Path, order: Mapping[str, int], declaration: Declaration) -> None:
        """Opens nothing until the first case is asked for.

        Args:
            folder: of the run.
            order: place of each case in its file.
            declaration: of the task.
        """
        self._lines = Lines(folder / CASES, folder / CASES)
        self._order = order
        self._declaration = declaration
        self._offsets = array("q")
        self._file: BinaryIO | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Close the file, whatever happened."""
        self._stack.close()

    def case(self, concept_id: str) -> Case:
        """One case.

        Raises:
            InputError: the file of cases is missing or damaged.
        """
        file = self._file or self._open()
        place = self._order[concept_id]
        return read_case(self._lines, file, self._declaration, place + 1, self._offsets[place])

    def _open(self) -> BinaryIO:
        path = self._lines.file
        try:
            file = self._file = self._stack.enter_context(path.open("rb"))
            offset = 0
            for line in file:
                self._offsets.append(offset)
                offset += len(line)
        except OSError as error:
            msg = f"{path}: cannot be read: {error.strerror}; restore it, or evaluate again"
            raise InputError(msg) from error
        if len(self._offsets) != len(self._order):
            msg = f"{path}: holds {len(self._offsets)} cases, but the run has {len(self._order)}"
            raise InputError(msg)
        return file


def read_case_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of `write_cases`, in the order drawn.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / CASES
    try:
        with path.open("rb") as file:
            for line in file:
                row: dict[str, Any] = orjson.loads(line)
                yield row
    except (OSError, orjson.JSONDecodeError) as error:
        msg = f"{path}: missing or damaged ({error}); restore it, evaluate again, or use `score`"
        raise InputError(msg) from error


def read_order(folder: Path) -> dict[str, int]:
    """Place of each case, by its id, in the order drawn.

    Raises:
        InputError: the file of the cases is missing or damaged.
    """
    return {intern(row["concept_id"]): place for place, row in enumerate(read_case_rows(folder))}


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
    places: dict[str, Place] = {}
    seen: dict[str, int] = {}
    offset = 0
    try:
        with lines.file.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if holds_record(number, line):
                    _, identifier = read_record(lines, declaration, number, line)
                    add_id(lines, number, identifier, seen)
                    places[identifier] = (lines, number, offset)
                offset += len(line)
    except OSError as error:
        msg = f"{path}: cannot read the data set: {error.strerror}; give --dataset-path"
        raise DatasetError(msg) from error
    return CaseIndex(path, digest.hexdigest(), places)
