"""The content of each figure, drawn with only the methods of a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm_eval.compare.summary import NO_TIER
from vllm_eval.report import chart_parts as parts
from vllm_eval.report.chart_parts import LABEL, MARKERS, MOST_ARMS, Axes, Colours, Figure, shorten
from vllm_eval.report.curve_chart import curve

Data = Mapping[str, Any]
"""`comparison.json`, or a part of it."""
Painter = Callable[[Figure, Colours], None]

MOST_LINES = 12
"""Up to so many cases, each is a line from baseline to student; above, a point of a scatter."""
MOST_MARKERS = 400
"""Up to so many points of an arm, each has its own marker; above, all are one path."""
MOST_TIERS, MOST_REASONS = 10, 10
"""How many of each are drawn; a note says how many are not."""
MOST_ROWS = 4
"""Up to so many rows, a figure has the usual height."""


@dataclass(frozen=True, slots=True)
class Series:
    """One adapter, or the baseline, over several runs."""

    name: str
    dates: Sequence[Any]
    """When each run began, as `datetime`."""
    means: Sequence[float | None]
    valid_rates: Sequence[float | None]


def painters(comparison: Data) -> dict[str, Painter]:
    """The figures with something to show, by name."""
    spread = comparison["distributions"].values()
    shown = (
        (curve, comparison["curve"]),
        (_paired, any(paired["pairs"] for paired in comparison["students"].values())),
        (_distribution, any(sum(arm["counts"]) for arm in spread)),
        (_tiers, any(summary["total"] for summary in comparison["arms"].values())),
        (_attempts, comparison["attempts"]),
        (_failures, _of_arms(comparison)),
        (_throughput, comparison["timing"]["over_time"]["output_tokens_per_s"]),
    )
    some = (paint for paint, show in shown if show)
    return {p.__name__.removeprefix("_"): partial(p, comparison=comparison) for p in some}


def history(figure: Figure, colours: Colours, lines: Sequence[Series]) -> None:
    """Score above, validity below; the first line is the baseline's."""
    names = [line.name for line in lines[:MOST_ARMS]]
    note = parts.left_out(lines, MOST_ARMS).removeprefix("; ")
    above, below = parts.make_axes(figure, len(names) + bool(note), rows=2)
    for number, line in enumerate(lines[:MOST_ARMS]):
        style = parts.line_style(colours, number)
        above.plot(line.dates, parts.with_gaps(line.means), **style)
        below.plot(line.dates, parts.with_gaps(line.valid_rates), **style)
    above.set_ylabel("mean score")
    below.set_ylabel("valid")
    parts.as_percent(below)
    below.tick_params(axis="x", rotation=30)
    parts.add_legend(figure, above.get_lines(), names, note)


def _paired(figure: Figure, colours: Colours, comparison: Data) -> None:
    students = list(parts.drawn(comparison, comparison["students"]))
    most = max(paired["pairs"] for paired in comparison["students"].values())
    few = most <= MOST_LINES and len(comparison["students"]) <= MOST_LINES // 3
    (_draw_lines if few else _draw_scatter)(figure, colours, comparison, students)


def _draw_lines(figure: Figure, colours: Colours, comparison: Data, students: list[str]) -> None:
    """Each case is a line from the baseline's score to the student's."""
    (axes,) = parts.make_axes(figure, 0)
    ticks: list[str] = []
    for number, student in enumerate(students):
        left = 3 * number
        for one, two in _pairs(comparison, student):
            axes.plot((left, left + 1), (one, two), color=colours.grid, linewidth=1.2, zorder=1)
        for place, arm in ((left, 0), (left + 1, number + 1)):
            scores = [pair[place - left] for pair in _pairs(comparison, student)]
            marker = MARKERS[arm % len(MARKERS)]
            axes.plot([place] * len(scores), scores, marker, color=colours.arm(arm), zorder=2)
        ticks += [comparison["students"][student]["baseline"], student]
    places = [place for number in range(len(students)) for place in (3 * number, 3 * number + 1)]
    width = max(8, 2 * LABEL // len(places))
    axes.set_xticks(places, [shorten(name, width) for name in ticks])
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.15)
    axes.set_ylabel("score of each case")


def _draw_scatter(figure: Figure, colours: Colours, comparison: Data, students: list[str]) -> None:
    """Each case is a point, above the solid line if the student is better."""
    note, places = parts.of_how_many(comparison["students"]), parts.drawn(comparison, students)
    (axes,) = parts.make_axes(figure, len(students) + 2 + bool(note))
    shown, least = [], 1.0
    for student in students:
        pairs, number = _pairs(comparison, student), places[student]
        least = min([least, *(score for pair in pairs for score in pair)])
        shown.append(_points(axes, pairs, number, colours.arm(number)))
    low = max(0.0, least - 0.05)
    ends = (low, 1.0)
    same = axes.plot(ends, ends, color=colours.text, linewidth=1)
    names = [*students, "equal scores"]
    ratio = _threshold(comparison, "ratio")
    if ratio is not None:
        same += axes.plot(ends, [ratio * end for end in ends], color=colours.text, linestyle="--")
        names.append(f"gate: {ratio:g} x baseline's mean")
    axes.set_xlim(low, 1.01)
    axes.set_ylim(low, 1.01)
    axes.set_xlabel(f"baseline score ({_counted(comparison, students)})")
    axes.set_ylabel("student score")
    parts.add_legend(figure, [*shown, *same], names, note)


