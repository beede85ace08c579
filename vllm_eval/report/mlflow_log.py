"""A run's comparison as a run of MLflow; needs the extra `mlflow`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm_eval.config.layers import load_config
from vllm_eval.errors import InputError
from vllm_eval.report.stored_run import StoredRun
from vllm_eval.report.verdicts import headline
from vllm_eval.report.words import facts
from vllm_eval.store.folder import CONFIG

EXPERIMENT = "vllm_eval"
MOST = 100
"""Entries per call; MLflow accepts no more parameters at once."""
LONGEST = 500
"""Characters of a value."""
_NO_NAME = re.compile(r"[^\w.\-/ ]")
TIMES = ("generation_s", "total_s", "engine_load_s", "output_tokens_per_s", "requests_per_s")


def log_run(run: StoredRun, uri: str, files: Sequence[Path]) -> str:
    """Log parameters, metrics, verdicts and the report's files; returns MLflow's run id.

    `uri` is the tracking server's or store's; `files` of the report are kept as artifacts.

    Raises:
        InputError: MLflow is not installed, or refuses the run.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        msg = "--mlflow: MLflow is not installed; run: pip install 'vllm_eval[mlflow]'"
        raise InputError(msg) from error
    try:
        return _log(MlflowClient(tracking_uri=uri), run, files)
    except MlflowException as error:
        raise InputError(f"--mlflow {uri}: {error}") from error


def _log(client: Any, run: StoredRun, files: Sequence[Path]) -> str:  # noqa: ANN401  MLflow's own
    from mlflow.entities import Metric, Param

    experiment = client.get_experiment_by_name(EXPERIMENT)
    place = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    begun = int(datetime.fromisoformat(run.environment["started_at"]).timestamp() * 1000)
    made = client.create_run(place, begun, tags=_tags(run), run_name=run.folder.name)
    now, name = int(time.time() * 1000), made.info.run_id
    params = [Param(_named(key), value[:LONGEST]) for key, value in _params(run)]
    metrics = [
        *(Metric(_named(key), value, now, 0) for key, value in _metrics(run.comparison)),
        *(Metric(_named(key), value, now, n) for key, value, n in _by_step(run.comparison)),
    ]
    for start in range(0, max(len(params), len(metrics)), MOST):
        some = slice(start, start + MOST)
        client.log_batch(name, params=params[some], metrics=metrics[some])
    for path in files:
        inside = path.parent.relative_to(run.folder).as_posix()
        client.log_artifact(name, str(path), None if inside == "." else inside)
    client.set_terminated(name, "KILLED" if run.comparison["partial"] else "FINISHED")
    return str(name)


def _tags(run: StoredRun) -> dict[str, str]:
    verdicts = {f"verdict.{v['arm']}": v["verdict"] for v in run.comparison["verdicts"]}
    chosen = headline(run.comparison) or {}
    selected = {"selected": chosen.get("arm"), "selected.path": chosen.get("path")}
    verdicts |= {key: value for key, value in selected.items() if value}
    return {"verdict": run.word, **verdicts, "vllm_eval": run.environment["vllm_eval"]}


def _params(run: StoredRun) -> Iterable[tuple[str, str]]:
    """The configuration, and the engine's description of itself."""
    config = load_config([str(run.folder / CONFIG)]).model_dump(mode="json")
    about = run.environment
    more = {"engine_about": about.get("engine", {}), "dataset_sha256": about["identity"]["dataset"]}
    return facts(config | more)


def _metrics(comparison: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for arm, summary in comparison["arms"].items():
        yield from _numbers(f"{arm}/", summary, summary)
    for arm, paired in comparison["students"].items():
        for key in ("difference", "ratio"):
            yield from _numbers(f"{arm}/{key}_", paired[key], ("value", "low", "high"))
    for verdict in comparison["verdicts"]:
        yield from _numbers(f"{verdict['arm']}/", verdict, ("pass_chance", "p_corrected"))
    yield from _numbers("timing/", comparison["timing"], TIMES)


def _by_step(comparison: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """The curve of each training run: name, value and training step."""
    for curve in comparison["curve"]:
        for point in curve["points"]:
            rates = {key: point[key]["value"] for key in ("mean_all", "valid_rate")}
            shown = rates | {key: point[key] for key in ("loss", "eval_loss")}
            for key, value in shown.items() if point["step"] is not None else ():
                if value is not None:
                    yield f"curve/{curve['training']}/{key}", value, point["step"]


def _numbers(
    before: str, data: Mapping[str, Any], keys: Iterable[str]
) -> Iterator[tuple[str, float]]:
    """The values that exist."""
    for key in keys:
        if data[key] is not None:
            yield before + key, float(data[key])


def _named(key: str) -> str:
    """The name with characters that MLflow accepts."""
    return _NO_NAME.sub("_", key)
