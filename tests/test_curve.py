"""The curve of a training run: `comparison.json`, the terminal, and every kind of report."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from tests.checkpoints import improving, run_steps
from tests.conftest import Answers
from tests.report_runs import interrupt, make_run, open_run
from vllm_eval.report.html import write_html
from vllm_eval.report.plots import inline_svgs
from vllm_eval.report.write import write_reports

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench

RUN = "/data/runs/exp1"
STEPS: dict[str, tuple[int | None, str]] = {
    "late": (1000, RUN),
    "whole": (None, RUN),
    "early": (100, RUN),
    "middle": (300, RUN),
}
"""By name, in the order given on the command line."""
LOG = {
    "file": f"{RUN}/checkpoint-1000/trainer_state.json",
    "losses": [
        {"step": 90, "loss": 2.0, "eval_loss": None},
        {"step": 100, "loss": None, "eval_loss": 2.5},
        {"step": 300, "loss": 1.5, "eval_loss": None},
        {"step": 500, "loss": None, "eval_loss": 1.25},
    ],
    "note": "",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = improving(Answers(), "early", "middle", "late", "whole")
    folder = tmp_path_factory.mktemp("run")
    return run_steps(folder, script, STEPS, {RUN: LOG}, "--retries", "0")


@pytest.fixture(scope="module")
def curve(run: Path) -> dict[str, Any]:
    (found,) = open_run(run).comparison["curve"]
    assert isinstance(found, dict)
    return found


def test_points_come_by_step_and_the_end_of_the_training_last(curve: dict[str, Any]) -> None:
    assert (curve["training"], curve["path"]) == ("exp1", RUN)
    found = [(point["arm"], point["step"]) for point in curve["points"]]
    assert found == [("early", 100), ("middle", 300), ("late", 1000), ("whole", None)]


def test_a_point_has_the_figures_of_its_arm_and_the_interval_of_the_ranking(
    run: Path, curve: dict[str, Any]
) -> None:
    comparison = open_run(run).comparison
    ranked = {one["arm"]: one for one in comparison["ranking"]["students"]}
    for point in curve["points"]:
        summary = comparison["arms"][point["arm"]]
        assert point["mean_all"] == ranked[point["arm"]]["mean_all"]
        assert point["word"] == ranked[point["arm"]]["word"]
        assert point["mean"] == summary["mean"]
        assert point["valid_rate"]["value"] == summary["valid_rate"]
        assert point["first_try_rate"]["value"] == summary["first_valid_rate"]


def test_shares_have_the_exact_interval_of_a_binomial(curve: dict[str, Any]) -> None:
    """Of five of eight at 0.95: Clopper & Pearson, as R's `binom.test(5, 8)` gives it."""
    rate = curve["points"][0]["valid_rate"]
    assert (rate["value"], rate["method"]) == (0.625, "exact")
    assert rate["low"] == pytest.approx(0.2448632, abs=1e-6)
    assert rate["high"] == pytest.approx(0.9147666, abs=1e-6)
    assert curve["points"][-1]["valid_rate"]["high"] == 1
    assert curve["points"][-1]["valid_rate"]["low"] == pytest.approx(0.025 ** (1 / 8))


def test_intervals_are_at_the_level_of_the_gate(tmp_path: Path) -> None:
    steps = {"one": (1, RUN), "two": (2, RUN)}
    made = run_steps(tmp_path, improving(Answers(), *steps), steps, None, "--certify", "0.9")
    (curve,) = open_run(made).comparison["curve"]
    levels = {point[key]["confidence"] for point in curve["points"] for key in RATES}
    assert levels == {0.9}


RATES = ("mean_all", "valid_rate", "first_try_rate")


def test_several_answers_to_a_case_are_not_counted_as_so_many_cases(tmp_path: Path) -> None:
    """All answers to a case are alike, so three of each tell no more than one does."""
    steps, script = {"one": (1, RUN), "two": (2, RUN)}, improving(Answers(), "one", "two")
    more = ("--retries", "0", "--samples-per-case", "3")
    made = run_steps(tmp_path, script, steps, None, *more)
    (curve,) = open_run(made).comparison["curve"]
    rate = curve["points"][0]["valid_rate"]
    assert (rate["value"], rate["method"]) == (0.875, "betting")
    assert rate["high"] - rate["low"] > 0.5


