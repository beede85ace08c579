"""The curve of a training run: `comparison.json`, the terminal, and every kind of report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.checkpoints import improving, run_steps
from tests.conftest import Answers
from tests.report_runs import open_run

if TYPE_CHECKING:
    from pathlib import Path

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
