"""The baseline's answers of an earlier run: whether they may be taken, and which.

The run may be anyone's. Nothing of it is executed and no link is followed; its lines must be what
an evaluation writes, and its answers are graded again: a grade that differs refuses the run.
"""

from __future__ import annotations

import itertools
import math
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from vllm_eval.config.settings import resolve_path
from vllm_eval.engines.base_canary import BaseAnswers, from_json
from vllm_eval.errors import EvalError, InputError
from vllm_eval.inputs.cases import read_cases
from vllm_eval.inputs.plan import Draft, Plan, complete
from vllm_eval.preflight.engine_release import other_engine
from vllm_eval.preflight.finding import Finding, from_error, ok
from vllm_eval.preflight.reused import CANARY, Reused, read_reused, reused_from_json
from vllm_eval.records import BASELINE, Attempt, Case, Key
from vllm_eval.store import manifest
from vllm_eval.store.folder import JOURNAL, find_run
from vllm_eval.store.journal import attempt_at, key_of, read_journal
from vllm_eval.tasks import Task

FREE = frozenset(("adapters", "max_samples"))
"""Keys of the identity that decide no answer of the baseline."""
BESIDE = frozenset(("constrain", "grammar"))
"""Nor do these, where constrained answers are asked beside the free ones in one run, and not in the
other."""
MOST_BYTES = 2**25
"""Of a manifest."""
LARGEST = 2**53
"""Any number in a line is smaller."""
PROBLEM = ("reason", "block", "line", "column", "key")
"""What an attempt takes unchanged from its answer's problem."""
ANEW = "leave out --baseline, and it is asked anew"
ONCE_MORE = "evaluate the baseline once more: leave out --baseline"


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier run with answers of the baseline that a plan can take."""

    plan: Plan
    folder: Path
    places: Mapping[Key, Sequence[int]]
    """Where in the journal the attempts of each such answer begin, in order."""
    itself: Reused
    """The run, with nothing copied yet."""
    before: Reused | None
    """Whose answers its own baseline's are, where it did not ask it itself."""
    base: BaseAnswers | None
    """What the base of its engine answered the canary; None without weights."""


def check_baseline(draft: Draft) -> list[Finding]:
    """How many answers of the named run can be used; every one of them is graded."""
    if draft.config.baseline is None or draft.problems:
        return []
    try:
        found = open_baseline(complete(draft))
        taken = sum(1 for _ in read_answers(found))
    except InputError as failed:
        return [from_error(failed)]
    return [ok("baseline", count(found, taken))]


def count(found: Baseline, taken: int) -> str:
    """How many of the answers needed can be taken."""
    wanted = len(_arms(found.plan)) * len(found.plan.dataset.drawn)
    wanted *= found.plan.config.samples_per_case
    anew = f", {wanted - taken} are asked anew" if taken < wanted else ""
    return f"{taken} of {wanted} answers of {found.folder} can be re-used{anew}"


def open_baseline(plan: Plan) -> Baseline:
    """Find the run that `config.baseline` names, and its answers to the cases of the plan.

    Raises:
        InputError: there is no such run, it cannot be used here, or has no answer to these cases.
    """
    config = plan.config
    named = str(resolve_path(config.baseline or ""))
    folder = find_run(named, str(resolve_path(config.output_dir)))
    for name in (manifest.FILE, JOURNAL):
        _refuse_link(folder / name)
    recorded = manifest.read(folder)
    if differ := _differences(recorded["identity"], manifest.identify(plan)):
        _refuse(folder, f"they were asked otherwise: {'; '.join(differ)}", f"ask alike, or {ANEW}")
    itself, before = _describe(folder, recorded), read_reused(recorded)
    if why := other_engine(plan, itself.engine):
        _refuse(folder, why, f"install the same, or {ANEW}")
    base = from_json(recorded.get(CANARY))
    if config.answering != "scripted" and base is None:
        why = (
            "it does not say what its base answered the canary: an earlier version wrote it, or "
            "its engine's starts disagree, or are too noisy"
        )
        _refuse(folder, why, ONCE_MORE)
    places = _find_answers(plan, folder / JOURNAL)
    if not places:
        _refuse(folder, "it has no answer of the baseline to any of these cases", ANEW)
    return Baseline(plan, folder, places, itself, before, base)


def _describe(folder: Path, recorded: Mapping[str, Any]) -> Reused:
    """What another run's manifest will say of this one."""
    about = {key: recorded.get(key) for key in ("started_at", "engine")}
    counts = dict.fromkeys(("answers", "attempts", "cases"), 0)
    told = {"run": folder.name, "path": str(folder.resolve()), **about, **counts}
    try:
        return reused_from_json(told)
    except InputError:
        _refuse(folder, "its manifest does not say which engine gave them, and when", ANEW)


def read_answers(found: Baseline) -> Iterator[list[Attempt]]:
    """All attempts of each answer, by case in the order drawn; one answer in memory at a time.

    They hold the grades that the plan's task gives them.

    Raises:
        InputError: an attempt is none of an evaluation like this one, or its grade was another.
    """
    path = found.folder / JOURNAL
    return (_checked(found.plan, path, *answer) for answer in _read_answers(found))


