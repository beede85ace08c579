"""What changed in one arm of one file of stored answers, counted up answer by answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_eval.records import Outcome
from vllm_eval.rescore.recorded import recorded_outcome

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.records import Status
    from vllm_eval.rescore.recorded import Answer
    from vllm_eval.rescore.regrade import Graded

TOLERANCE = 1e-9
"""A recorded score that differs by no more is reproduced."""
MAX_CHANGES = 20


@dataclass(frozen=True, slots=True)
class Change:
    """One answer that is graded otherwise than recorded."""

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
    """Answers that came with a status we know."""
    incomplete: int = 0
    """Answers without a status we know, or recorded as success without a score."""
    not_gradable: int = 0
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
    unusable_scores: int = 0
    """Recorded ones that are no numbers from 0 to 1, so that nothing can reproduce them."""
    changes: list[Change] = field(default_factory=list)
    """The first `MAX_CHANGES` changes."""
    recorded: list[Outcome] = field(default_factory=list)
    now: list[Outcome] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether every recorded status and score came out again."""
        changed = self.newly_failing or self.newly_valid or self.scores_changed
        return not (changed or self.unusable_scores or self.lost)


def count(report: FileReport, answer: Answer, graded: Graded) -> None:
    """Take one more answer into its report."""
    problem = graded.problem
    reason = problem.reason if problem else None
    report.answers += 1
    report.recorded_statuses += answer.status is not None
    unscored = answer.status == "success" and answer.score is None
    report.incomplete += answer.status is None or unscored
    if answer.text is None:
        report.not_gradable += 1
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
    if answer.unusable_score:
        report.unusable_scores += 1
        is_now = "none" if graded.score is None else f"{graded.score:.6f}"
        _note(report, answer, f"score {answer.unusable_score}", f"score {is_now}", "")
    elif answer.score is not None and answer.text is not None:
        _compare_scores(report, answer, graded)
    if answer.final:
        before = recorded_outcome(answer)
        report.recorded.append(before)
        report.now.append(_outcome(answer, graded, before))


def _compare_scores(report: FileReport, answer: Answer, graded: Graded) -> None:
    """A failed answer recorded with 0 is reproduced by failing: that is what its 0 says."""
    was, now = answer.score or 0.0, graded.score or 0.0
    counted_as_0 = was == 0 and answer.status != "success" and graded.problem is not None
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


def _outcome(answer: Answer, graded: Graded, before: Outcome) -> Outcome:
    valid = graded.problem is None
    failed: Status = "error" if answer.text is None else "format_error"
    return Outcome(
        arm=before.arm,
        concept_id=before.concept_id,
        tier=before.tier or graded.tier,
        sample=before.sample,
        status="success" if valid else failed,
        reason=graded.problem.reason if graded.problem else None,
        score=graded.score,
        attempts=before.attempts,
        first_valid=valid and before.attempts == 1,
        repair=graded.repair,
    )
