"""The one drawing of a benchmark: how long each contestant took, every trial shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.bench.session import Benched

BLUE, GREY = "#0072b2", "#595959"
"""Okabe and Ito's blue, told apart by colour-blind eyes, and a grey dark enough to read."""


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
