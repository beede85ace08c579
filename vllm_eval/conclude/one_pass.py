"""All that a conclusion takes from the journal, in one pass, with one text in memory at a time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from sys import intern
from typing import Any

from vllm_eval.compare.settling import Settling
from vllm_eval.config.settings import Config
from vllm_eval.diagnose.survey import Survey
from vllm_eval.errors import EvalError
from vllm_eval.records import Attempt, Case, Key, Outcome, Repair
from vllm_eval.store.folder import CaseRows, RunFolder, read_row
from vllm_eval.store.journal import key_of
from vllm_eval.tasks import Task
from vllm_eval.tasks.repair import mend

_integers = partial(array, "q")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A run folder whose journal can be concluded."""

    folder: RunFolder
    manifest: Mapping[str, Any]
    config: Config
    adapters: Mapping[str, str | None]
    """Path of the adapter of each arm, the baseline first; None if it has none."""
    cases: CaseRows
    """Those drawn."""
    task: Task
    partial: bool = False
    """Whether outcomes may still be pending."""


@dataclass(slots=True)
class Places:
    """Where the attempts of one arm lie in the journal, in its order."""

    answers: array[int] = field(default_factory=_integers)
    """Place of the case in the order drawn, times the samples of each, plus the sample."""
    bytes: array[int] = field(default_factory=_integers)
    ended: bytearray = field(default_factory=bytearray)
    """Of every answer, whether it has an outcome."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a journal holds; no text of an answer."""

    outcomes: list[Outcome]
    """In the order of the journal."""
    survey: Survey
    places: Mapping[str, Places]
    """By arm, also one without an attempt."""
    cases: int
    """The first so many drawn are those that count."""
    pending: int
    """Of their answers, those without an outcome."""
    after: int = 0
    """Outcomes of other cases: those recorded after the verdict was settled."""


def read_attempts(
    run: Evaluated, attempts: Iterable[tuple[int, Attempt]], settled: int | None
) -> Reading:
    """Go through all attempts of a run, with one of them in memory at a time.

    `attempts` come with the byte at which each begins. If the task grades, failed outcomes are
    repaired and graded again. Only the first `settled` cases count, if that is given; of others
    only the places are taken.

    Raises:
        EvalError: an answer has two outcomes, or is of an arm, case or sample not in the run.
    """
    task, arms, order = run.task, list(run.adapters), run.cases.order
    samples, case = run.config.samples_per_case, partial(read_row, run.cases, task.declaration)
    each = len(order) * samples
    places = {arm: Places(ended=bytearray(each)) for arm in arms}
    survey = Survey(task.blocks, task.declaration, repairs=task.grades)
    outcomes: list[Outcome] = []
    after, counted = 0, len(order) if settled is None else settled
    for place, attempt in attempts:
        key = key_of(attempt)
        found, at = places.get(key[0]), order.get(key[1])
        foreign = f"the journal holds an outcome twice, or one that is not part of the run: {key}"
        if found is None or at is None or not 0 <= key[2] < samples:
            raise EvalError(foreign)
        answer = at * samples + key[2]
        found.answers.append(answer)
        found.bytes.append(place)
        if attempt.final:
            if found.ended[answer]:
                raise EvalError(foreign)
            found.ended[answer] = True
        if at >= counted:
            after += attempt.final
            continue
        repair = _repair(task, case, attempt) if attempt.final else None
        if attempt.final:
            outcomes.append(outcome_of(attempt, repair))
        survey.take(attempt, repaired=repair is not None)
    pending = len(arms) * counted * samples - len(outcomes)
    return Reading(outcomes, survey, places, counted, pending, after)


def settle(run: Evaluated, attempts: Iterable[tuple[int, Attempt]]) -> Settling:
    """What all `attempts` so far say of when the verdict is settled."""
    config, arms = run.config, list(run.adapters)
    settling = Settling(run.cases.order, arms, config.samples_per_case, config.gate)
    settling.take(outcome_of(attempt) for _, attempt in attempts if attempt.final)
    return settling


def first_pending(reading: Reading, order: Mapping[str, int], samples: int) -> Key:
    """An answer without an outcome: the first by arm, case and sample."""
    names = list(order)

    def missing() -> Iterator[Key]:
        for arm, places in reading.places.items():
            for answer, ended in enumerate(places.ended):
                if not ended:
                    yield arm, names[answer // samples], answer % samples

    return min(missing())


def _repair(task: Task, case: Callable[[str], Case], attempt: Attempt) -> Repair | None:
    """What a failed outcome is worth after a repair of its text; None of any other."""
    if attempt.status != "format_error":
        return None
    asked = partial(case, attempt.concept_id)
    found = mend(task, asked, attempt.raw_response, ended=not attempt.truncated)
    return Repair(found.names, found.score) if found else None


def outcome_of(attempt: Attempt, repair: Repair | None = None) -> Outcome:
    """The outcome that a final attempt is."""
    arm, concept_id, sample = key_of(attempt)
    return Outcome(
        arm=arm,
        concept_id=concept_id,
        tier=attempt.tier and intern(attempt.tier),
        sample=sample,
        status=attempt.status,
        reason=attempt.reason and intern(attempt.reason),
        score=attempt.score,
        attempts=attempt.number,
        first_valid=attempt.status == "success" and attempt.number == 1,
        repair=repair,
    )
