"""The students of a training run by step, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from vllm_eval.conclude.curve import Curve, Point
from vllm_eval.records import BASELINE
from vllm_eval.report.tables import COLOURS, new_table, number, value_and_ends
from vllm_eval.report.words import loss
from vllm_eval.text import plain


def curve_tables(curves: Sequence[Curve], best: str) -> Iterator[Table | Text]:
    """A row for each checkpoint of each training run; `best` leads the ranking, if it is final."""
    for curve in curves:
        yield _table(curve, best)
        if curve.note:
            yield Text(f"no losses: {plain(curve.note)}\n")


def _table(curve: Curve, best: str) -> Table:
    level = curve.points[0].mean_all.confidence
    title = f"Checkpoints of {curve.training}, with intervals at {level:g}"
    columns = ["mean (failures = 0)", "valid", "first try"]
    columns += ["loss", "eval loss"] if curve.losses else []
    table = new_table(title, right=["step"])
    table.add_column("arm", overflow="fold")
    for column in columns:
        table.add_column(column.replace(" (", "\n("), justify="right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("")
    base = curve.baseline
    rates = (_share(base["valid_rate"]), _share(base["first_try"]))
    table.add_row("", BASELINE, number(base["mean_all"]), *rates)
    for point in curve.points:
        table.add_row(*_cells(curve, point, best))
    return table


def _cells(curve: Curve, point: Point, best: str) -> Iterator[str | Text]:
    yield "end" if point.step is None else str(point.step)
    yield Text(plain(point.arm))
    yield "-" if point.mean_all.value is None else value_and_ends(point.mean_all)
    yield from (_share(rate.value) for rate in (point.valid_rate, point.first_try_rate))
    if curve.losses:
        yield from map(loss, (point.loss, point.eval_loss))
    yield Text(point.word, COLOURS[point.word])
    yield "selected" if point.selected else "best" if point.arm == best else ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
