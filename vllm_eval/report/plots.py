"""Figures of a run: inline in a page that chooses the colours, and as files for slides.

Every number drawn is in `comparison.json`. A figure with nothing to show is left out, so the names
returned are a subset of those in `TITLES`.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import orjson

from vllm_eval.report import charts
from vllm_eval.report.chart_parts import SIZE, Colours, Figure
from vllm_eval.report.charts import Painter
from vllm_eval.store.folder import write_bytes, write_text

_TAG = re.compile(r"<[^>]*>")
"""What is not text: a name may look like an id, a link or a colour, and stays what it is."""
_VOID = re.compile(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", re.DOTALL)
_ID = re.compile(r' id="([^"]*)"')
_USED = re.compile(r'(url\(#|href="#)([^")]*)')
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_GEOMETRY = re.compile(r'(?<= )(d|x|y|points|transform)="([^"]*)"')
_COLOUR = re.compile("#[0-9a-f]{6}")
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')

ARM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of the baseline and the students, in the order of `arms`; from the seventh arm on they repeat,
with other markers. Source: Okabe & Ito, Color Universal Design, 2008."""
TEXT, GRID, BACKGROUND = "#1a1a1a", "#d9d9d9", "#ffffff"
_BY_NAME = {TEXT: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--arm-{number})" for number, colour in enumerate(ARM_COLOURS)
}
TITLES = {
    "curve": "Score, valid answers and losses by training step",
    "paired": "Score per case, students against the baseline",
    "distribution": "Scores of the cases, per arm",
    "tiers": "Mean score and valid answers, per tier",
    "attempts": "Valid answers by number of attempts",
    "failures": "Failed attempts by reason",
    "throughput": "Throughput over the run",
    "history": "Score and validity over time",
}
"""Title of each figure; not drawn, because a page or a slide has its own headline."""
DPI = 240
"""Of the PNG files: 1,200 by 792 pixels, or higher where a figure says so."""
FOLDER = "plots"
_DRAWING = threading.Lock()  # matplotlib's settings and Python's warning filters are global
_COLOURED = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
_SETTINGS: dict[str, Any] = {
    **dict.fromkeys(_COLOURED, TEXT),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.color": TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": DPI,
    "svg.fonttype": "none",
    "svg.hashsalt": "vllm_eval",
    "text.parse_math": False,  # a dollar in a name is a dollar
}


def inline_svgs(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Each figure as an `<svg>` element for one page, by name.

    Transparent, text in `currentColor`, arms in `var(--arm-0)` to `var(--arm-5)` (by rights
    `ARM_COLOURS`), grid in `var(--grid)`. Width and height are the page's; ids are unique among
    the figures. The same comparison gives the same text.
    """
    svgs = _svgs(orjson.dumps(comparison))
    return {name: as_element(svg, TITLES[name], _BY_NAME) for name, svg in svgs.items()}


def slide_svgs(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Each figure as the text of an SVG file on white, by name."""
    white = f'<rect width="100%" height="100%" style="fill: {BACKGROUND}"/>'
    svgs = _svgs(orjson.dumps(comparison))
    return {name: svg[: _inside(svg)] + white + svg[_inside(svg) :] for name, svg in svgs.items()}


def write_plots(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Each figure as `plots/NAME.svg` and `.png` in `folder`, on white, for slides.

    Returns the files written.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    svgs, files = slide_svgs(comparison), []
    for name, paint in charts.painters(comparison).items():
        files.append(write_text(place / f"{name}.svg", svgs[name]))
        with _drawn(paint) as figure:
            files.append(write_bytes(place / f"{name}.png", _save(figure, "png")))
    return files


@lru_cache(maxsize=1)
def _svgs(comparison: bytes) -> Mapping[str, str]:
    """Drawn once for page and files, because drawing takes most of a report's time."""
    painters = charts.painters(orjson.loads(comparison))
    return {name: _svg(name, paint) for name, paint in painters.items()}


def history_svg(lines: Sequence[charts.Series]) -> str:
    """Score and validity over time as an `<svg>` element like those of `inline_svgs`."""
    svg = _svg("history", lambda figure, colours: charts.history(figure, colours, lines))
    return as_element(svg, TITLES["history"], _BY_NAME)


def _svg(name: str, paint: Painter) -> str:
    with _drawn(paint) as figure:
        return clean_svg(_save(figure, "svg").decode(), name)


@contextmanager
def _drawn(paint: Painter) -> Iterator[Figure]:
    """A drawn figure, with our matplotlib settings until it has been saved."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with _DRAWING, mpl.rc_context(), warnings.catch_warnings():
        # A name in another script: the page's fonts have the glyphs that ours lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        mpl.rcdefaults()  # ignore a notebook's own style
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=SIZE)
        paint(figure, Colours(TEXT, GRID, ARM_COLOURS))
        yield figure


def _save(figure: Figure, form: str) -> bytes:
    out = io.BytesIO()
    if form == "png":
        figure.savefig(out, format=form, facecolor=BACKGROUND, metadata={"Software": None})
    else:
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format=form, metadata=nothing)
    return out.getvalue()


def clean_svg(text: str, name: str) -> str:
    """Matplotlib's SVG without useless parts; `name` prefixes each id that is used."""
    text = _VOID.sub("", text)
    used = {match.group(2) for tag in _TAG.findall(text) for match in _USED.finditer(tag)}
    return _TAG.sub(lambda tag: _clean_tag(tag.group(), name, used), text)


def _inside(svg: str) -> int:
    """Where the `<svg>` element's content begins."""
    return svg.index(">", svg.index("<svg")) + 1


def as_element(text: str, called: str, colours: Mapping[str, str]) -> str:
    """An SVG file's text as an element of a page that sets its width.

    `called` is its label for screen readers; `colours` says what each `#rrggbb` becomes.
    """

    def recoloured(tag: re.Match[str]) -> str:
        return _COLOUR.sub(lambda m: colours.get(m.group(), m.group()), tag.group())

    view = _VIEW.search(text)
    box = view.group() if view else ""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"'
    return f"{opening} aria-label={quoteattr(called)}>{_TAG.sub(recoloured, text[_inside(text) :])}"


def _clean_tag(tag: str, name: str, used: Collection[str]) -> str:
    tag = _ID.sub(lambda m: f' id="{name}-{m.group(1)}"' if m.group(1) in used else "", tag)
    tag = _USED.sub(rf"\g<1>{name}-\g<2>", tag).replace("xlink:href", "href")
    tag = tag.replace("'DejaVu Sans'", "'DejaVu Sans', system-ui, sans-serif")
    return _GEOMETRY.sub(lambda m: f'{m.group(1)}="{_NUMBER.sub(_shorter, m.group(2))}"', tag)


def _shorter(match: re.Match[str]) -> str:
    return f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
