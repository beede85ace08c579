"""Every case with what each arm made of it, and how the scores spread: for tables and plots."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from vllm_eval.compare.summary import Comparison
from vllm_eval.records import Outcome, Status

BINS = 20
"""Stretches of equal width into which [0, 1] is divided."""
MOST_ROWS = 2_000
"""Of more cases than these a sample is shown: no reader looks at all of them."""
MOST_FAILED, MOST_LOSSES = 1_000, 200
"""Rows of the sample that failures may take, and the largest losses against the baseline."""


@dataclass(frozen=True, slots=True)
class CaseCell:
    """What one arm made of one case; counts are of its samples."""

    status: Status
    """The worst of its samples: `error`, then `format_error`, then `success`."""
    reason: str | None
    """Of the first sample that has that status."""
    score: float | None
    """Mean of the valid samples; None if there is none."""
    samples: int
    valid: int
    first_valid: int
    attempts: int
    difference: float | None = None
    """Score less the baseline's; None for the baseline, and where either has none."""
    repairs: tuple[str, ...] = ()
    """What would make failed samples keep the contract; they count as failed all the same."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One case, all arms."""

    concept_id: str
    tier: str | None
    arms: Mapping[str, CaseCell]
    """Without the arms that have not answered it yet."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The cases' scores of one arm."""

    edges: tuple[float, ...]
    """Ends of the stretches, one more than counts; the last stretch holds its upper end too."""
    counts: tuple[int, ...]
    quartiles: tuple[float, float, float] | None
    """Linear between the values (Hyndman & Fan 1996, definition 7); None of fewer than two."""


def case_rows(
    outcomes: Sequence[Outcome], comparison: Comparison, order: Mapping[str, int], baseline: str
) -> list[CaseRow]:
    """One row a case, by `order`; differences are from the scores of the `baseline`.

    `comparison` is of these `outcomes`, and has the scores.
    """
    rows = []
    in_order = sorted(outcomes, key=lambda outcome: order[outcome.concept_id])
    for case, found in groupby(in_order, key=lambda outcome: outcome.concept_id):
        arms: dict[str, list[Outcome]] = {}
        for outcome in found:
            arms.setdefault(outcome.arm, []).append(outcome)
        scores = {arm: comparison.cases[arm][case].score for arm in arms}
        base = scores.get(baseline)
        cells = {
            arm: _cell(arms[arm], scores[arm], None if arm == baseline else base)
            for arm in comparison.arms
            if arm in arms
        }
        rows.append(CaseRow(case, next(iter(arms.values()))[0].tier, cells))
    return rows


def sample_rows(rows: Sequence[CaseRow], examples: Collection[str] = ()) -> Sequence[CaseRow]:
    """At most `MOST_ROWS` of the rows, in their order.

    Cases that failed in an arm come first: those in `examples`, by their ids, the others evenly
    spread where they are too many. Then those that lose most against the baseline; the room that
    is left goes to all others, evenly spread.
    """
    if len(rows) <= MOST_ROWS:
        return rows
    failed = [n for n, row in enumerate(rows) if not _succeeded(row)]
    named = set(examples)
    taken = set(_spread([n for n, row in enumerate(rows) if row.concept_id in named], MOST_FAILED))
    taken |= set(_spread([n for n in failed if n not in taken], MOST_FAILED - len(taken)))
    losses = (
        (loss, n) for n, row in enumerate(rows) if n not in taken and (loss := _loss(row)) < 0
    )
    taken |= {n for _, n in heapq.nsmallest(MOST_LOSSES, losses)}
    others = [n for n, row in enumerate(rows) if n not in taken and _succeeded(row)]
    taken |= set(_spread(others, MOST_ROWS - len(taken)))
    return [rows[n] for n in sorted(taken)]


def distributions(comparison: Comparison) -> dict[str, Distribution]:
    """By arm, over the cases with a score."""
    return {
        arm: distribute([case.score for case in cases.values() if case.score is not None])
        for arm, cases in comparison.cases.items()
    }


def distribute(scores: Sequence[float]) -> Distribution:
    """Counts of scores in [0, 1], and their quartiles."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, int(score * BINS))] += 1
    edges = tuple(number / BINS for number in range(BINS + 1))
    quartiles = None
    if len(scores) > 1:
        low, middle, high = statistics.quantiles(scores, n=4, method="inclusive")
        quartiles = low, middle, high
    return Distribution(edges, tuple(counts), quartiles)


def _spread(places: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of the places, at equal distances."""
    if len(places) <= most:
        return places
    return [places[number * len(places) // most] for number in range(most)]


def _succeeded(row: CaseRow) -> bool:
    return all(cell.status == "success" for cell in row.arms.values())


def _loss(row: CaseRow) -> float:
    """The most negative difference; 0 where no arm lost."""
    return min((cell.difference or 0.0 for cell in row.arms.values()), default=0.0)


def _cell(rows: Sequence[Outcome], score: float | None, base: float | None) -> CaseCell:
    badness: dict[Status, int] = {"error": 0, "format_error": 1, "success": 2}
    worst = min(rows, key=lambda row: badness[row.status])
    return CaseCell(
        status=worst.status,
        reason=worst.reason,
        score=score,
        samples=len(rows),
        valid=sum(row.status == "success" for row in rows),
        first_valid=sum(row.first_valid for row in rows),
        attempts=sum(row.attempts for row in rows),
        difference=None if score is None or base is None else score - base,
        repairs=tuple(dict.fromkeys(n for row in rows if row.repair for n in row.repair.names)),
    )
