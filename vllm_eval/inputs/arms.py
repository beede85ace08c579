"""The arms of a comparison: each adapter that was given, under a name that tells it apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from vllm_eval.config.settings import PACKAGE, Config, file_name
from vllm_eval.errors import AdapterError, InputError
from vllm_eval.inputs.adapter_folders import Found, Note, find_adapters
from vllm_eval.inputs.adapters import read_adapter
from vllm_eval.inputs.checkpoints import step_in_name
from vllm_eval.records import BASELINE, Adapter, Arm

MAX_NAME = 100
"""Characters; an arm's name becomes part of file names."""
MAX_LABEL = 80
"""Characters of a run's name, without its time."""
JOINED = 3
"""Most adapters that a run's name has one by one."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms that could be made, and what is to be said of them."""

    arms: tuple[Arm, ...]
    """The baseline first."""
    notes: tuple[Note, ...]
    problems: tuple[InputError, ...]
    """Why others could not."""


@dataclass(frozen=True, slots=True)
class _Student:
    found: Found
    adapter: Adapter | None
    """Not named yet; None where there are no files of it."""
    source: int
    """Which of what was given it came from."""


def open_arms(config: Config) -> Arms:
    """The baseline and one arm per adapter; a problem for each that cannot be found or used."""
    notes: list[Note] = []
    problems: list[InputError] = []

    def tried(call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        except InputError as problem:
            problems.append(problem)
            return None

    if not config.adapters:
        problems.append(
            AdapterError("adapters: none given, nothing to compare; give --adapter NAME")
        )
    students: list[_Student] = []
    for source, given in enumerate(config.adapters):
        for one in tried(partial(_find, given, config, notes)) or ():
            students += filter(None, [tried(partial(_read, one, source))])
    students = tried(partial(_each_once, _by_step(students), notes)) or []
    names = tried(partial(arm_names, [student.found for student in students])) or []
    arms = [Arm(BASELINE), *map(_arm, students[: len(names)], names)]
    return Arms(tuple(arms), tuple(notes), tuple(problems))


def run_label(arms: Sequence[Arm]) -> str:
    """What a run of these arms is called where no tag is given: what it compares."""
    students = [arm for arm in arms if arm.name != BASELINE and arm.variant_of is None]
    trainings = {arm.adapter.training if arm.adapter else None for arm in students}
    names = [file_name(arm.name) for arm in students]
    training = trainings.pop() if len(names) > 1 and len(trainings) == 1 else None
    if training and training.name:
        return file_name(training.name)[:MAX_LABEL]
    joined = "_vs_".join(names)
    if len(names) <= JOINED and len(joined) <= max(MAX_LABEL, len(names[0])):
        return joined
    more = f"_and_{len(names) - 1}_more"
    return names[0][: MAX_LABEL - len(more)] + more


def arm_names(found: Sequence[Found]) -> list[str]:
    """A name for each: the last part of its path, with as many before it as tell it apart.

    Members of one training run get theirs together. Names differ in the names of their files too,
    on file systems that ignore case.

    Raises:
        AdapterError: a name cannot name files, or two are the same whatever is put before them.
    """
    above = [0] * len(found)
    """Parts before the last one."""
    while True:
        names = [_name(one, more) for one, more in zip(found, above, strict=True)]
        keys = [file_name(name).casefold() for name in names]
        counted = Counter([BASELINE, *keys])
        same = [place for place, key in enumerate(keys) if counted[key] > 1]
        growing = {
            found[place].training or place
            for place in same
            if _name(found[place], MAX_NAME) != names[place] and found[place].name is None
        }
        if not growing:
            break
        for place, one in enumerate(found):
            above[place] += (one.training or place) in growing
    if same:
        raise _same_name(found, [place for place in same if keys[place] == keys[same[0]]])
    for one, name in zip(found, names, strict=True):
        _refuse_name(one, name)
    return names


def _same_name(found: Sequence[Found], same: Sequence[int]) -> AdapterError:
    name, given = _name(found[same[0]], 0), [found[place].given for place in same[:2]]
    why = f"two arms would be called {name!r} ({', '.join(given)})"
    if len(given) == 1:
        why = f"{given[0]!r} would be called {name!r}, as the base model is"
    return AdapterError(f"adapters: {why}; give another name with --adapter NAME=PATH")


def _name(one: Found, above: int) -> str:
    """With so many parts of the path before the last; a run's end has the run's name already."""
    if one.name is not None:
        return one.name
    parts = one.parts[-max(1, above + (not one.final)) :]
    return "/".join(map(file_name, parts))


def _refuse_name(one: Found, name: str) -> None:
    if one.name is not None and file_name(name) != name:
        msg = f"adapters: {name + '=' + one.given!r}: {name!r} cannot name files"
        raise AdapterError(f"{msg}; use letters, digits, '.', '_' and '-'")
    if not name.strip("./") or len(name) > MAX_NAME:
        msg = f"adapters: {one.given!r} cannot name files (1 to {MAX_NAME} characters)"
        raise AdapterError(f"{msg}; give --adapter NAME=PATH")


def _find(given: str, config: Config, notes: list[Note]) -> list[Found]:
    if not given.strip("/ ").removeprefix(PACKAGE):
        raise AdapterError(f"adapters: {given!r} is not a name; give --adapter NAME")
    return find_adapters(given, config, notes)


def _read(one: Found, source: int) -> _Student:
    if one.folder is None:
        return _Student(one, None, source)
    adapter = read_adapter(one.parts[-1], one.folder)
    return _Student(one, replace(adapter, step=one.step, training=one.training), source)


def _by_step(students: Sequence[_Student]) -> list[_Student]:
    """With the members of each training run in the order they were saved, among themselves."""
    runs: dict[Path, list[_Student]] = {}
    for student in students:
        if student.found.training:
            runs.setdefault(student.found.training, []).append(student)
    queues = {run: iter(sorted(members, key=_saved)) for run, members in runs.items()}
    return [next(queues[s.found.training]) if s.found.training else s for s in students]


def _saved(student: _Student) -> tuple[bool, bool, int]:
    step = student.found.step
    return student.found.final, step is None, step or 0


def _each_once(students: Sequence[_Student], notes: list[Note]) -> list[_Student]:
    """Without the copies that trainers leave: often the end of a run is its last checkpoint.

    Raises:
        AdapterError: the same adapter was given twice.
    """
    kept: dict[str, _Student] = {}
    for place, student in enumerate(students):
        content = student.adapter.content if student.adapter else str(place)
        first = kept.setdefault(content, student)
        if first is student:
            continue
        one, other = first.found, student.found
        if first.source != student.source:
            same = f"is the same adapter as {one.given!r}"
            msg = f"adapters: {other.given!r} {'comes twice' if one.given == other.given else same}"
            raise AdapterError(f"{msg}, so it would be compared with itself; leave one out")
        what = f"{other.given}: is the same adapter as {one.parts[-1]}, so it is left out"
        unchanged = not other.final and step_in_name(other.parts[-1]) is not None
        notes.append(Note(what, "did training change it?" if unchanged else ""))
    return list(kept.values())


def _arm(student: _Student, name: str) -> Arm:
    if student.adapter is None:
        return Arm(name, given=student.found.given)
    return Arm(name, replace(student.adapter, name=name))
