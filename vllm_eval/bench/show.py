"""A benchmark's table and lines for a terminal. Nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vllm_eval.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_eval.bench.figures import Benched, Row, Spread
    from vllm_eval.bench.roofline import Limit, Speed

BLUE, GREY = "#0072b2", "#595959"
"""Okabe and Ito's blue, told apart by colour-blind eyes, and a grey dark enough to read."""


def bench_tables(done: Benched) -> Iterator[Table | Text]:
    """What was done, who took how long, and how far the machine's limit is."""
    size = done.size
    yield Text(
        f"each trial: {size.requests} requests ({size.retries} retries), "
        f"{size.prompt_tokens:,} prompt tokens, {size.output_tokens:,} output tokens, "
        "the same for all"
    )
    title = f"Medians, least and greatest; ratios to {plain(done.reference)} in the same repeat"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE)
    table.add_column("contestant", overflow="fold")
    columns = ("seconds", "range", "tokens/s", "ratio", "range", "start s", "grading", "of limit")
    for column in columns:
        table.add_column(column, justify="right")
    for row in done.rows:
        table.add_row(*_cells(done, row))
    yield table
    limit = done.limits.get(done.reference)
    if limit is not None and done.speed is not None:
        yield from _roofline(limit, done.speed)


def _cells(done: Benched, row: Row) -> list[Text]:
    limit = done.limits.get(row.name)
    words = [
        plain(row.name),
        f"{row.seconds.median:.2f}",
        _range(row.seconds, ".2f"),
        f"{row.output_tokens_per_s.median:,.0f}",
        f"{row.ratio.median:.3f}",
        _range(row.ratio, ".3f"),
        f"{done.starts[row.name].median:.1f}",
        f"{row.grading_share:.2%}",
        "-" if limit is None else f"{limit.least_s / row.seconds.median:.1%}",
    ]
    return [Text(word) for word in words]


def _roofline(limit: Limit, speed: Speed) -> Iterator[Text]:
    yield Text(
        f"measured: {speed.device}, {speed.threads} threads, {speed.bytes_per_s / 1e9:.1f} GB/s "
        f"copied, {speed.flops_per_s / 1e9:,.0f} GFLOP/s in {speed.dtype}"
    )
    yield Text(
        f"roofline: a step of {limit.batch} sequences moves {limit.step_bytes / 1e6:,.1f} MB and "
        f"computes {limit.step_flops / 1e9:,.2f} GFLOP, bound by {limit.bound}: at most "
        f"{limit.tokens_per_s:,.0f} output tokens/s, prompts {limit.prefill_s:.2f} s, "
        f"all {limit.least_s:.2f} s"
    )


def _range(value: Spread, form: str) -> str:
    return f"{value.low:{form}}-{value.high:{form}}"


def draw(done: Benched, path: Path) -> None:
    """Write `path` with the endings `.svg` and `.png`: bars of medians, lines from least to most.

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
        axes.barh(
            places, middle, xerr=[least, most], color=BLUE, ecolor=GREY, capsize=4, height=0.6
        )
        for place, row in zip(places, rows, strict=True):
            text = f" {row.seconds.median:.2f} s, ratio {row.ratio.median:.2f}"
            axes.text(row.seconds.high, place, text, va="center", fontsize=9)
        axes.set_yticks(places, [row.name for row in rows])
        axes.set_xlim(0, 1.35 * max(row.seconds.high for row in rows))
        axes.set_xlabel("seconds of a trial: median, least to greatest")
        axes.set_title(
            f"{done.size.requests} requests, {done.size.output_tokens:,} output tokens each trial",
            fontsize=10,
            loc="left",
        )
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        plt.close(figure)
