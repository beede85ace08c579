"""The figures: themeable, safe beside each other, the same twice, and small for many cases."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import orjson
import pytest

from tests.conftest import Answers
from tests.report_runs import FAILING, HOSTILE_ID, HOSTILE_TIER, WEAK, interrupt, make_run, open_run
from vllm_eval.report.charts import Series
from vllm_eval.report.html import NOTES
from vllm_eval.report.plots import ARM_COLOURS, history_svg, inline_svgs, write_plots

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = tuple(name for name in NOTES if name != "curve")
"""Of a run whose students are no checkpoints."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


@pytest.fixture(scope="module")
def svgs(run: Path) -> dict[str, str]:
    return inline_svgs(open_run(run).comparison)


def _many(comparison: dict[str, Any], count: int) -> dict[str, Any]:
    """The same run with so many cases, their scores spread."""
    rows = []
    for number in range(count):
        scores = (0.5 + number % 97 / 200, 0.6 + number % 89 / 250)
        arms = {arm: {"score": s} for arm, s in zip(comparison["arms"], scores, strict=True)}
        rows.append({"concept_id": f"K{number}", "tier": "simple", "arms": arms})
    students = {
        arm: paired | {"pairs": count, "cases": count}
        for arm, paired in comparison["students"].items()
    }
    return comparison | {"cases": rows, "students": students}


def test_a_run_with_failures_has_every_figure(svgs: dict[str, str]) -> None:
    assert tuple(svgs) == FIGURES


def test_inline_figures_take_their_colours_from_the_page(svgs: dict[str, str]) -> None:
    whole = "".join(svgs.values())
    assert "currentColor" in whole
    assert "var(--arm-0)" in whole
    assert "var(--arm-1)" in whole
    assert "var(--grid)" in whole
    assert not [colour for colour in ARM_COLOURS if colour in whole]


def test_inline_figures_are_elements_with_a_name_and_text_as_text(svgs: dict[str, str]) -> None:
    for svg in svgs.values():
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "width" not in root.attrib
        assert root.findall(".//{*}text")


def test_no_two_figures_of_a_page_share_an_id(svgs: dict[str, str]) -> None:
    ids = [e.get("id") for svg in svgs.values() for e in ET.fromstring(svg).iter() if e.get("id")]
    assert len(ids) == len(set(ids)) > 0


def test_every_reference_inside_a_figure_has_its_target(svgs: dict[str, str]) -> None:
    for svg in svgs.values():
        root = ET.fromstring(svg)
        ids = {element.get("id") for element in root.iter()}
        used = {e.get("href", "").removeprefix("#") for e in root.iter() if e.get("href")}
        assert used <= ids


def test_the_same_comparison_gives_the_same_files(run: Path, tmp_path: Path) -> None:
    comparison = open_run(run).comparison
    first = [path.read_bytes() for path in write_plots(comparison, tmp_path)]
    other = dict(comparison) | {"cases": [*comparison["cases"]]}
    inline_svgs(_many(other, 3))  # nothing of another figure is left behind
    assert [path.read_bytes() for path in write_plots(other, tmp_path)] == first


def test_files_for_slides_are_svg_and_png_of_every_figure(run: Path, tmp_path: Path) -> None:
    written = write_plots(open_run(run).comparison, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    assert names == {f"plots/{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    for path in written:
        head = path.read_bytes()[:8]
        assert head.startswith(b"<?xml" if path.suffix == ".svg" else b"\x89PNG")


def test_hostile_names_stay_text_in_a_figure(tmp_path: Path) -> None:
    """A dollar is no mathematics, a bracket no element, a line break no second line."""
    cases = [{"concept_id": f"{HOSTILE_ID}{n}", "tier": HOSTILE_TIER} for n in range(3)]
    folder = make_run(tmp_path, [{"text": WEAK}], cases, ("_pupil", "x" * 90))
    drawn = inline_svgs(open_run(folder).comparison)
    tiers = ET.fromstring(drawn["tiers"])
    texts = ["".join(element.itertext()) for element in tiers.findall(".//{*}text")]
    assert any(text.startswith("$x^2$") for text in texts)
    assert any("_pupil" in text for text in texts)
    assert max(len(text) for text in texts) < 40
    kinds = {element.tag.rpartition("}")[2] for element in tiers.iter()}
    assert kinds <= {"svg", "g", "path", "defs", "style", "use", "text", "clipPath", "rect"}


def test_few_cases_are_lines_and_many_are_points(run: Path) -> None:
    comparison = dict(open_run(run).comparison)
    few = inline_svgs(comparison)["paired"]
    many = inline_svgs(_many(comparison, 40))["paired"]
    assert "equal scores" not in few
    assert "equal scores" in many
    assert "40 of 40 cases" in many


@pytest.mark.parametrize("students", [("pupil",), ("pupil", "other")])
def test_the_points_of_a_sample_are_counted_as_drawn(run: Path, students: tuple[str, ...]) -> None:
    comparison = _many(dict(open_run(run).comparison), 40)
    paired = comparison["students"]["pupil"] | {"pairs": 4_900, "cases": 5_000}
    sampled = {"cases_sampled": True, "students": dict.fromkeys(students, paired)}
    drawn = inline_svgs(comparison | sampled)["paired"]
    assert "sample of 40, with the largest losses" in drawn
    assert "of 5,000 cases" not in drawn


def test_of_many_students_the_best_are_drawn_and_every_figure_says_of_how_many(
    tmp_path: Path,
) -> None:
    """The first ones are the worst; each fails at fewer cases than the one before."""
    names = [f"s{number:02}" for number in range(12)]
    script: list[dict[str, object]] = [{"text": Answers().text()}]
    for place, arm in enumerate(names):
        bad = range(1, 13 - place)
        script += [{"concept_id": f"K{n}", "arm": arm, "text": Answers().bad()} for n in bad]
    drawn = inline_svgs(open_run(make_run(tmp_path, script, 13, names)).comparison)
    for name in ("paired", "distribution", "tiers", "attempts", "failures"):
        found = ET.fromstring(drawn[name]).findall(".//{*}text")
        texts = ["".join(element.itertext()) for element in found]
        assert [text for text in texts if text in names] == names[5:]
        assert any("7 of 12 " in text for text in texts)


def test_a_history_says_how_many_lines_it_leaves_out() -> None:
    days = [datetime(2025, 3, day, tzinfo=UTC) for day in (1, 2)]
    lines = [Series(f"s{number}", days, (0.7, 0.8), (0.9, None)) for number in range(11)]
    assert "3 more are not drawn" in history_svg(lines)
    assert "more" not in history_svg(lines[:8])


def test_two_thousand_cases_are_drawn_in_seconds_and_small(run: Path) -> None:
    comparison = _many(dict(open_run(run).comparison), 2000)
    begin = time.process_time()
    drawn = inline_svgs(comparison)
    assert time.process_time() - begin < 8
    assert sum(map(len, drawn.values())) < 300_000


def test_a_run_interrupted_before_its_first_answer_has_no_figure(run: Path) -> None:
    assert inline_svgs(open_run(interrupt(run, 0)).comparison) == {}


def test_a_notebook_s_own_style_does_not_reach_the_figures(svgs: dict[str, str], run: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        comparison = orjson.loads((run / "comparison.json").read_bytes()) | {"pending": 0, "new": 1}
        assert inline_svgs(comparison) == svgs
        assert mpl.rcParams["font.size"] == 30