def test_a_loss_is_of_the_steps_since_the_point_before_and_an_evaluation_of_its_own_step(
    curve: dict[str, Any],
) -> None:
    found = [(point["loss"], point["eval_loss"]) for point in curve["points"]]
    assert found == [(2.0, 2.5), (1.5, None), (None, None), (None, None)]
    assert (curve["losses"], curve["losses_from"]) == (LOG["losses"], LOG["file"])


def test_the_baseline_stands_beside_its_students(run: Path, curve: dict[str, Any]) -> None:
    summary = open_run(run).comparison["arms"]["baseline"]
    assert curve["baseline"] == {
        "mean_all": summary["mean_all"],
        "valid_rate": summary["valid_rate"],
        "first_try": summary["first_valid_rate"],
    }


@pytest.mark.parametrize(
    ("bad", "more", "share"),
    [
        (False, (), 0.9),
        (True, (), None),
        (True, ("--certify", "0.9"), 0.9),
        (True, ("--min-ratio-all", "0.95"), 0.95),
        (False, ("--min-ratio-all", "0.8"), 0.9),
    ],
)
def test_the_gate_s_bound_is_told_where_it_is_one_of_the_mean_with_failures_as_zero(
    tmp_path: Path, bad: bool, more: tuple[str, ...], share: float | None
) -> None:
    steps = {"one": (1, RUN), "two": (2, RUN)}
    script = improving(Answers(), *steps) if bad else [{"text": Answers().text()}]
    made = run_steps(tmp_path, script, steps, None, "--retries", "0", *more)
    (curve,) = open_run(made).comparison["curve"]
    wanted = None if share is None else pytest.approx(share * curve["baseline"]["mean_all"])
    assert curve["bound"] == wanted


def test_training_runs_of_one_name_are_told_apart_and_one_step_is_no_curve(tmp_path: Path) -> None:
    steps: dict[str, tuple[int | None, str]] = {
        "a1": (1, "/data/ada/runs/exp"),
        "a2": (2, "/data/ada/runs/exp"),
        "b1": (1, "/data/bob/runs/exp"),
        "b2": (2, "/data/bob/runs/exp"),
        "c1": (1, "/data/other"),
        "c2": (None, "/data/other"),
        "d1": (1, "/data/single"),
        "d2": (1, "/data/single"),
    }
    made = run_steps(tmp_path, [{"text": Answers().text()}], steps)
    curves = open_run(made).comparison["curve"]
    assert [c["training"] for c in curves] == ["ada/runs/exp", "bob/runs/exp"]


def test_a_run_of_an_earlier_version_has_no_curve(run: Path, tmp_path: Path) -> None:
    steps = {"one": (1, RUN), "two": (2, RUN)}
    made = run_steps(tmp_path, [{"text": Answers().text()}], steps)
    path = made / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["training"]
    manifest["adapters"] = {arm: {"path": "/data/x", "rank": 8} for arm in steps}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert open_run(made).comparison["curve"] == []


def test_the_terminal_shows_the_checkpoints_in_the_order_of_training(
    run: Path, bench: Bench
) -> None:
    done = bench.call("--profile", "none", "--no-report", "--resume", str(run))
    table = done.out.partition("Checkpoints of exp1, with intervals at 0.95")[2]
    rows = [line.split() for line in table.splitlines()[5:10]]
    assert [row[:2] for row in rows[1:]] == [
        ["100", "early"],
        ["300", "middle"],
        ["1000", "late"],
        ["end", "whole"],
    ]
    assert rows[0][0] == "baseline"
    assert rows[1][-5:] == ["62%", "62%", "2.000", "2.500", "FAIL"]
    assert rows[4][-4:] == ["-", "-", "PASS", "best"]


def test_a_run_without_steps_shows_no_checkpoints(tmp_path: Path) -> None:
    folder = make_run(tmp_path, improving(Answers(), "one", "two"), 8, ("one", "two"))
    files = write_reports(open_run(folder))
    assert "curve" not in {path.stem for path in files}
    for name in ("report.html", "report.md", "summary.md"):
        assert "heckpoint" not in (folder / name).read_text(encoding="utf-8")


