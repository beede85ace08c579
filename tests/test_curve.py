"""The curve of a training run: `comparison.json`, the terminal, and every kind of report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from tests.checkpoints import history, improving, train, trainer_state
from tests.conftest import Answers
from tests.report_runs import WEAK, interrupt, make_run, open_run
from vllm_eval.report.html import write_html
from vllm_eval.report.plots import inline_svgs
from vllm_eval.report.words import NOTHING
from vllm_eval.report.write import write_reports

if TYPE_CHECKING:
    from tests.conftest import Bench

ARMS = ("checkpoint-100", "checkpoint-300", "checkpoint-1000", "exp1")
"""By step; the last one is the end of the training, of which no step is known."""
LOG: list[Any] = [
    {"step": 90, "loss": 2.0, "epoch": 0.9},
    {"step": 100, "loss": float("nan"), "grad_norm": float("nan")},
    {"step": 100, "eval_loss": 2.5, "eval_runtime": 1.5},
    {"step": 300, "loss": 1.5},
    {"step": 500, "eval_loss": 1.25},
]
RATES = ("mean_all", "valid_rate", "first_try_rate")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four students of a training run, which fail at three, two, one and none of eight cases."""
    place = tmp_path_factory.mktemp("run")
    given = train(place / "exp1", 100, 300, 1000, log=LOG, final=True)
    made = make_run(place, improving(Answers(), *ARMS), 8, [str(given)], "--retries", "0")
    shutil.rmtree(given)  # no report may need it
    return made


