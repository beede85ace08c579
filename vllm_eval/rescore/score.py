"""Stored answers graded again: what changed in each file, and the gate's word on the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_eval.compare import gate
from vllm_eval.compare.summary import compare_arms
from vllm_eval.conclude.repaired import as_repaired
from vllm_eval.records import BASELINE, Progress, free_arms
from vllm_eval.rescore import stored
from vllm_eval.rescore.origin import (
    bootstrap_of,
    find_files,
    find_pending,
    index_all,
    other_data,
    task_of,
    thresholds_of,
)
from vllm_eval.rescore.regrade import FileReport, count, grade_all
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vllm_eval.compare.gate import Verdict
    from vllm_eval.compare.intervals import Bootstrap
    from vllm_eval.compare.summary import Comparison
    from vllm_eval.config.settings import Config, GateConfig
    from vllm_eval.inputs.index import CaseIndex, Place
    from vllm_eval.records import Outcome, Watcher
    from vllm_eval.rescore.origin import Owed
    from vllm_eval.rescore.recorded import StoredAnswer
    from vllm_eval.rescore.regrade import Graded
    from vllm_eval.rescore.stored import StoredFile


@dataclass(frozen=True, slots=True)
class Scored:
    """Everything that scoring found."""

    reports: tuple[FileReport, ...]
    verdicts: tuple[Verdict, ...]
    """The gate on each student; empty unless there is one baseline and each arm once."""
    recorded_verdicts: tuple[Verdict, ...]
    """The gate on what was recorded; empty where a status or score is missing."""
    notes: tuple[str, ...]
    comparison: Comparison | None = None
    """What the verdicts stand on."""
    repair: bool = False
    """Whether failed answers were repaired, to see what that would bring."""
    repaired_verdicts: tuple[Verdict, ...] = ()
    """The gate with repaired answers counted as valid; empty where none were asked for."""

    @property
    def passed(self) -> bool:
        """The gate's word where there is one, else whether everything was reproduced."""
        if self.verdicts:
            return all(verdict.passed for verdict in self.verdicts)
        return all(report.reproduced for report in self.reports)

    def __repr__(self) -> str:
        lines = [f"note: {note}" for note in self.notes]
        for report in self.reports:
            valid = sum(outcome.status == "success" for outcome in report.now)
            said = "as recorded" if report.reproduced else "not as recorded"
            lines.append(f"{report.path}  {report.arm}: {valid} of {report.answers} valid, {said}")
        return "\n".join(lines + [f"{verdict.word}  {verdict.arm}" for verdict in self.verdicts])


def score(
    paths: Sequence[Path],
    config: Config,
    watcher: Watcher,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> Scored:
    """Grade the answers of all files again, after all of them were checked.

    Args:
        paths: files of answers, or run folders.
        config: what it sets itself (data set, task, thresholds) goes before what is stored.
        watcher: is told the notes, and how far it has come.
        show: is given each answer as the object that `--json` prints, in order.

    Raises:
        InputError: a file, a line or a data set that cannot be used.
    """
    files = [stored.open_file(path) for path in find_files(paths)]
    task = task_of(files, config)
    indexes = index_all(files, config, open_task(task))
    owes = find_pending(files, indexes)
    why = _no_verdict(files, owes)
    thresholds = thresholds_of(files, config, graded=not why)
    notes = [note for file in files for note in file.notes]
    notes += [*other_data(files, indexes), *owes.gaps]
    notes += [f"no verdict: {why}"] if why else []
    for note in notes:
        watcher.stage(note)
    bootstrap = None if why else bootstrap_of(files, config, thresholds)
    reports: dict[tuple[Path, str], FileReport] = {}
    progress = Progress(total=sum(file.count for file in files))
    every = grade_all(task, _pairs(files, indexes), progress.total, repair=config.repair)
    for answer, graded in every:
        key = (answer.path, answer.arm)
        if key not in reports:
            reports[key] = FileReport(*key)
        count(reports[key], answer, graded)
        if show is not None:
            show(_row(answer, graded) | (_repair_row(graded) if config.repair else {}))
        progress.done += 1
        watcher.progress(progress)
    found = tuple(reports.values())
    if bootstrap is None:
        return Scored(found, (), (), tuple(notes), repair=config.repair)
    comparison, verdicts = _grade_arms([r.now for r in found], owes, thresholds, bootstrap)
    before: tuple[Verdict, ...] = ()
    if all(_is_as_recorded(report) for report in found):
        before = verdicts
    elif not any(report.incomplete for report in found):
        recorded = [report.recorded for report in found]
        _, before = _grade_arms(recorded, owes, thresholds, bootstrap)
    after: tuple[Verdict, ...] = ()
    if config.repair:
        repaired = [[as_repaired(outcome) for outcome in report.now] for report in found]
        _, after = _grade_arms(repaired, owes, thresholds, bootstrap)
    return Scored(found, verdicts, before, tuple(notes), comparison, config.repair, after)


def _pairs(
    files: Sequence[StoredFile], indexes: Mapping[Path, CaseIndex]
) -> Iterator[tuple[StoredAnswer, Place]]:
    for file in files:
        places = indexes[file.path].places
        for answer in stored.read_answers(file):
            yield answer, places[answer.concept_id]


def _row(answer: StoredAnswer, graded: Graded) -> dict[str, Any]:
    return {
        "file": str(answer.path),
        "arm": answer.arm,
        "concept_id": answer.concept_id,
        "tier": answer.tier or graded.tier,
        "valid": graded.problem is None,
        "reason": graded.problem.reason if graded.problem else None,
        "score": graded.score,
        "recorded_status": answer.recorded_status,
        "recorded_score": answer.score,
    }


def _repair_row(graded: Graded) -> dict[str, Any]:
    found = graded.repair
    return {"repairs": found.names if found else (), "repaired_score": found and found.score}


def _no_verdict(files: Sequence[StoredFile], owes: Owed) -> str:
    """Why the gate has nothing to say on these files; empty where it has."""
    arms = [arm for file in files for arm in file.arms]
    if BASELINE not in owes.arms or len(free_arms(owes.arms)) < 2:
        return f"that takes a {BASELINE} and a student"
    if len(set(arms)) < len(arms):
        return "an arm is there in more than one file"
    return ""


def _is_as_recorded(report: FileReport) -> bool:
    was, now = ([(o.status, o.score) for o in side] for side in (report.recorded, report.now))
    return not report.incomplete and was == now


def _grade_arms(
    arms: Sequence[Sequence[Outcome]], owes: Owed, thresholds: GateConfig, bootstrap: Bootstrap
) -> tuple[Comparison, tuple[Verdict, ...]]:
    """The gate on each student, also on one without any outcome yet."""
    outcomes = [outcome for arm in arms for outcome in arm]
    free = free_arms(owes.arms)
    comparison = compare_arms(outcomes, free, bootstrap=bootstrap)
    students = [name for name in free if name != BASELINE]
    return comparison, tuple(
        owes.refuse(gate.decide_student(comparison, student, owes.outcomes, thresholds))
        for student in students
    )