def test_markdown_has_a_row_for_each_checkpoint(run: Path) -> None:
    write_reports(open_run(run))
    rows = [
        "| 100 | `early` | 0.625 [",
        "| 300 | `middle` | 0.750 [",
        "| 1000 | `late` | 0.875 [",
        "| end | `whole` | 1.000 [",
    ]
    for name in ("report.md", "summary.md"):
        text = (run / name).read_text(encoding="utf-8")
        found = [line[: len(row)] for row in rows for line in text.splitlines() if row in line]
        assert found == rows
        assert "| 62% [24%, 91%] | 62% [24%, 91%] | 2.000 | 2.500 | FAIL |  |" in text
        assert "those of shares are exact, over cases." in text


def test_the_page_has_the_figure_and_a_row_for_each_checkpoint(run: Path) -> None:
    page = write_html(open_run(run), run / "page.html").read_text(encoding="utf-8")
    section = page.partition('<section id="curve"')[2].partition("</section>")[0]
    assert page.count('id="plot-curve"') == section.count('id="plot-curve"') == 1
    rows = [re.sub("<[^>]*>", "", row) for row in re.findall('<th scope="row">.*?</th>', section)]
    assert rows == ["baseline", "early", "middle", "late", "whole"]
    assert '<a href="#curve">' in page


def _texts(comparison: dict[str, Any]) -> list[str]:
    drawn = ET.fromstring(inline_svgs(comparison)["curve"])
    return ["".join(element.itertext()) for element in drawn.findall(".//{*}text")]


def test_the_figure_names_what_it_draws_and_has_axes_for_losses_only_with_losses(
    run: Path,
) -> None:
    comparison = dict(open_run(run).comparison)
    texts = _texts(comparison)
    for said in ("mean (failures = 0)", "valid answers", "mean of the baseline", "end", "loss"):
        assert said in texts
    (curve,) = comparison["curve"]
    bare = _texts(comparison | {"curve": [curve | {"losses": []}]})
    assert "loss" not in bare
    assert "step" in bare


def test_every_point_is_drawn(run: Path) -> None:
    """Each is a marker of its own, so there is one less without the one in the middle."""
    comparison = dict(open_run(run).comparison)
    (curve,) = comparison["curve"]
    fewer = curve | {"points": [point for point in curve["points"] if point["step"] != 300]}
    drawn, without = (
        inline_svgs(comparison | {"curve": [one]})["curve"].count("<use") for one in (curve, fewer)
    )
    assert drawn - without == 1


def test_a_point_without_a_number_leaves_a_gap(run: Path) -> None:
    """As in a run that was interrupted before the arm's first answer."""
    comparison = dict(open_run(run).comparison)
    (curve,) = comparison["curve"]
    first, *others = curve["points"]
    nothing = {"value": None, "low": None, "high": None}
    gone = first | {key: first[key] | nothing for key in RATES}
    assert "curve" in inline_svgs(comparison | {"curve": [curve | {"points": [gone, *others]}]})


def test_a_run_interrupted_before_its_first_answer_still_tells_the_steps(run: Path) -> None:
    stopped = open_run(interrupt(run, 0))
    (curve,) = stopped.comparison["curve"]
    assert {point["word"] for point in curve["points"]} == {"NOT FINISHED"}
    assert {point["mean_all"]["value"] for point in curve["points"]} == {None}
    write_reports(stopped)


def test_hostile_names_and_notes_stay_text(tmp_path: Path) -> None:
    path = "/data/<script>alert(1)</script>|`\u202e @octocat"
    steps: dict[str, tuple[int | None, str]] = {"one": (1, path), "two": (2, path)}
    log: dict[str, object] = {
        "file": None,
        "losses": [],
        "note": f"{path}: <img src=x onerror=alert(1)> | `x`",
    }
    made = run_steps(tmp_path, [{"text": Answers().text()}], steps, {path: log})
    write_reports(open_run(made))
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img" not in page
    for name in ("report.md", "summary.md"):
        text = (made / name).read_text(encoding="utf-8")
        html = MarkdownIt("commonmark").enable("table").render(text)
        bare = re.sub("<code.*?</code>", "", html, flags=re.DOTALL)
        assert "octocat" in text
        assert not [mark for mark in ("octocat", "alert", "img", "\u202e") if mark in bare]
