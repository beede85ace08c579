"""From trials to medians, spreads and ratios."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vllm_eval.bench.roofline import Limit, Speed
from vllm_eval.bench.work import Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.bench.trial import Trial

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some measurements, and the least and greatest of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant's figures over all repeats."""

    name: str
    seconds: Spread
    cpu_s: Spread
    output_tokens_per_s: Spread
    ratio: Spread
    """Seconds over those of the reference in the same repeat."""
    cpu_ratio: Spread
    """The same of processor time, which other processes disturb less; idle waiting is not in it."""
    grading_share: float
    """Median over repeats of grading as a share of the trial."""


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest; at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rotated(items: Sequence[_T], by: int) -> list[_T]:
    """The same order, begun `by` places later: nobody is always first."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def tabulate(trials: Mapping[str, Sequence[Trial]], reference: str) -> list[Row]:
    """A row for each contestant.

    Args:
        trials: by contestant, one for each repeat, in the same order for all.
        reference: the contestant all are held against.
    """
    against = trials[reference]
    return [
        Row(
            name,
            seconds=spread([trial.seconds for trial in done]),
            cpu_s=spread([trial.cpu_s for trial in done]),
            output_tokens_per_s=spread([trial.output_tokens / trial.seconds for trial in done]),
            ratio=spread([t.seconds / b.seconds for t, b in zip(done, against, strict=True)]),
            cpu_ratio=spread(
                [t.cpu_s / max(b.cpu_s, 1e-9) for t, b in zip(done, against, strict=True)]
            ),
            grading_share=statistics.median(t.grading_s / t.seconds for t in done),
        )
        for name, done in trials.items()
    ]


def unequal(trials: Mapping[str, Sequence[Trial]]) -> str | None:
    """Who did other work than the first contestant, or None: then times can be compared."""
    sizes = {
        name: {(t.requests, t.prompt_tokens, t.output_tokens) for t in done}
        for name, done in trials.items()
    }
    first, expected = next(iter(sizes.items()))
    for name, found in sizes.items():
        if found != expected or len(found) != 1:
            words = "(requests, prompt tokens, output tokens)"
            return f"{name} did {sorted(found)} {words}, {first} {sorted(expected)}"
    return None


@dataclass(frozen=True, slots=True)
class Benched:
    """A finished benchmark."""

    folder: Path
    rows: tuple[Row, ...]
    reference: str
    work: Work
    size: Trial
    """One of the reference's trials: requests and tokens that all contestants had."""
    starts: Mapping[str, Spread]
    """Seconds to an open engine, by contestant; those in one engine share it."""
    speed: Speed | None
    limits: Mapping[str, Limit]
    """By contestant; without those whose model is not known well enough."""
