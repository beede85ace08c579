"""What failed answers would be worth after a repair of their text: measured beside the strict run.

Nothing here changes what an answer was judged to be. The last attempt of a case that broke the
contract is repaired and judged again; counts, means and the gate's word with such answers stand
next to the strict ones, which alone decide.
"""

from __future__ import annotations

from array import array
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_eval import gate, stats
from vllm_eval.cases import read_case
from vllm_eval.datasets import Lines
from vllm_eval.errors import InputError
from vllm_eval.records import Repair
from vllm_eval.store import CASES
from vllm_eval.tasks.repair import NAMES, repair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from vllm_eval.gate import Verdict
    from vllm_eval.records import Attempt, Case, Key, Outcome
    from vllm_eval.stats import Comparison
    from vllm_eval.stats.bootstrap import Bootstrap
    from vllm_eval.tasks import Task
    from vllm_eval.tasks.declaration import Declaration, Value

REPAIRED = "repaired"
"""Status, in a result file, of an answer that broke the contract and keeps it after a repair."""


@dataclass(frozen=True, slots=True)
class Mended:
    """A failed answer that keeps the contract after a repair."""

    names: tuple[str, ...]
    text: str
    score: float | None
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run comes to."""

    comparison: Comparison
    verdicts: tuple[Verdict, ...]


def mend(task: Task, case: Callable[[], Case], text: str, *, ended: bool) -> Mended | None:
    """An answer that failed, after a repair; None where none makes it keep the contract.

    Args:
        task: by which it is judged, as strictly as before.
        case: reads the case that was asked about, where there is something to judge.
        text: the answer.
        ended: whether it ended by itself; false where it was cut, or that is not known.
    """
    declaration = task.declaration
    if not task.judges:  # a stored run's own module is not run
        return None
    found = repair(text, tuple(declaration.blocks), keys_of(declaration), ended=ended)
    if not found.names:
        return None
    judged = task.judge(case(), found.text)
    if judged.problem is not None:
        return None
    return Mended(found.names, found.text, judged.score, judged.parts)


def keys_of(declaration: Declaration) -> frozenset[str]:
    """Every key that a task declares, at any depth."""
    found: set[str] = set()

    def collect(keys: Mapping[str, Value]) -> None:
        found.update(keys)
        for value in keys.values():
            collect(value.keys)

    for block in declaration.blocks.values():
        collect(block.keys)
    return frozenset(found)


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
            if attempt.final and attempt.status == "format_error" and self.task.judges:
                mended = self.mend(attempt.concept_id, attempt.raw_response, attempt.truncated)
                if mended is not None:
                    key = (attempt.arm, attempt.concept_id, attempt.sample)
                    self.found[key] = Repair(mended.names, mended.score)
            yield attempt

    def mend(self, concept_id: str, text: str, truncated: bool) -> Mended | None:
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


class CaseFile:
    """The cases of a run folder by their ids, each read from the disk when it is asked for."""

    def __init__(self, folder: Path, order: Mapping[str, int], declaration: Declaration) -> None:
        """Nothing is opened before the first case is asked for.

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
            InputError: the file of the cases is missing or damaged.
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
            msg = f"{path}: holds {len(self._offsets)} cases, and the run has {len(self._order)}"
            raise InputError(msg)
        return file


def stand_repaired(
    outcomes: Sequence[Outcome],
    strict: Standing,
    judge: Callable[[Comparison], tuple[Verdict, ...]],
    bootstrap: Bootstrap,
) -> Standing:
    """The run as it would be if repaired answers were valid; the strict one where none is.

    Args:
        outcomes: with their repairs.
        strict: what the run comes to as it is.
        judge: the gate.
        bootstrap: of the intervals.
    """
    if not any(outcome.repair for outcome in outcomes):
        return strict
    arms = list(strict.comparison.arms)
    comparison = stats.compare([as_repaired(o) for o in outcomes], arms, bootstrap=bootstrap)
    return Standing(comparison, judge(comparison))


def as_repaired(outcome: Outcome) -> Outcome:
    """An outcome as it would be, were its repair part of the answer."""
    if outcome.repair is None:
        return outcome
    return replace(outcome, status="success", reason=None, score=outcome.repair.score)


def to_json(
    outcomes: Sequence[Outcome], found: Standing, *, asked: bool, measured: bool, owed: int
) -> dict[str, Any]:
    """What `comparison.json` says of repairs, apart from single cases; no figure if unmeasured.

    Args:
        outcomes: with their repairs.
        found: what the run comes to with them.
        asked: whether the configuration asks for repairs.
        measured: whether repaired answers could be judged.
        owed: outcomes that an interrupted run still owes: without a verdict, then.
    """
    told = {"asked": asked, "measured": measured}
    if not measured:
        return told | {"passed": None, "arms": {}, "verdicts": []}
    repaired = [outcome for outcome in outcomes if outcome.repair]
    return told | {
        "passed": owed == 0 and all(verdict.passed for verdict in found.verdicts),
        "arms": {
            arm: _count([o for o in repaired if o.arm == arm]) | {"summary": asdict(summary)}
            for arm, summary in found.comparison.arms.items()
        },
        "verdicts": gate.to_json(found.verdicts, owed),
    }


def _count(repaired: Sequence[Outcome]) -> dict[str, Any]:
    names = Counter(name for o in repaired if o.repair for name in o.repair.names)
    reasons = Counter(outcome.reason for outcome in repaired)
    return {
        "repaired": len(repaired),
        "by_repair": {name: names[name] for name in NAMES if names[name]},
        "by_reason": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0] or ""))),
    }