def _counted(comparison: Data, students: Sequence[str]) -> str:
    if comparison["cases_sampled"]:
        points = max(len(_pairs(comparison, student)) for student in students)
        return f"sample of {points:,}, with the largest losses"
    if len(students) > 1:
        return "cases valid in both"
    paired = comparison["students"][students[0]]
    return f"{paired['pairs']:,} of {paired['cases']:,} cases, valid in both"


def _points(axes: Axes, pairs: Sequence[tuple[float, float]], number: int, colour: str) -> object:
    if len(pairs) <= MOST_MARKERS:
        marker = MARKERS[number % len(MARKERS)]
        scores = [[pair[side] for pair in pairs] for side in (0, 1)]
        (drawn,) = axes.plot(*scores, marker, color=colour, alpha=0.75, markeredgewidth=0)
        return drawn
    across: list[float] = []
    up: list[float] = []
    for one, two in pairs:  # dots of one path: a marker each would be ten times the text
        across += [one, one + 1e-5, float("nan")]
        up += [two, two, float("nan")]
    cap = ("round", "projecting")[number % 2]
    (drawn,) = axes.plot(across, up, color=colour, alpha=0.6, linewidth=3, solid_capstyle=cap)
    return drawn


def _distribution(figure: Figure, colours: Colours, comparison: Data) -> None:
    """Counts by score, one row per arm; the line below spans the quartiles."""
    spread, drawn = comparison["distributions"], parts.drawn(comparison, comparison["arms"])
    figure.set_figheight(figure.get_figheight() * max(1, len(drawn) / MOST_ROWS))
    rows = parts.make_axes(figure, 1, rows=len(drawn))
    most = max(count for one in spread.values() for count in one["counts"])
    first = 1.0
    for axes, (arm, number) in zip(rows, drawn.items(), strict=True):
        one, colour = spread[arm], colours.arm(number)
        axes.stairs(one["counts"], one["edges"], fill=True, color=colour, alpha=0.75)
        axes.annotate(shorten(arm), (0, 1), (0, 3), "axes fraction", textcoords="offset points")
        axes.set_ylim(0, 1.05 * most)
        axes.locator_params(axis="y", integer=True, nbins=3)
        starts = (edge for edge, count in zip(one["edges"], one["counts"], strict=False) if count)
        first = min([first, *starts])
        if one["quartiles"]:
            low, middle, high = one["quartiles"]
            base: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot((low, high), (0, 0), color=colours.text, linewidth=3, **base)
            axes.plot((middle,), (0,), "o", color=colours.text, markersize=6, **base)
    rows[0].set_xlim(max(0.0, first - 0.05), 1.0)
    note = parts.of_how_many(comparison["arms"])
    note = f"; {note}" if note else ""
    rows[-1].set_xlabel(f"score (line: quartiles, point: median){note}", loc="right")


