"""A run folder as the report reads it; nothing here computes a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.compare.gate import NOT_FINISHED
from vllm_eval.conclude.conclude import SCHEMA_VERSION, conclude, reopen
from vllm_eval.errors import EvalError, InputError
from vllm_eval.inputs.index import read_case_rows
from vllm_eval.store import manifest
from vllm_eval.store.folder import COMPARISON, JOURNAL
from vllm_eval.store.journal import Journal, open_journal, parse_attempt, parts, read_journal
from vllm_eval.tasks import open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vllm_eval.conclude.conclude import Evaluated
    from vllm_eval.records import Attempt
    from vllm_eval.tasks import Task

HTML, MARKDOWN, SUMMARY, JUNIT = "report.html", "report.md", "summary.md", "junit.xml"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A concluded run, whole or partial."""

    folder: Path
    comparison: Mapping[str, Any]
    """`comparison.json`: the source of every figure but those of a single attempt."""

    @property
    def word(self) -> str:
        """On the whole run: `NOT FINISHED`, `PASS` or `FAIL`."""
        whole = "PASS" if self.comparison["passed"] else "FAIL"
        return NOT_FINISHED if self.comparison["partial"] else whole

    @property
    def arms(self) -> tuple[str, ...]:
        """The baseline first."""
        return tuple(self.comparison["arms"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """The manifest."""
        environment: Mapping[str, Any] = self.comparison["environment"]
        return environment

    @property
    def task(self) -> Task:
        """The task whose answers these are."""
        name = str(self.environment["identity"]["task"]).partition(" ")[0]
        return open_stored(self.folder, name)


@dataclass(frozen=True, slots=True)
class CaseDetail:
    """All texts of one case."""

    concept_id: str
    tier: str | None
    asked: str
    """The prompt of the first attempt."""
    attempts: Mapping[str, tuple[Attempt, ...]]
    """By arm: every attempt of every sample, as they were made."""


def load_run(folder: Path) -> StoredRun:
    """Read what `conclude` wrote; where it is missing or behind the journal, conclude first.

    Raises:
        InputError: the folder holds no run of ours, or a damaged one, or the run is to be concluded
            and another process is at work on it.
    """
    if not _is_current(folder):
        _conclude_alone(folder)
    path = folder / COMPARISON
    try:
        return StoredRun(folder, orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise InputError(msg) from error


def read_details(run: StoredRun) -> Iterator[CaseDetail]:
    """The texts of every case with an attempt, in the data set's order, one case at a time.

    Without those of constrained variants, which are no arms of the comparison.

    Of a run whose `comparison.json` holds a sample of its cases, only those.
    """
    journal = run.folder / JOURNAL
    shown = {row["concept_id"] for row in run.comparison["cases"]}
    places: dict[str, list[int]] = {}
    for place, attempt in read_journal(journal):
        wanted = not run.comparison["cases_sampled"] or attempt.concept_id in shown
        if wanted and attempt.arm in run.arms:
            places.setdefault(attempt.concept_id, []).append(place)
    with open_journal(journal) as line_at:
        for row in read_case_rows(run.folder):
            attempts: dict[str, list[Attempt]] = {arm: [] for arm in run.arms}
            for place in places.get(row["concept_id"], ()):
                attempt = parse_attempt(line_at(place))
                attempts.setdefault(attempt.arm, []).append(attempt)  # or a variant's
            made = {arm: tuple(rows) for arm, rows in attempts.items()}
            if any(made.values()):
                yield CaseDetail(row["concept_id"], row["tier"], row["asked"], made)


def _conclude_alone(folder: Path) -> None:
    """Write what is missing, while no other process writes: its temporary files have our names."""
    journal = folder / JOURNAL
    if not journal.is_file():  # else it would be made here, and the run concluded as an empty one
        msg = f"{journal}: is missing; without its answers a run cannot be reported"
        raise InputError(msg)
    try:
        with Journal(journal):
            conclude(_reopened(folder))
    except InputError:
        raise
    except EvalError as error:
        msg = f"{error}; restore the file, or evaluate again"
        raise InputError(msg) from error
    except OSError as error:
        msg = f"{error.filename or folder}: cannot conclude this run: {error.strerror or error}"
        raise InputError(msg) from error


def _reopened(folder: Path) -> Evaluated:
    try:
        return reopen(folder)
    except (KeyError, TypeError, AttributeError) as error:
        path = folder / manifest.FILE
        msg = f"{path}: damaged ({error!r}); restore it, or evaluate again"
        raise InputError(msg) from error


def _is_current(folder: Path) -> bool:
    path, journal = folder / COMPARISON, folder / JOURNAL
    try:
        comparison = orjson.loads(path.read_bytes())
        if comparison["schema_version"] != SCHEMA_VERSION:
            return False
        # Of a run that did not end, it may be behind the journal.
        newest = parts(journal)[-1].stat().st_mtime_ns
        return not comparison["partial"] or path.stat().st_mtime_ns > newest
    except (OSError, EvalError, orjson.JSONDecodeError, KeyError, TypeError):
        return False
