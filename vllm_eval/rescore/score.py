"""Stored answers judged again: what changed in each file, and the gate's word on the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vllm_eval import gate, stats
from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE, Outcome
from vllm_eval.rescore import rejudge, stored, stored_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from vllm_eval.config import Config, GateConfig
    from vllm_eval.gate import Verdict
    from vllm_eval.records import Status
    from vllm_eval.rescore.rejudge import CaseIndex, Judged, Place
    from vllm_eval.rescore.stored import Answer, Source
    from vllm_eval.stats import Comparison
    from vllm_eval.stats.bootstrap import Bootstrap

TOLERANCE = 1e-9
"""A recorded score that differs by no more is reproduced."""
MAX_CHANGES = 20


class Watcher(Protocol):
    """Whoever wants to see the scoring happen."""

    def scored(self, done: int, total: int) -> None:
        """`done` of `total` answers have been judged."""


@dataclass(frozen=True, slots=True)
class Change:
    """One answer that is judged otherwise than recorded."""

    concept_id: str
    was: str
    now: str
    message: str


@dataclass(slots=True)
class FileReport:
    """What scoring found in one arm of one file; counted up answer by answer."""

    path: Path
    arm: str
    answers: int = 0
    recorded_statuses: int = 0
    """Answers that came with a status."""
    incomplete: int = 0
    """Answers without a status, or recorded as success without a score."""
    not_judgeable: int = 0
    """Answers whose raw response is not stored."""
    lost: int = 0
    """Of those, the ones recorded as something else than `error`."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Every reason found now, with counts."""
    newly_failing: dict[str, int] = field(default_factory=dict)
    """Recorded as success: why they are none, with counts."""
    newly_valid: dict[str, int] = field(default_factory=dict)
    """Recorded as failed, and keep the contract: what was recorded, with counts."""
    new_reasons: dict[str, int] = field(default_factory=dict)
    """Failed before and now, for another reason: `old -> new`, with counts."""
    scores_compared: int = 0
    scores_changed: int = 0
    max_difference: float = 0.0
    changes: list[Change] = field(default_factory=list)
    """The first `MAX_CHANGES` changes."""
    recorded: list[Outcome] = field(default_factory=list)
    now: list[Outcome] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether every recorded status and score came out again."""
        return not (self.newly_failing or self.newly_valid or self.scores_changed or self.lost)


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

    @property
    def passed(self) -> bool:
        """The gate's word where there is one, else whether everything was reproduced."""
        if self.verdicts:
            return all(verdict.passed for verdict in self.verdicts)
        return all(report.reproduced for report in self.reports)


