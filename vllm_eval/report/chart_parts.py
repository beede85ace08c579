"""Shared parts of the figures: markers, colours, shortened names, axes, legends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.cells import cell_len

from vllm_eval.compare.summary import NO_TIER
from vllm_eval.records import BASELINE
from vllm_eval.text import plain

if TYPE_CHECKING:
    import matplotlib.figure


Axes: TypeAlias = "matplotlib.axes.Axes"
Figure: TypeAlias = "matplotlib.figure.Figure"

SIZE = (5.0, 3.3)
"""Inches; small, so that the text stays readable when a phone shrinks the figure."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
MOST_ARMS = 8
"""How many are drawn where each has a mark of its own."""
LABEL = 24
"""Characters of a name that are shown."""
CHARACTER, ROW = 0.0165, 0.062
"""Width of a character and height of a legend's row, as shares of a figure of `SIZE`."""
NUMBERS = 0.145
"""Share of the figure's width for the numbers and the name of an axis."""


@dataclass(frozen=True, slots=True)
class Colours:
    """As matplotlib expects them."""

    text: str
    grid: str
    arms: tuple[str, ...]

    def arm(self, number: int) -> str:
        """Of the arm with this index; the baseline has 0."""
        return self.arms[number % len(self.arms)]


def shorten(name: str, width: int = LABEL) -> str:
    """A name on one line; a long one loses its middle, because names differ at their ends."""
    name = plain(name).strip() or NO_TIER
    if len(name) <= width:
        return name
    tail = width // 2 - 1
    return f"{name[: width - tail - 1]}…{name[-tail:]}"


def make_axes(
    figure: Figure, names: int, rows: int = 1, columns: int = 1, left: float = NUMBERS
) -> list[Axes]:
    """Axes with room for a legend of these names above and for labels on the left.

    Estimated, because letting matplotlib measure everything takes twice the time.
    """
    higher = figure.get_figheight() / SIZE[1]
    top, bottom = 1 - (0.04 + ROW * ((names + 1) // 2)) / higher, 0.15 / higher
    place = {"left": left, "right": 0.97, "bottom": bottom, "top": top}
    place |= {"hspace": 0.35, "wspace": 0.2}
    grid = figure.subplots(
        rows, columns, squeeze=False, sharex=rows > 1, sharey=columns > 1, gridspec_kw=place
    )
    return [axes for row in grid for axes in row]


def labels_width(labels: Sequence[str]) -> float:
    """Width of the longest label of an axis, as a share of the figure."""
    return 0.03 + CHARACTER * max(cell_len(label) for label in labels)


def line_style(colours: Colours, number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the arm with this index; each alone identifies it."""
    return {
        "color": colours.arm(number),
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 6,
    }


def with_gaps(values: Sequence[float | None]) -> list[float]:
    """None becomes a gap in a line."""
    return [float("nan") if value is None else value for value in values]


def as_percent(axes: Axes, *, across: bool = False) -> None:
    """Percentages at the ticks of the vertical or horizontal axis; none above 100 %."""

    def percent(value: float, _place: float) -> str:
        return f"{value:.0%}" if value < 1.001 else ""

    (axes.xaxis if across else axes.yaxis).set_major_formatter(percent)


def short_number(value: float, _place: float) -> str:
    """A tick's label: 20k for 20,000."""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def add_legend(figure: Figure, shown: Sequence[Any], names: Sequence[str], note: str = "") -> None:
    """Above everything, in two columns; a `note` has a place of its own at the end."""
    labels = [shorten(name, LABEL + 4) for name in names]
    nothing = figure.axes[0].plot([], [], " ") if note else []
    rows = [*labels, note] if note else labels
    figure.legend(
        [*shown, *nothing], rows, loc="upper left", ncols=2, borderaxespad=0.2, labelspacing=0.3
    )


def drawn(comparison: Mapping[str, Any], among: Collection[str]) -> dict[str, int]:
    """The arms drawn `among` some: baseline, the selected student, and the best of the others.

    Each has a number that styles it: its place among all arms, as on the page, or, of too many for
    that, among those drawn.
    """
    chosen = [comparison["selected"]["arm"]] if comparison["selected"] else []
    order = dict.fromkeys([*chosen, *(row["arm"] for row in comparison["ranking"]["students"])])
    best = [arm for arm in order if arm in among][: MOST_ARMS - 1]
    arms, kept = list(comparison["arms"]), {BASELINE, *best}
    styled = arms if len(arms) <= MOST_ARMS else [arm for arm in arms if arm in kept]
    return {arm: n for n, arm in enumerate(styled) if arm in kept and arm in among}


def of_how_many(among: Collection[str], those: str = "students") -> str:
    """A note on how many of `those` are drawn; empty where all are."""
    count = len({*among} - {BASELINE})
    return f"{MOST_ARMS - 1} of {count:,} {those}" if count >= MOST_ARMS else ""


def left_out(things: Sequence[object], most: int) -> str:
    """A note on how many there are above `most`; empty if there are none."""
    more = len(things) - most
    return f"; {more} more are not drawn" if more > 0 else ""
