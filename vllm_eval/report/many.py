"""What a report shows of many students: a row each, and only some in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MANY = 4
"""Students of which each is shown in full; of more, each has a row, and the best is in full."""


def in_full(students: Sequence[str], selected: str | None = None) -> list[str]:
    """Which students, best first, a report shows in full: all, or the selected or best of many."""
    if len(students) <= MANY:
        return list(students)
    return [selected or students[0]]


def full_of(comparison: Mapping[str, Any]) -> list[str]:
    """`in_full` of a stored comparison."""
    students = [ranked["arm"] for ranked in comparison["ranking"]["students"]]
    return in_full(students, comparison["selected"] and comparison["selected"]["arm"])


def in_order(comparison: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Ranks and verdicts in the order of a report: as given, or of many what is in full first."""
    ranks = {ranked["arm"]: ranked["rank"] for ranked in comparison["ranking"]["students"]}
    found = [(ranks[verdict["arm"]], verdict) for verdict in comparison["verdicts"]]
    if len(found) <= MANY:
        return found
    full = full_of(comparison)
    return sorted(found, key=lambda one: (one[1]["arm"] not in full, one[0]))


def steps_of(comparison: Mapping[str, Any]) -> dict[str, int | None]:
    """The step of each student that is a point of a curve."""
    return {p["arm"]: p["step"] for curve in comparison["curve"] for p in curve["points"]}


FILTERS = {"full_of": full_of, "in_order": in_order, "steps_of": steps_of}
"""For the templates."""
