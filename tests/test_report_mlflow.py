"""A run in MLflow's local file store, which its present release wants allowed by a variable."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.checkpoints import history, improving, train
from tests.conftest import Answers
from tests.report_runs import FAILING, WEAK, make_run, without
from vllm_eval.report.stored_run import load_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench

pytestmark = pytest.mark.filterwarnings("ignore:::mlflow", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


def test_a_run_is_logged_with_parameters_metrics_verdict_and_report(
    bench: Bench, failing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    done = bench.call("report", str(failing), "--mlflow", store)
    assert done.code == 0, done.err

    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("vllm_eval")
    (run,) = client.search_runs([experiment.experiment_id])
    comparison = load_run(failing).comparison
    assert run.info.run_name == failing.name
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"] == run.data.tags["verdict.pupil"] == "FAIL"
    assert run.data.metrics["pupil/mean"] == comparison["arms"]["pupil"]["mean"]
    assert run.data.metrics["pupil/valid_rate"] == 0.75
    assert (
        run.data.metrics["pupil/ratio_value"] == comparison["students"]["pupil"]["ratio"]["value"]
    )
    assert run.data.params["temperature"] == "0.2"
    assert run.data.params["gate.min_ratio"] == "0.9"
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert kept >= {"report.html", "report.md", "junit.xml", "summary.md", "plots"}


def test_no_tag_of_a_partial_run_says_pass(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made = make_run(tmp_path, [{"text": WEAK}], 2, ("pupil", "other"))
    folder = without(made, lambda row: bool(row["arm"] == "other"))
    store = (tmp_path / "mlruns").as_uri()
    assert bench.call("report", str(folder), "--mlflow", store).code == 0

    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("vllm_eval")
    (run,) = client.search_runs([experiment.experiment_id])
    tags = [value for key, value in run.data.tags.items() if key.startswith("verdict")]
    assert tags == ["NOT FINISHED"] * 3
    assert run.info.status == "KILLED"


def test_the_curve_of_a_training_run_is_logged_by_step(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    given = str(train(tmp_path / "exp1", 50, 100, log=history(100), final=True))
    made = make_run(tmp_path, improving(Answers(), "checkpoint-50", "checkpoint-100"), 2, [given])
    store = (tmp_path / "mlruns").as_uri()
    assert bench.call("report", str(made), "--mlflow", store).code == 0

    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("vllm_eval")
    (run,) = client.search_runs([experiment.experiment_id])

    def logged(key: str) -> list[tuple[int, float]]:
        metrics = client.get_metric_history(run.info.run_id, f"curve/exp1/{key}")
        return [(metric.step, metric.value) for metric in metrics]

    assert logged("mean_all") == [(50, 0.5), (100, 1.0)]
    assert logged("valid_rate") == [(50, 0.5), (100, 1.0)]
    assert logged("eval_loss") == [(50, 1.9167), (100, 1.5)]
    assert logged("loss") == [(50, 1.6667), (100, 1.25)]


def test_a_store_that_refuses_is_bad_input(bench: Bench, failing: Path, tmp_path: Path) -> None:
    done = bench.call("report", str(failing), "--mlflow", "nonsense://x")
    assert done.code == 2
    assert "--mlflow nonsense://x" in done.err


def test_without_mlflow_the_error_names_the_extra(
    bench: Bench, failing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # what Python takes for "not installed"
    done = bench.call("report", str(failing), "--mlflow", "file:x")
    assert done.code == 2
    assert "pip install 'vllm_eval[mlflow]'" in done.err