def score(
    paths: Sequence[Path],
    config: Config,
    watcher: Watcher,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> Scored:
    """Judge the answers of all files again, after all of them were checked.

    Args:
        paths: files of answers, or run folders.
        config: what it sets itself (data set, task, thresholds) goes before what is stored.
        watcher: is told how far it has come.
        show: is given each answer as the object that `--json` prints, in order.

    Raises:
        InputError: a file, a line or a data set that cannot be used.
    """
    sources = [stored.open_source(path) for path in stored.find_files(paths)]
    task = stored_settings.task_of(sources, config)
    thresholds = stored_settings.thresholds_of(sources, config)
    indexes = stored_settings.index_all(sources, config)
    total = sum(source.count for source in sources)
    reports: dict[tuple[Path, str], FileReport] = {}
    every = rejudge.judge_all(task, _pairs(sources, indexes), total)
    for done, (answer, judged) in enumerate(every, start=1):
        key = (answer.path, answer.arm)
        if key not in reports:
            reports[key] = FileReport(*key)
        _count(reports[key], answer, judged)
        if show is not None:
            show(_row(answer, judged))
        watcher.scored(done, total)
    found = tuple(reports.values())
    notes = stored_settings.other_data(sources, indexes)
    if why := _no_verdict(found):
        return Scored(found, (), (), (*notes, f"no verdict: {why}"))
    bootstrap = stored_settings.bootstrap_of(sources, config, thresholds)
    comparison, verdicts = _judge_arms([report.now for report in found], thresholds, bootstrap)
    before: tuple[Verdict, ...] = ()
    if all(_is_as_recorded(report) for report in found):
        before = verdicts
    elif not any(report.incomplete for report in found):
        recorded = [report.recorded for report in found]
        _, before = _judge_arms(recorded, thresholds, bootstrap)
    return Scored(found, verdicts, before, notes, comparison)


def _pairs(
    sources: Sequence[Source], indexes: Mapping[Path, CaseIndex]
) -> Iterator[tuple[Answer, Place]]:
    for source in sources:
        places = indexes[source.path].places
        for answer in stored.read_answers(source):
            yield answer, places[answer.concept_id]


def _count(report: FileReport, answer: Answer, judged: Judged) -> None:
    problem = judged.problem
    reason = problem.reason if problem else None
    report.answers += 1
    report.recorded_statuses += answer.status is not None
    unscored = answer.status == "success" and answer.score is None
    report.incomplete += answer.status is None or unscored
    if answer.text is None:
        report.not_judgeable += 1
        report.lost += answer.status != "error"
    if reason:
        _add(report.reasons, reason)
    was, now = answer.reason or answer.status or "-", reason or "success"
    if answer.status is not None and (answer.status == "success") != (reason is None):
        if problem:
            _add(report.newly_failing, problem.reason)
        else:
            _add(report.newly_valid, was)
        _note(report, answer, was, now, problem.message if problem else "")
    elif problem and answer.reason not in (None, reason) and answer.text is not None:
        _add(report.new_reasons, f"{answer.reason} -> {reason}")
        _note(report, answer, was, now, problem.message)
    if answer.score is not None and answer.text is not None:
        _compare_scores(report, answer, judged)
    if answer.final:
        before = stored.recorded_outcome(answer)
        report.recorded.append(before)
        report.now.append(_outcome(answer, judged, before))


def _compare_scores(report: FileReport, answer: Answer, judged: Judged) -> None:
    """A failed answer recorded with 0 is reproduced by failing: that is what its 0 says."""
    was, now = answer.score or 0.0, judged.score or 0.0
    counted_as_0 = was == 0 and answer.status != "success" and judged.problem is not None
    difference = 0.0 if counted_as_0 else abs(now - was)
    report.scores_compared += 1
    report.max_difference = max(report.max_difference, difference)
    if difference > TOLERANCE:
        report.scores_changed += 1
        _note(report, answer, f"score {was:.6f}", f"score {now:.6f}", "")


def _note(report: FileReport, answer: Answer, was: str, now: str, message: str) -> None:
    if len(report.changes) < MAX_CHANGES:
        report.changes.append(Change(answer.concept_id, was, now, message))


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _outcome(answer: Answer, judged: Judged, before: Outcome) -> Outcome:
    valid = judged.problem is None
    failed: Status = "error" if answer.text is None else "format_error"
    return Outcome(
        arm=before.arm,
        concept_id=before.concept_id,
        tier=before.tier or judged.tier,
        sample=before.sample,
        status="success" if valid else failed,
        reason=judged.problem.reason if judged.problem else None,
        score=judged.score,
        attempts=before.attempts,
        first_valid=valid and before.attempts == 1,
    )


def _row(answer: Answer, judged: Judged) -> dict[str, Any]:
    return {
        "file": str(answer.path),
        "arm": answer.arm,
        "concept_id": answer.concept_id,
        "tier": answer.tier or judged.tier,
        "valid": judged.problem is None,
        "reason": judged.problem.reason if judged.problem else None,
        "score": judged.score,
        "recorded_status": answer.status,
        "recorded_score": answer.score,
    }


def _no_verdict(reports: Sequence[FileReport]) -> str:
    """Why the gate has nothing to say on these files; empty where it has."""
    arms = [report.arm for report in reports]
    if BASELINE not in arms or len(arms) < 2:
        return f"that takes a {BASELINE} and a student"
    if len(set(arms)) < len(arms):
        return "an arm is there in more than one file"
    for report in reports:
        if not report.now:
            return f"{report.path} holds no outcome of {report.arm}"
        if len({(o.concept_id, o.sample) for o in report.now}) < len(report.now):
            msg = f"{report.path}: holds a case and sample of {report.arm} twice"
            raise InputError(msg)
    return ""


def _is_as_recorded(report: FileReport) -> bool:
    was, now = ([(o.status, o.score) for o in side] for side in (report.recorded, report.now))
    return not report.incomplete and was == now


def _judge_arms(
    arms: Sequence[Sequence[Outcome]], thresholds: GateConfig, bootstrap: Bootstrap
) -> tuple[Comparison, tuple[Verdict, ...]]:
    """The gate on each student; an arm owes every case and sample that another one has."""
    outcomes = [outcome for arm in arms for outcome in arm]
    names = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    expected = len({(outcome.concept_id, outcome.sample) for outcome in outcomes})
    comparison = stats.compare(outcomes, names, bootstrap=bootstrap)
    students = [name for name in names if name != BASELINE]
    return comparison, tuple(
        gate.judge_student(comparison, student, expected, thresholds) for student in students
    )
