"""A run folder as the report reads it; nothing here computes a figure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_eval.diagnose.example import Example, make_example
from vllm_eval.errors import EvalError, InputError
from vllm_eval.records import Attempt
from vllm_eval.store.folder import CASES, COMPARISON, JOURNAL, read_comparison, row_at
from vllm_eval.store.journal import attempt_at
from vllm_eval.tasks import Task, open_stored

HTML, MARKDOWN, SUMMARY, JUNIT = "report.html", "report.md", "summary.md", "junit.xml"

OUTLINE = (
    *("select", "selected", "unselected", "verdicts", "ranking", "arms", "students", "curve"),
    *("baseline_from", "pending", "settled", "timing"),
)
"""Keys of `comparison.json` that `--json` prints."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A concluded run, whole or partial."""

    folder: Path
    comparison: Mapping[str, Any]
    """`comparison.json`: the source of every figure except those of a single attempt."""

    @property
    def word(self) -> str:
        """Of the whole run: `NOT FINISHED`, `PASS`, `FAIL` or `UNDECIDED`."""
        return str(self.comparison["word"])

    @property
    def arms(self) -> tuple[str, ...]:
        """The baseline first."""
        return tuple(self.comparison["arms"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """The manifest, without the losses, which are those of the curves."""
        environment: Mapping[str, Any] = self.comparison["environment"]
        return environment

    @property
    def task(self) -> Task:
        """The run's task."""
        name = str(self.environment["identity"]["task"]).partition(" ")[0]
        return open_stored(self.folder, name)


def outline(run: StoredRun, exit_code: int) -> dict[str, Any]:
    """What a script needs of a run: `comparison.json` without cases, and where its files are."""
    head = {"folder": str(run.folder), "word": run.word, "passed": run.comparison["passed"]}
    return head | {"exit_code": exit_code} | {key: run.comparison[key] for key in OUTLINE}


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
    """Read a concluded run.

    Raises:
        InputError: the folder holds no concluded run, or a damaged one.
    """
    comparison = read_comparison(folder)
    if comparison is None:
        raise InputError(f"{folder / COMPARISON}: missing, damaged or too old; `report` writes it")
    return StoredRun(folder, comparison)


def read_details(run: StoredRun, only: Collection[str] | None = None) -> Iterator[CaseDetail]:
    """The texts of every case with an attempt, in the data set's order, one case at a time.

    Leaves out constrained variants, which are not arms of the comparison, and cases not in `only`.

    If `comparison.json` holds a sample of the cases, only those.

    Raises:
        InputError: the cases or the journal are missing, or have changed since the conclusion.
    """
    cases, journal = run.folder / CASES, run.folder / JOURNAL
    try:
        with cases.open("rb") as case_file, journal.open("rb") as journal_file:
            for concept_id, places in run.comparison["index"]["cases"].items():
                if only is not None and concept_id not in only:
                    continue
                row = row_at(cases, case_file, places["row"])
                made: dict[str, list[Attempt]] = {arm: [] for arm in run.arms}
                for place in places["attempts"]:
                    attempt = attempt_at(journal, journal_file, place)
                    if attempt.concept_id != row["concept_id"]:
                        raise KeyError(attempt.concept_id)
                    made[attempt.arm].append(attempt)
                attempts = {arm: tuple(rows) for arm, rows in made.items()}
                yield CaseDetail(concept_id, row["tier"], row["asked"], attempts)
    except OSError as error:
        msg = f"{error.filename}: cannot be read: {error.strerror}; restore it, or evaluate again"
        raise InputError(msg) from error
    except (KeyError, EvalError) as error:
        msg = f"{run.folder}: cases or journal have changed: {error}; restore them"
        raise InputError(msg) from error


def read_failures(
    run: StoredRun, failed: Collection[tuple[str, str]]
) -> dict[tuple[str, str], Example]:
    """The outcome that each failed case stands for, read from the journal by its place.

    Args:
        run: with the status and reason of each case.
        failed: cases and arms, the keys of what is returned.

    Raises:
        InputError: as for `read_details`.
    """
    cells = {row["concept_id"]: row["arms"] for row in run.comparison["cases"]}
    blocks, found = run.task.blocks, {}
    for detail in read_details(run, {case for case, _ in failed}):
        for arm, attempts in detail.attempts.items():
            if (key := (detail.concept_id, arm)) in failed:
                told = cells[detail.concept_id][arm]
                for attempt in attempts:
                    same = (attempt.status, attempt.reason) == (told["status"], told["reason"])
                    if attempt.final and same:
                        found[key] = make_example(attempt, blocks)
                        break
    return found