def _read_answers(found: Baseline) -> Iterator[tuple[Case, list[Attempt]]]:
    """Each answer as it stands in the journal, with its case."""
    plan, path = found.plan, found.folder / JOURNAL
    samples = range(plan.config.samples_per_case)
    with _told(path), path.open("rb") as file:
        for case in read_cases(plan.dataset):
            for arm, sample in itertools.product(_arms(plan), samples):
                places = found.places.get((arm, case.id, sample), ())
                attempts = [attempt_at(path, file, place) for place in places]
                if {key_of(attempt) for attempt in attempts} - {(arm, case.id, sample)}:
                    _damaged(path, case.id, "the journal has changed")
                if attempts:
                    yield case, attempts


def _arms(plan: Plan) -> list[str]:
    """The baseline, and its constrained variant where one is asked."""
    return [arm.name for arm in plan.arms if arm.model == BASELINE]


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    modes = {str(recorded.get("constrain")), str(now.get("constrain"))}
    free = FREE | BESIDE if modes == {"none", "beside"} else FREE
    kept = ({k: v for k, v in each.items() if k not in free} for each in (recorded, now))
    return manifest.differences(*kept)


def _find_answers(plan: Plan, path: Path) -> dict[Key, list[int]]:
    """Where the attempts of each whole answer begin; one that ended without text is not taken."""
    drawn = {case.id for case in read_cases(plan.dataset)}
    arms, samples = set(_arms(plan)), plan.config.samples_per_case
    places: dict[Key, list[int]] = {}
    ended: dict[Key, bool] = {}
    with _told(path):
        for place, attempt in read_journal(path):
            if attempt.arm not in arms or attempt.concept_id not in drawn:
                continue
            key = key_of(attempt)
            if key in ended or key[2] >= samples:
                _damaged(
                    path,
                    key[1],
                    "it has attempts after its last one, or of a sample that was not asked",
                )
            places.setdefault(key, []).append(place)
            if attempt.final:
                ended[key] = attempt.status != "error"
    return {key: found for key, found in places.items() if ended.get(key)}


def _checked(plan: Plan, path: Path, case: Case, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts of one answer with the grades of the plan's task."""
    graded, errors, most = [], 0, 1 + plan.config.retries
    for place, attempt in enumerate(attempts, start=1):
        errors += attempt.status == "error"
        last = place == len(attempts)
        in_order = (attempt.attempt, attempt.engine_errors) == (place, errors)
        whole = attempt.final == last and (last or attempt.status != "success")
        if not (in_order and whole and attempt.number <= most and _is_sound(attempt)):
            _damaged(path, case.id, f"attempt {place} cannot be of a run like this one")
        graded.append(_graded(plan.task, path, case, attempt))
    return graded


def _is_sound(attempt: Attempt) -> bool:
    """Whether every number can be one: JSON can hold what arithmetic cannot."""
    values = (getattr(attempt, field.name) for field in fields(attempt))
    numbers = [value for value in values if isinstance(value, int | float)]
    return all(math.isfinite(n) and abs(n) < LARGEST for n in numbers)


def _graded(task: Task, path: Path, case: Case, attempt: Attempt) -> Attempt:
    """The attempt with the task's grade of it, if status and score are those recorded."""
    if attempt.status == "error":
        return replace(attempt, tier=case.tier, score=None, parts={})
    grade = task.grade(case, attempt.raw_response)
    status = "format_error" if grade.problem else "success"
    if (status, grade.score) != (attempt.status, attempt.score):
        was = f"graded {attempt.status} with {attempt.score} there"
        what = f"case {case.id!r}: {was}, and {status} with {grade.score} here"
        _refuse(path, what, ONCE_MORE)
    found: dict[str, Any] = {name: getattr(grade.problem, name, None) for name in PROBLEM}
    found["error"] = getattr(grade.problem, "message", None)
    return replace(attempt, tier=case.tier, parts=grade.parts, **found)


def _refuse_link(path: Path) -> None:
    about = path.lstat() if path.exists() or path.is_symlink() else None
    if about is None or not stat.S_ISREG(about.st_mode):
        _refuse(path, "it is missing, or a link", ANEW)
    if path.name == manifest.FILE and about.st_size > MOST_BYTES:
        _refuse(path, f"it is larger than {MOST_BYTES:,} bytes", ANEW)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What cannot be read of the run is a wrong input."""
    try:
        yield
    except InputError:
        raise
    except EvalError as error:
        raise InputError(f"{error}; restore the file, or {ANEW}") from error
    except OSError as error:
        _refuse(path, f"it cannot be read: {error.strerror or error}", ANEW)


def _damaged(path: Path, case: str, why: str) -> NoReturn:
    _refuse(path, f"case {case!r}: {why}", ANEW)


def _refuse(where: Path, why: str, todo: str) -> NoReturn:
    raise InputError(f"baseline {where}: its answers cannot be re-used: {why}; {todo}")
