"""Failed answers mended: repaired, parsed, checked and scored once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.tasks.repair import repair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_eval.records import Case
    from vllm_eval.tasks import Task
    from vllm_eval.tasks.declaration import Declaration, Value


@dataclass(frozen=True, slots=True)
class Mended:
    """A failed answer that keeps the contract after a repair."""

    names: tuple[str, ...]
    text: str
    score: float | None
    parts: Mapping[str, float]


def mend(task: Task, case: Callable[[], Case], text: str, *, ended: bool) -> Mended | None:
    """An answer that failed, after a repair; None where none makes it keep the contract.

    Args:
        task: by which it is graded, as strictly as before.
        case: reads the case that was asked about, where there is something to grade.
        text: the answer.
        ended: whether it ended by itself; false where it was cut, or that is not known.
    """
    declaration = task.declaration
    if not task.grades:  # a stored run's own module is not run
        return None
    found = repair(text, tuple(declaration.blocks), keys_of(declaration), ended=ended)
    if not found.names:
        return None
    graded = task.grade(case(), found.text)
    if graded.problem is not None:
        return None
    return Mended(found.names, found.text, graded.score, graded.parts)


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
