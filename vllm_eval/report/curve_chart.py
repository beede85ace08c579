"""The figure of the students by step: scores above, the trainer's losses below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vllm_eval.report import chart_parts as parts
from vllm_eval.report.chart_parts import MARKERS, Axes, Colours, Figure

_Draw = Callable[[Axes, Colours, float], object]
Data = Mapping[str, Any]
"""A curve of `comparison.json`, or a point of one."""

MOST_CURVES = 5
"""Training runs drawn, each in a colour of its own, and always with all of its points."""
FEW = 12
"""Up to so many points of a curve, their markers are large."""
HIGHER = 1.25
"""By which the figure is higher than others where there are losses to draw."""
END = 0.1
"""How far behind the last step of all the unknown step of an end stands, as a share of all."""


def curve(figure: Figure, colours: Colours, comparison: Data) -> None:
    """Mean with its interval, valid answers and baseline; below them the losses."""
    curves = comparison["curve"][:MOST_CURVES]
    logged = any(one["losses"] for one in curves)
    if logged:
        figure.set_figheight(HIGHER * figure.get_figheight())
    steps = [step for one in curves for step in _steps(one)]
    last = max(steps)
    end = last + END * (last - min(steps))
    names = [one["training"] for one in curves] if len(curves) > 1 else ["mean (failures = 0)"]
    names += [name for name, _ in _marks(curves)]
    above, *below = parts.make_axes(figure, len(names), rows=1 + logged)
    shown = [_scores(above, one, colours, n, end) for n, one in enumerate(curves, start=1)]
    shown += [draw(above, colours, end) for _, draw in _marks(curves)]
    above.set_ylabel("score, share")
    above.set_ylim(top=min(1.03, above.get_ylim()[1]))
    for axes in below:
        for number, one in enumerate(curves, start=1):
            _losses(axes, one, colours.arm(number))
        axes.set_ylabel("loss")
        axes.yaxis.set_major_formatter(parts.short_number)
        axes.locator_params(axis="y", nbins=4)
    lowest = below[0] if below else above
    ended = any(one["points"][-1]["step"] is None for one in curves)
    _label_steps(lowest, last, [end] if ended else [])
    more = parts.left_out(comparison["curve"], MOST_CURVES)
    below_it = " (below, points: evaluation loss)" if logged else ""
    lowest.set_xlabel(f"step{below_it}{more}", loc="right" if more else "center")
    figure.align_ylabels()
    parts.add_legend(figure, shown, names)


def _scores(axes: Axes, one: Data, colours: Colours, number: int, end: float) -> object:
    """The means of one training run with their intervals, and its shares of valid answers."""
    points, colour = one["points"], colours.arm(number)
    places = [_place(point, end) for point in points]
    means, low, high = (
        parts.with_gaps([point["mean_all"][key] for point in points])
        for key in ("value", "low", "high")
    )
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
    rates = parts.with_gaps([point["valid_rate"]["value"] for point in points])
    axes.plot(places, rates, color=colour, linestyle=":", linewidth=1.4)
    marker, size = MARKERS[number % len(MARKERS)], 6 if len(points) <= FEW else 3.5
    (line,) = axes.plot(places, means, color=colour, marker=marker, markersize=size)
    return line


def _marks(curves: Sequence[Data]) -> list[tuple[str, _Draw]]:
    """What helps to read the scores: its name in the legend, and what draws it."""
    found: list[tuple[str, _Draw]] = [("valid answers", _dots)]
    base, bounds = curves[0]["baseline"]["mean_all"], {one["bound"] for one in curves}
    if base is not None:
        found.append(("mean of the baseline", partial(_level, height=base, arm=0)))
    if len(bounds) == 1 and (bound := bounds.pop()) is not None:
        found.append((f"gate: {bound:.3f}", partial(_level, height=bound)))
    points = (point for one in curves for point in one["points"])
    found += [("selected", partial(_ring, point=point)) for point in points if point["selected"]]
    return found


def _dots(axes: Axes, colours: Colours, _end: float) -> object:
    return axes.plot([], [], linestyle=":", color=colours.text, linewidth=1.4)[0]


def _level(
    axes: Axes, colours: Colours, _end: float, *, height: float, arm: int | None = None
) -> object:
    if arm is None:
        return axes.axhline(height, color=colours.text, linestyle="-.", linewidth=1)
    return axes.axhline(height, color=colours.arm(arm), linestyle="--", linewidth=1.4)


def _ring(axes: Axes, colours: Colours, end: float, *, point: Data) -> object:
    style: dict[str, Any] = {"color": colours.text, "markerfacecolor": "none", "clip_on": False}
    place = [_place(point, end)], parts.with_gaps([point["mean_all"]["value"]])
    return axes.plot(*place, "o", markersize=12, **style)[0]


def _losses(axes: Axes, one: Data, colour: str) -> None:
    """The training loss as a line; the evaluation loss as points, joined by dashes."""
    for key, line, marker in (("loss", "-", ""), ("eval_loss", "--", "o")):
        rows = [row for row in one["losses"] if row[key] is not None]
        steps, values = [row["step"] for row in rows], [row[key] for row in rows]
        size = 4 if len(rows) <= FEW else 2.5
        style: dict[str, Any] = {"linestyle": line, "markersize": size}
        style["marker"] = marker if len(rows) > 1 else "o"  # one alone makes no line
        axes.plot(steps, values, color=colour, linewidth=1.2, **style)


def _label_steps(axes: Axes, last: float, ends: list[float]) -> None:
    """Round steps, and the `ends` whose step is not known."""
    axes.locator_params(axis="x", nbins=6, integer=True, steps=(1, 2, 2.5, 5, 10))
    left, _ = axes.get_xlim()
    ticks = [float(step) for step in axes.get_xticks() if max(0, left) <= step <= last]
    labels = [parts.short_number(step, 0) for step in ticks]
    axes.set_xticks([*ticks, *ends], [*labels, *("end" for _ in ends)])


def _place(point: Data, end: float) -> float:
    return end if point["step"] is None else float(point["step"])


def _steps(one: Data) -> list[float]:
    """Of what was compared, and of what was logged."""
    rows = (*one["points"], *one["losses"])
    return [float(row["step"]) for row in rows if row["step"] is not None]