def _run(place: Path, *more: str, log: list[Any] | None = None, bad: bool = True) -> dict[str, Any]:
    """The curve of a run over two steps, the first of which is not always valid if `bad`."""
    given = train(place / "exp1", 1, 2, log=log)
    arms = ("checkpoint-1", "checkpoint-2") if bad else ()
    made = make_run(place, improving(Answers(), *arms), 8, [str(given)], "--retries", "0", *more)
    (found,) = open_run(made).comparison["curve"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def curve(run: Path) -> dict[str, Any]:
    (found,) = open_run(run).comparison["curve"]
    assert isinstance(found, dict)
    return found


def test_points_come_by_step_and_the_end_of_the_training_last(curve: dict[str, Any]) -> None:
    assert curve["training"] == Path(curve["path"]).name == "exp1"
    found = [(point["arm"], point["step"]) for point in curve["points"]]
    assert found == list(zip(ARMS, (100, 300, 1000, None), strict=True))


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
    curve = _run(tmp_path, "--certify", "0.9")
    levels = {point[key]["confidence"] for point in curve["points"] for key in RATES}
    assert levels == {0.9}


def test_several_answers_to_a_case_are_not_counted_as_so_many_cases(tmp_path: Path) -> None:
    """All answers to a case are alike, so three of each tell no more than one does."""
    curve = _run(tmp_path, "--samples-per-case", "3")
    rate = curve["points"][0]["valid_rate"]
    assert (rate["value"], rate["method"]) == (0.875, "betting")
    assert rate["high"] - rate["low"] > 0.5


def test_a_loss_is_of_the_steps_since_the_point_before_and_an_evaluation_of_its_own_step(
    curve: dict[str, Any],
) -> None:
    found = [(point["loss"], point["eval_loss"]) for point in curve["points"]]
    assert found == [(2.0, 2.5), (1.5, None), (None, None), (None, None)]
    assert curve["losses_from"].endswith("/exp1/checkpoint-1000/trainer_state.json")
    logged = [(one["step"], one["loss"], one["eval_loss"]) for one in curve["losses"]]
    assert logged == [(90, 2.0, None), (100, None, 2.5), (300, 1.5, None), (500, None, 1.25)]


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
    curve = _run(tmp_path, *more, bad=bad)
    wanted = None if share is None else pytest.approx(share * curve["baseline"]["mean_all"])
    assert curve["bound"] == wanted


def test_training_runs_of_one_name_are_told_apart_and_one_step_is_no_curve(tmp_path: Path) -> None:
    given = [
        train(tmp_path / "ada" / "exp", 1, 2),
        train(tmp_path / "bob" / "exp", 1, 2),
        train(tmp_path / "other", 3, final=True),
    ]
    made = make_run(tmp_path, [{"text": Answers().text()}], 8, list(map(str, given)))
    curves = open_run(made).comparison["curve"]
    assert [curve["training"] for curve in curves] == ["ada/exp", "bob/exp"]


def test_a_run_of_an_earlier_version_has_no_curve(run: Path) -> None:
    """Its manifest knows neither steps nor losses."""
    old = interrupt(run, 1000)
    path = old / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["training"]
    for about in manifest["adapters"].values():
        del about["step"], about["training"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    comparison = open_run(old).comparison
    shutil.rmtree(old)
    assert (comparison["curve"], comparison["pending"]) == ([], 0)


def test_a_trainer_s_file_that_cannot_be_used_is_a_note_beside_the_curve(
    tmp_path: Path, bench: Bench
) -> None:
    given = train(tmp_path / "exp1", 1, 2)
    (given / "checkpoint-2" / "trainer_state.json").write_text('{"log_hist', encoding="utf-8")
    bench.dataset()
    bench.answers({"text": Answers().text()})
    done = bench.run("--adapter", str(given))
    assert done.code == 0, done.err
    note = f"{given}/checkpoint-2/trainer_state.json: is not readable as JSON"
    said = f"no losses: {note}"
    assert "".join(said.split()) in "".join(done.out.split())  # it may be broken at the margin
    (curve,) = done.result("comparison")["curve"]
    assert (curve["note"], curve["losses"], curve["losses_from"]) == (note, [], None)
    write_reports(open_run(done.folder))
    assert f"No losses: `{note}`" in (done.folder / "report.md").read_text(encoding="utf-8")


def test_a_trainer_that_goes_on_changes_no_run_that_has_begun(tmp_path: Path, bench: Bench) -> None:
    given = train(tmp_path / "exp1", 50, 100, log=history(100))
    bench.dataset()
    bench.answers({"text": Answers().text()})
    (before,) = bench.run("--adapter", str(given)).result("comparison")["curve"]
    trainer_state(given / "checkpoint-100", history(200))
    again = bench.run("--adapter", str(given), "--resume", "auto")
    assert again.code == 0, again.err
    (after,) = again.result("comparison")["curve"]
    assert after["losses"] == before["losses"]
    assert max(one["step"] for one in after["losses"]) == 100


def test_the_student_that_ships_is_marked_and_the_leader_that_it_is_tied_with(
    tmp_path: Path, bench: Bench
) -> None:
    given = train(tmp_path / "exp1", 1, 2)
    bench.dataset(8)
    weak = {"concept_id": "K1", "arm": "checkpoint-1", "text": WEAK}
    bench.answers({"text": Answers().text()}, weak)
    done = bench.call(*bench.arguments()[:4], "--adapter", str(given), *bench.arguments()[6:])
    rows = [line.split() for line in done.out.partition("Checkpoints of exp1")[2].splitlines()]
    marks = {row[1]: row[-1] for row in rows if row[:1] in (["1"], ["2"])}
    assert marks == {"checkpoint-1": "selected", "checkpoint-2": "best"}
    (curve,) = done.result("comparison")["curve"]
    assert [point["selected"] for point in curve["points"]] == [True, False]
    write_reports(open_run(done.folder))
    text = (done.folder / "report.md").read_text(encoding="utf-8")
    assert re.search(r"`checkpoint-1` \|.*\| PASS \| selected \|", text)
    assert re.search(r"`checkpoint-2` \|.*\| PASS \| best \|", text)
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<td>selected</td>") == page.count("<td>best</td>") == 1
    assert "selected" in (done.folder / "plots" / "curve.svg").read_text(encoding="utf-8")


def test_the_terminal_shows_the_checkpoints_in_the_order_of_training(
    tmp_path: Path, bench: Bench
) -> None:
    given = train(tmp_path / "exp1", 100, 300, 1000, log=LOG, final=True)
    bench.dataset(8)
    bench.answers(*improving(Answers(), *ARMS))
    done = bench.run("--adapter", str(given), "--retries", "0")
    table = done.out.partition("Checkpoints of exp1, with intervals at 0.95")[2]
    base, *rows = (line.split() for line in table.splitlines()[5:10])
    assert base[0] == "baseline"
    assert [(row[0], row[1]) for row in rows] == list(
        zip(("100", "300", "1000", "end"), ARMS, strict=True)
    )
    assert rows[0][-5:] == ["62%", "62%", "2.0000", "2.5000", "FAIL"]
    assert rows[3][5:9] == ["100%", "100%", NOTHING, NOTHING]


def test_a_run_without_steps_shows_no_checkpoints(tmp_path: Path) -> None:
    folder = make_run(tmp_path, improving(Answers(), "one", "two"), 8, ("one", "two"))
    files = write_reports(open_run(folder))
    assert "curve" not in {path.stem for path in files}
    for name in ("report.html", "report.md", "summary.md"):
        assert "heckpoint" not in (folder / name).read_text(encoding="utf-8")


def test_markdown_has_a_row_for_each_checkpoint(run: Path) -> None:
    write_reports(open_run(run))
    rows = [
        "| 100 | `checkpoint-100` | 0.625 [",
        "| 300 | `checkpoint-300` | 0.750 [",
        "| 1000 | `checkpoint-1000` | 0.875 [",
        "| end | `exp1` | 1.000 [",
    ]
    for name in ("report.md", "summary.md"):
        text = (run / name).read_text(encoding="utf-8")
        found = [line[: len(row)] for row in rows for line in text.splitlines() if row in line]
        assert found == rows
        assert "| 62% [24%, 91%] | 62% [24%, 91%] | 2.0000 | 2.5000 | FAIL |  |" in text
        assert "those of shares are exact, over cases." in text


def test_the_page_has_the_figure_and_a_row_for_each_checkpoint(run: Path) -> None:
    page = write_html(open_run(run), run / "page.html").read_text(encoding="utf-8")
    section = page.partition('<section id="curve"')[2].partition("</section>")[0]
    assert page.count('id="plot-curve"') == section.count('id="plot-curve"') == 1
    rows = [re.sub("<[^>]*>", "", row) for row in re.findall('<th scope="row">.*?</th>', section)]
    assert rows == ["baseline", *ARMS]
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
    assert set(curve["baseline"].values()) == {None}
    write_reports(stopped)
    text = (stopped.folder / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"\| (best|selected) \|", text)


def test_hostile_names_and_notes_stay_text(tmp_path: Path) -> None:
    name = "<script>alert(1)<|script>`\u202e @octocat"
    given = train(tmp_path / name, 1, 2)
    (given / "checkpoint-2" / "trainer_state.json").write_text("[]", encoding="utf-8")
    made = make_run(tmp_path, [{"text": Answers().text()}], 8, [str(given)])
    write_reports(open_run(made))
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    for name in ("report.md", "summary.md"):
        text = (made / name).read_text(encoding="utf-8")
        html = MarkdownIt("commonmark").enable("table").render(text)
        bare = re.sub("<code.*?</code>", "", html, flags=re.DOTALL)
        assert "octocat" in text
        assert not [mark for mark in ("octocat", "alert", "\u202e") if mark in bare]


def test_each_of_many_students_has_its_step_in_the_reports(tmp_path: Path) -> None:
    given = train(tmp_path / "exp1", 0, 100, 200, 300, final=True)
    made = make_run(tmp_path, improving(Answers()), 2, [str(given)], "--retries", "0")
    write_reports(open_run(made))
    rows = re.findall(
        r'href="#student-\d".*?<td class="number">(.*?)</td>',
        (made / "report.html").read_text("utf-8"),
    )
    assert sorted(rows) == ["", "0", "100", "200", "300"]
    table = re.findall(
        r"^\| \d[^|]*\| [^|]+\|([^|]*)\| PASS",
        (made / "report.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert sorted(map(str.strip, table)) == ["", "0", "100", "200", "300"]
