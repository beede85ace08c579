"""Stored answers graded again: what changed in each file, and the gate's verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vllm_eval.compare import gate
from vllm_eval.compare.ranking import Ranked, rank
from vllm_eval.compare.selection import Selected, select
from vllm_eval.compare.summary import Comparison, as_repaired
from vllm_eval.compare.verdict import Verdict, Word, word_on
from vllm_eval.config.settings import Config, GateConfig, Select
from vllm_eval.inputs.cases import CaseIndex, Place
from vllm_eval.records import BASELINE, Outcome, Progress, Status, Watcher, free_arms
from vllm_eval.report.verdicts import beside, selected_words
from vllm_eval.rescore import stored
from vllm_eval.rescore.answers import Graded, StoredAnswer, grade_all
from vllm_eval.rescore.origin import (
    Expected,
    find_expected,
    find_files,
    index_all,
    origins_of,
    other_data,
    seed_of,
    task_of,
    thresholds_of,
)
from vllm_eval.rescore.stored import StoredFile
from vllm_eval.tasks import open_task

TOLERANCE = 1e-9
"""A recorded score is reproduced if it differs by no more than this."""
MAX_CHANGES = 20


@dataclass(frozen=True, slots=True)
class Change:
    """One answer whose grade differs from the recorded one."""

    concept_id: str
    was: str
    now: str
    message: str


@dataclass(slots=True)
class FileReport:
    """One arm of one file, recorded and graded again; filled answer by answer."""

    path: Path
    arm: str
    answers: int = 0
    recorded_statuses: int = 0
    """Answers recorded with a known status."""
    incomplete: int = 0
    """Answers recorded without a known status, or as success without a score."""
    not_gradable: int = 0
    """Answers whose raw response is not stored."""
    lost: int = 0
    """Of those, the ones not recorded as `error`."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Every reason now, with counts."""
    newly_failing: Counter[str] = field(default_factory=Counter)
    """Recorded as success: why they fail now, with counts."""
    newly_valid: Counter[str] = field(default_factory=Counter)
    """Recorded as failed, but valid now: the recorded reasons, with counts."""
    new_reasons: Counter[str] = field(default_factory=Counter)
    """Failed before and now, for different reasons: `old -> new`, with counts."""
    scores_compared: int = 0
    scores_changed: int = 0
    max_difference: float = 0.0
    unusable_scores: int = 0
    """Recorded scores that are not numbers from 0 to 1; nothing can reproduce them."""
    changes: list[Change] = field(default_factory=list)
    """The first `MAX_CHANGES` changes."""
    recorded: list[Outcome] = field(default_factory=list)
    now: list[Outcome] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether every recorded status and score is the same now."""
        changed = self.newly_failing or self.newly_valid or self.scores_changed
        return not (changed or self.unusable_scores or self.lost)


@dataclass(frozen=True, slots=True)
class Scored:
    """The result of grading stored answers again."""

    reports: tuple[FileReport, ...]
    verdicts: tuple[Verdict, ...]
    """The gate on each student; empty without a baseline, or if an arm is in two files."""
    recorded_verdicts: tuple[Verdict, ...]
    """The gate on the recorded outcomes; empty if a status or score is missing."""
    notes: tuple[str, ...]
    comparison: Comparison | None = None
    """The basis of the verdicts."""
    repair: bool = False
    """Whether failed answers were also repaired."""
    repaired_verdicts: tuple[Verdict, ...] = ()
    """The gate with repaired answers counted as valid; empty unless repairs were asked for."""
    select: Select = "all"
    """Whom the word is about: `gate.select`."""
    selected: Selected | None = None
    """The student that ships; None if none passes, or there are no verdicts."""
    ranking: tuple[Ranked, ...] = ()
    """The students, best first."""

    @property
    def word(self) -> Word:
        """What the gate says of the students; without verdicts, PASS if all was reproduced."""
        if self.verdicts:
            return word_on(self.verdicts, self.select)
        return "PASS" if all(report.reproduced for report in self.reports) else "FAIL"

    @property
    def passed(self) -> bool:
        """Whether `word` is PASS."""
        return self.word == "PASS"

    def __repr__(self) -> str:
        lines = [f"note: {note}" for note in self.notes]
        for report in self.reports:
            valid = sum(outcome.status == "success" for outcome in report.now)
            said = "as recorded" if report.reproduced else "not as recorded"
            lines.append(f"{report.path}  {report.arm}: {valid} of {report.answers} valid, {said}")
        if self.select == "best" and self.verdicts:
            lines += selected_words(self.word, self.selected)
        for verdict in self.verdicts:
            lines.append(f"{verdict.word}  {verdict.arm}")
            lines += [f"  {sentence}" for sentence in beside(asdict(verdict))]
        return "\n".join(lines)


def score(
    paths: Sequence[Path],
    config: Config,
    watcher: Watcher,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> Scored:
    """Grade all answers in `paths` (files or run folders) again, once every file is checked.

    What `config` sets (data set, task, thresholds) overrides what is stored. `show` receives each
    answer as the object that `--json` prints, in order.

    Raises:
        InputError: a file, a line or a data set cannot be used.
    """
    files = [stored.open_file(path) for path in find_files(paths)]
    task = task_of(files, config)
    indexes = index_all(files, config, open_task(task))
    expected = find_expected(files, indexes)
    why = _no_verdict(files, expected)
    thresholds = thresholds_of(files, config, graded=not why)
    notes = [note for file in files for note in file.notes()]
    notes += [*other_data(files, indexes), *expected.gaps]
    notes += [f"no verdict: {why}"] if why else []
    for note in notes:
        watcher.stage(note)
    seed = None if why else seed_of(files, config)
    progress = Progress(total=sum(file.count for file in files))
    reports: dict[tuple[Path, str], FileReport] = {}
    for answer, graded in grade_all(
        task, _pairs(files, indexes), progress.total, repair=config.repair
    ):
        key = (answer.path, answer.arm)
        if key not in reports:
            reports[key] = FileReport(*key)
        count(reports[key], answer, graded)
        if show is not None:
            show(_row(answer, graded, repair=config.repair))
        progress.done += 1
        watcher.progress(progress)
    found = tuple(reports.values())
    if seed is None:
        return Scored(found, (), (), tuple(notes), repair=config.repair)
    grade = partial(_grade_arms, expected=expected, thresholds=thresholds, seed=seed)
    comparison, verdicts = grade([report.now for report in found])
    before: tuple[Verdict, ...] = ()
    after: tuple[Verdict, ...] = ()
    if all(_is_as_recorded(report) for report in found):
        before = verdicts
    elif not any(report.incomplete for report in found):
        _, before = grade([report.recorded for report in found])
    if config.repair:
        _, after = grade([map(as_repaired, report.now) for report in found])
    ranking = rank(comparison, verdicts)
    selected = select(comparison, verdicts, ranking, origins_of(files))
    asked = config.repair, after, thresholds.select
    return Scored(found, verdicts, before, tuple(notes), comparison, *asked, selected, ranking)


def _pairs(
    files: Sequence[StoredFile], indexes: Mapping[Path, CaseIndex]
) -> Iterator[tuple[StoredAnswer, Place]]:
    for file in files:
        places = indexes[file.path].places
        for answer in stored.read_answers(file):
            yield answer, places[answer.concept_id]


def _row(answer: StoredAnswer, graded: Graded, *, repair: bool) -> dict[str, Any]:
    found = graded.repair
    repaired = {"repairs": found.names if found else (), "repaired_score": found and found.score}
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
        **(repaired if repair else {}),
    }


def _no_verdict(files: Sequence[StoredFile], expected: Expected) -> str:
    """Why these files have no verdict; empty if they have one."""
    if BASELINE not in expected.arms or len(free_arms(expected.arms)) < 2:
        return f"it needs a {BASELINE} and a student"
    if sum(len(file.arms) for file in files) > len({arm for file in files for arm in file.arms}):
        return "an arm is in more than one file"
    return ""


def _is_as_recorded(report: FileReport) -> bool:
    was, now = ([(o.status, o.score) for o in side] for side in (report.recorded, report.now))
    return not report.incomplete and was == now


def _grade_arms(
    arms: Iterable[Iterable[Outcome]],
    expected: Expected,
    thresholds: GateConfig,
    seed: int,
) -> tuple[Comparison, tuple[Verdict, ...]]:
    """The gate on each student, including one without any outcome yet."""
    outcomes = [outcome for arm in arms for outcome in arm]
    free, drawn = free_arms(expected.arms), expected.drawn
    comparison, verdicts = gate.grade(
        outcomes, free, expected.outcomes, thresholds, drawn=drawn, seed=seed
    )
    return comparison, tuple(expected.refuse(verdict) for verdict in verdicts)


def count(report: FileReport, answer: StoredAnswer, graded: Graded) -> None:
    """Add one answer to its report."""
    problem, known = graded.problem, answer.status is not None
    reason = problem.reason if problem else None
    report.answers += 1
    report.recorded_statuses += known
    report.incomplete += not known or (answer.status == "success" and answer.score is None)
    if answer.text is None:
        report.not_gradable += 1
        report.lost += answer.status != "error"
    if reason:
        report.reasons[reason] += 1
    was, now = answer.reason or answer.status or "-", reason or "success"
    if known and (answer.status == "success") != (reason is None):
        if problem:
            report.newly_failing[problem.reason] += 1
        else:
            report.newly_valid[was] += 1
        _note(report, answer, was, now, problem.message if problem else "")
    elif problem and answer.reason not in (None, reason) and answer.text is not None:
        report.new_reasons[f"{answer.reason} -> {reason}"] += 1
        _note(report, answer, was, now, problem.message)
    if answer.unusable_score:
        report.unusable_scores += 1
        is_now = "none" if graded.score is None else f"{graded.score:.6f}"
        _note(report, answer, f"score {answer.unusable_score}", f"score {is_now}", "")
    elif answer.score is not None and answer.text is not None:
        _compare_scores(report, answer, graded)
    if answer.final:
        report.recorded.append(answer.outcome())
        report.now.append(_regraded(report.recorded[-1], answer, graded))


def _compare_scores(report: FileReport, answer: StoredAnswer, graded: Graded) -> None:
    """Compare the scores; a failed answer recorded with 0 is reproduced if it fails again."""
    was, now = answer.score or 0.0, graded.score or 0.0
    counted_as_0 = was == 0 and answer.status != "success" and graded.problem is not None
    difference = 0.0 if counted_as_0 else abs(now - was)
    report.scores_compared += 1
    report.max_difference = max(report.max_difference, difference)
    if difference > TOLERANCE:
        report.scores_changed += 1
        _note(report, answer, f"score {was:.6f}", f"score {now:.6f}", "")


def _note(report: FileReport, answer: StoredAnswer, was: str, now: str, message: str) -> None:
    if len(report.changes) < MAX_CHANGES:
        report.changes.append(Change(answer.concept_id, was, now, message))


def _regraded(before: Outcome, answer: StoredAnswer, graded: Graded) -> Outcome:
    valid = graded.problem is None
    failed: Status = "error" if answer.text is None else "format_error"
    return replace(
        before,
        tier=before.tier or graded.tier,
        status="success" if valid else failed,
        reason=graded.problem.reason if graded.problem else None,
        score=graded.score,
        first_valid=valid and before.attempts == 1,
        repair=graded.repair,
    )