def _tiers(figure: Figure, colours: Colours, comparison: Data) -> None:
    """One row per tier, all tiers together on top."""
    arms, note = parts.drawn(comparison, comparison["arms"]), parts.of_how_many(comparison["arms"])
    tiers = sorted({tier for arm in arms for tier in comparison["tiers"][arm]} - {NO_TIER})
    rows = ["all", *tiers[:MOST_TIERS]]
    labels = [shorten(row, LABEL * 2 // 3) for row in rows]
    named = len(arms) + bool(note)
    left, right = parts.make_axes(figure, named, columns=2, left=parts.labels_width(labels))
    for place, (arm, number) in enumerate(arms.items()):
        found = comparison["tiers"][arm]
        summaries = [comparison["arms"][arm], *(found.get(tier) for tier in rows[1:])]
        step = 0.5 / max(1, len(arms) - 1)
        heights = [row + place * step - 0.25 for row in range(len(rows))]
        style = parts.line_style(colours, number) | {"linestyle": "none"}
        for axes, key in ((left, "mean"), (right, "valid_rate")):
            values = [part[key] if part else None for part in summaries]
            axes.plot(parts.with_gaps(values), heights, **style)
    left.set_yticks(range(len(rows)), labels)
    left.invert_yaxis()
    for axes in (left, right):
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlim(right=min(1.02, axes.get_xlim()[1]))
    left.set_xlabel(f"mean score{parts.left_out(tiers, MOST_TIERS)}")
    right.set_xlabel("valid")
    parts.as_percent(right, across=True)
    parts.add_legend(figure, left.get_lines(), list(arms), note)


def _attempts(figure: Figure, colours: Colours, comparison: Data) -> None:
    arms = parts.drawn(comparison, comparison["attempts"])
    note = parts.of_how_many(comparison["attempts"].keys() & comparison["arms"].keys())
    (axes,) = parts.make_axes(figure, len(arms) + 1 + bool(note))
    for arm, number in arms.items():
        steps = comparison["attempts"][arm]["by_attempt"]
        numbers = [step["attempt"] for step in steps]
        shares = [step["valid_by_then"] for step in steps]
        axes.plot(numbers, shares, **parts.line_style(colours, number))
    shown, names = list(axes.get_lines()), list(arms)
    least = _threshold(comparison, "valid_rate")
    if least is not None:
        shown.append(axes.axhline(least, color=colours.text, linestyle="--", linewidth=1))
        names.append(f"gate: {least:g}")
    most = max(len(comparison["attempts"][arm]["by_attempt"]) for arm in arms)
    axes.set_xlim(0.5, most + 0.5)
    axes.set_xticks(range(1, most + 1, 1 + most // 10))
    axes.set_xlabel("attempts")
    axes.set_ylabel("valid answers")
    axes.set_ylim(0, 1.03)
    parts.as_percent(axes)
    parts.add_legend(figure, shown, names, note)


def _failures(figure: Figure, colours: Colours, comparison: Data) -> None:
    """Bars of attempts by reason and arm, one piece per tier; solid if no attempt was left."""
    groups = _of_arms(comparison)
    failed = {group["arm"] for group in groups}
    arms, note = parts.drawn(comparison, failed), parts.of_how_many(failed, "that failed")
    order = list(arms)
    reasons = list(dict.fromkeys(group["reason"] for group in groups))
    labels = [shorten(reason, LABEL + 8) for reason in reasons[:MOST_REASONS]]
    named = len(arms) + bool(note)
    (axes,) = parts.make_axes(figure, named, left=parts.labels_width(labels))
    rows = {reason: row for row, reason in enumerate(reasons[:MOST_REASONS])}
    height = 0.8 / len(arms)
    shown: dict[str, object] = {}
    for key, alpha in (("attempts", 0.4), ("outcomes", 1.0)):
        ends: dict[tuple[str, str], int] = {}
        for group in groups:
            reason, arm = group["reason"], group["arm"]
            if reason not in rows or arm not in arms:
                continue
            start, number = ends.get((reason, arm), 0), arms[arm]
            place = rows[reason] + height * (order.index(arm) + 0.5) - 0.4
            bar = axes.barh(place, group[key], height, left=start, color=colours.arm(number))
            hatched = (number + number // len(colours.arms)) % 2  # where colours repeat, the other
            bar[0].set(alpha=alpha, edgecolor="none", hatch="//" if hatched else None)
            shown.setdefault(arm, bar)
            ends[reason, arm] = start + group[key]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", integer=True)
    more = parts.left_out(reasons, MOST_REASONS)
    axes.set_xlabel(f"attempts (solid: last attempt){more}", loc="right")
    order = [arm for arm in order if arm in shown]
    parts.add_legend(figure, [shown[arm] for arm in order], order, note)


def _of_arms(comparison: Data) -> list[Data]:
    """The failures of all arms; no figure shows constrained variants."""
    return [group for group in comparison["failures"] if group["arm"] in comparison["arms"]]


def _throughput(figure: Figure, colours: Colours, comparison: Data) -> None:
    above, below = parts.make_axes(figure, 2, rows=2)
    made = comparison["timing"]["over_time"]
    width = made["width_s"]
    edges = [width * number for number in range(len(made["output_tokens_per_s"]) + 1)]
    above.stairs(made["output_tokens_per_s"], edges, color=colours.text, linewidth=1.2)
    above.set_ylabel("output tokens/s")
    every = below.stairs(made["requests_per_s"], edges, color=colours.text, linewidth=1.2)
    again = below.stairs(made["retries_per_s"], edges, fill=True, color=colours.text, alpha=0.45)
    below.set_ylabel("attempts/s")
    below.set_xlabel("seconds since the first request")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(parts.short_number)
        axes.locator_params(axis="y", nbins=4)
    figure.align_ylabels((above, below))
    parts.add_legend(figure, [every, again], ["all attempts", "of these retries"])


def _pairs(comparison: Data, student: str) -> list[tuple[float, float]]:
    """Scores of baseline and student for the cases that both answered validly."""
    baseline = comparison["students"][student]["baseline"]
    cells = ((row["arms"].get(baseline), row["arms"].get(student)) for row in comparison["cases"])
    scores = ((one["score"], two["score"]) for one, two in cells if one and two)
    return [(one, two) for one, two in scores if one is not None and two is not None]


def _threshold(comparison: Data, kind: str) -> float | None:
    """The value of the first rule of that kind."""
    rules = (rule for verdict in comparison["verdicts"] for rule in verdict["rules"])
    return next((rule["threshold"] for rule in rules if rule["kind"] == kind), None)
