"""What failed answers would be worth after a repair of their text: measured beside the strict run.

Nothing here changes what an answer was graded to be. The last attempt of a case that broke the
contract is repaired and graded again; counts, means and the gate's word with such answers stand
next to the strict ones, which alone decide.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_eval.compare import gate
from vllm_eval.compare.summary import compare_arms
from vllm_eval.records import Repair
from vllm_eval.tasks.repair import NAMES, mend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vllm_eval.compare.gate import Verdict
    from vllm_eval.compare.intervals import Bootstrap
    from vllm_eval.compare.summary import Comparison
    from vllm_eval.inputs.index import CaseFile
    from vllm_eval.records import Attempt, Key, Outcome
    from vllm_eval.tasks import Task
    from vllm_eval.tasks.repair import Repaired

REPAIRED = "repaired"
"""Status, in a result file, of an answer that broke the contract and keeps it after a repair."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run comes to."""

    comparison: Comparison
    verdicts: tuple[Verdict, ...]


@dataclass(slots=True)
class Mending:
    """Repairs the failed answers of a run on the way of its attempts to somebody else.

    Holds names and scores; a text is in memory only while it is looked at.
    """

    task: Task
    cases: CaseFile
    found: dict[Key, Repair] = field(default_factory=dict)
    """Of the answers that keep the contract after a repair."""

    def watch(self, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
        """The same attempts; what a failed last one is worth repaired is noted in `found`.

        Nothing is, where the task's code is only named by the stored run, and so is not run.
        """
        for attempt in attempts:
            if attempt.final and attempt.status == "format_error" and self.task.grades:
                mended = self.mend(attempt.concept_id, attempt.raw_response, attempt.truncated)
                if mended is not None:
                    key = (attempt.arm, attempt.concept_id, attempt.sample)
                    self.found[key] = Repair(mended.names, mended.score)
            yield attempt

    def mend(self, concept_id: str, text: str, truncated: bool) -> Repaired | None:
        """An answer to a case of the run, repaired."""
        case = partial(self.cases.case, concept_id)
        return mend(self.task, case, text, ended=not truncated)

    def attach(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes, each with its repair where one was found."""
        return [
            replace(o, repair=found)
            if (found := self.found.get((o.arm, o.concept_id, o.sample))) is not None
            else o
            for o in outcomes
        ]

    def result(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """What a result file says of a repaired answer, given its last attempt; empty of others."""
        if (last["arm"], last["concept_id"], last["sample"]) not in self.found:
            return {}
        mended = self.mend(last["concept_id"], last["raw_response"], last["truncated"])
        if mended is None:
            return {}
        return {
            "status": REPAIRED,
            "repairs": mended.names,
            "repaired_response": mended.text,
            "repaired_score": mended.score,
            "repaired_parts": mended.parts,
        }


def stand_repaired(
    outcomes: Sequence[Outcome],
    strict: Standing,
    grade: Callable[[Comparison], tuple[Verdict, ...]],
    bootstrap: Bootstrap,
) -> Standing:
    """The run as it would be if repaired answers were valid; the strict one where none is.

    Args:
        outcomes: with their repairs.
        strict: what the run comes to as it is.
        grade: the gate.
        bootstrap: of the intervals.
    """
    if not any(outcome.repair for outcome in outcomes):
        return strict
    arms = list(strict.comparison.arms)
    comparison = compare_arms([as_repaired(o) for o in outcomes], arms, bootstrap=bootstrap)
    return Standing(comparison, grade(comparison))


def as_repaired(outcome: Outcome) -> Outcome:
    """An outcome as it would be, were its repair part of the answer."""
    if outcome.repair is None:
        return outcome
    return replace(outcome, status="success", reason=None, score=outcome.repair.score)


def repair_to_json(
    outcomes: Sequence[Outcome], found: Standing, *, asked: bool, measured: bool, pending: int
) -> dict[str, Any]:
    """What `comparison.json` says of repairs, apart from single cases; no figure if unmeasured.

    Args:
        outcomes: with their repairs.
        found: what the run comes to with them.
        asked: whether the configuration asks for repairs.
        measured: whether repaired answers could be graded.
        pending: outcomes an interrupted run has not reached; there is no verdict then.
    """
    told = {"asked": asked, "measured": measured}
    if not measured:
        return told | {"passed": None, "arms": {}, "verdicts": []}
    repaired = [outcome for outcome in outcomes if outcome.repair]
    return told | {
        "passed": pending == 0 and all(verdict.passed for verdict in found.verdicts),
        "arms": {
            arm: _count([o for o in repaired if o.arm == arm]) | {"summary": asdict(summary)}
            for arm, summary in found.comparison.arms.items()
        },
        "verdicts": gate.to_json(found.verdicts, pending),
    }


def _count(repaired: Sequence[Outcome]) -> dict[str, Any]:
    names = Counter(name for o in repaired if o.repair for name in o.repair.names)
    reasons = Counter(outcome.reason for outcome in repaired)
    return {
        "repaired": len(repaired),
        "by_repair": {name: names[name] for name in NAMES if names[name]},
        "by_reason": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0] or ""))),
    }
