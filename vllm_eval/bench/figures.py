"""Trials become medians, ranges and ratios, a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from rich.text import Text

from vllm_eval.bench.roofline import Limit, Speed
from vllm_eval.bench.trial import Trial, Work
from vllm_eval.report.tables import new_table
from vllm_eval.text import plain

_T = TypeVar("_T")
BLUE, GREY = "#0072b2", "#595959"
"""Okabe and Ito's blue, which colour-blind readers can distinguish, and a dark grey."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum of some measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Timed:
    """One contestant's figures over all repeats."""

    name: str
    seconds: Spread
    cpu_s: Spread
    output_tokens_per_s: Spread
    ratio: Spread
    """Seconds over those of the reference in the same repeat."""
    cpu_ratio: Spread
    """The same for processor time: without idle waiting, and less disturbed by other processes."""
    grading_share: float
    """Share of a trial spent on grading; the median over the repeats."""


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rotated(items: Sequence[_T], by: int) -> list[_T]:
    """The same order, started `by` places later, so that no contestant is always first."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def tabulate(trials: Mapping[str, Sequence[Trial]], reference: str) -> list[Timed]:
    """A row for each contestant, compared with `reference`; `trials` has one for each repeat."""
    against = trials[reference]
    return [
        Timed(
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
    """Which contestant did different work from the first; None if the times are comparable."""
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
    rows: tuple[Timed, ...]
    reference: str
    work: Work
    size: Trial
    """One of the reference's trials: requests and tokens that all contestants had."""
    starts: Mapping[str, Spread]
    """Seconds to an open engine, by contestant; those in one engine share it."""
    speed: Speed | None
    limits: Mapping[str, Limit]
    """By contestant, for those whose model is known well enough."""


def bench_tables(done: Benched) -> Iterator[Table | Text]:
    """The work, how long each contestant took, and how far it is from the machine's limit."""
    size = done.size
    yield Text(
        f"each trial: {size.requests} requests ({size.retries} retries), "
        f"{size.prompt_tokens:,} prompt tokens, {size.output_tokens:,} output tokens, "
        "the same for all"
    )
    columns = ("seconds", "range", "tokens/s", "ratio", "range", "start s", "grading", "of limit")
    title = f"Medians and ranges; ratios to {plain(done.reference)} within each repeat"
    table = new_table(title, "contestant", right=columns)
    table.columns[0].overflow = "fold"
    for row in done.rows:
        table.add_row(*_cells(done, row))
    yield table
    limit, speed = done.limits.get(done.reference), done.speed
    if limit is not None and speed is not None:
        yield Text(
            f"measured: {speed.device}, {speed.threads} threads, {speed.bytes_per_s / 1e9:.1f} "
            f"GB/s copied, {speed.flops_per_s / 1e9:,.0f} GFLOP/s in {speed.dtype}"
        )
        yield Text(
            f"roofline: a step of {limit.batch} sequences moves {limit.step_bytes / 1e6:,.1f} MB "
            f"and computes {limit.step_flops / 1e9:,.2f} GFLOP, bound by {limit.bound}: at most "
            f"{limit.tokens_per_s:,.0f} output tokens/s, prompts {limit.prefill_s:.2f} s, "
            f"all {limit.least_s:.2f} s"
        )


def _cells(done: Benched, row: Timed) -> list[Text]:
    limit = done.limits.get(row.name)
    words = [
        plain(row.name),
        f"{row.seconds.median:.2f}",
        f"{row.seconds.low:.2f}-{row.seconds.high:.2f}",
        f"{row.output_tokens_per_s.median:,.0f}",
        f"{row.ratio.median:.3f}",
        f"{row.ratio.low:.3f}-{row.ratio.high:.3f}",
        f"{done.starts[row.name].median:.1f}",
        f"{row.grading_share:.2%}",
        "-" if limit is None else f"{limit.least_s / row.seconds.median:.1%}",
    ]
    return [Text(word) for word in words]


def draw(done: Benched, path: Path) -> None:
    """Write `path` as `.svg` and `.png`: bars for medians, lines from minimum to maximum.

    The files are the same for the same figures: no date, no random names.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    rows = done.rows[::-1]  # drawn from below
    places = range(len(rows))
    settings: dict[str, Any] = {"svg.hashsalt": "bench", "svg.fonttype": "none"}
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(figsize=(8, 1.4 + 0.45 * len(rows)), layout="constrained")
        middle = [row.seconds.median for row in rows]
        least = [row.seconds.median - row.seconds.low for row in rows]
        most = [row.seconds.high - row.seconds.median for row in rows]
        bars: dict[str, Any] = {"color": BLUE, "ecolor": GREY, "capsize": 4, "height": 0.6}
        axes.barh(places, middle, xerr=[least, most], **bars)
        for place, row in zip(places, rows, strict=True):
            text = f" {row.seconds.median:.2f} s, ratio {row.ratio.median:.2f}"
            axes.text(row.seconds.high, place, text, va="center", fontsize=9)
        axes.set_yticks(places, [row.name for row in rows])
        axes.set_xlim(0, 1.35 * max(row.seconds.high for row in rows))
        axes.set_xlabel("seconds per trial: median, minimum to maximum")
        size = f"{done.size.requests} requests, {done.size.output_tokens:,} output tokens"
        axes.set_title(f"{size} each trial", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        plt.close(figure)
