"""What stored answers were made with: data set, task and thresholds, from the files themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import yaml
from pydantic import ValidationError

from vllm_eval.compare.intervals import CONFIDENCE, Bootstrap
from vllm_eval.config.settings import Config, GateConfig, resolve_path
from vllm_eval.errors import InputError
from vllm_eval.inputs.index import index_cases
from vllm_eval.inputs.plan import data_path
from vllm_eval.store import manifest
from vllm_eval.store.folder import JOURNAL
from vllm_eval.tasks import refuse_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_eval.inputs.index import CaseIndex
    from vllm_eval.rescore.stored import Source
    from vllm_eval.tasks import Task

CONFIG_FILE = "config.yaml"
OUR_KEYS = {"task", "engine", "gate", "dataset_path"}
"""Together in a stored configuration they tell that we wrote it."""


def config_of(source: Source) -> Mapping[str, Any]:
    """The configuration stored in a file, or beside a journal; empty where there is none."""
    if source.config or source.path.name != JOURNAL:
        return source.config
    try:
        text = source.path.with_name(CONFIG_FILE).read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # a journal without its folder
    return loaded if isinstance(loaded, dict) else {}


def identity_of(source: Source) -> Mapping[str, Any] | None:
    """What the run of a file was made of, from the manifest beside it; None where unknown."""
    identity = _manifest_of(source).get("identity")
    return identity if isinstance(identity, dict) else None


def records_of(source: Source) -> int | None:
    """How many records the data set of a file's run had; None where unknown."""
    dataset = _manifest_of(source).get("dataset")
    records = dataset.get("records") if isinstance(dataset, dict) else None
    return records if isinstance(records, int) else None


def _manifest_of(source: Source) -> Mapping[str, Any]:
    if source.path.name != JOURNAL and not config_of(source).keys() >= OUR_KEYS:
        return {}
    try:
        recorded = orjson.loads(source.path.with_name(manifest.FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}  # a result file away from its folder
    return recorded if isinstance(recorded, dict) else {}


def task_of(sources: Sequence[Source], config: Config) -> str:
    """The task that `config` sets, else the one the files were made with, else the default.

    Raises:
        InputError: the files were made with different tasks, or with a file as their task.
    """
    if "task" in config.model_fields_set:
        return config.task
    configs = [(source.path, config_of(source)) for source in sources]
    named = {str(c["task"]): path for path, c in configs if c.keys() >= OUR_KEYS}
    if len(named) > 1:
        found = ", ".join(f"{path}: {task!r}" for task, path in named.items())
        msg = f"config.task differs, {found}; score them one by one, or give --task"
        raise InputError(msg)
    for task, path in named.items():
        refuse_file(task, path)
    return next(iter(named), config.task)


def thresholds_of(sources: Sequence[Source], config: Config, *, graded: bool) -> GateConfig:
    """The thresholds stored with the files, those that `config` sets laid over them.

    Raises:
        InputError: stored thresholds that cannot be used, or, where a verdict is `graded` by
            them, that differ between files.
    """
    given = config.gate.model_dump(exclude_unset=True) if "gate" in config.model_fields_set else {}
    merged: dict[str, Any] = {}
    taken: dict[str, Path] = {}
    for source in sources:
        for key, value in _thresholds(source).items():
            if graded and key not in given and merged.get(key, value) != value:
                places = f"{taken[key]}: {merged[key]!r}, {source.path}: {value!r}"
                raise _differ(f"gate.{key}", places)
            merged[key] = value
            taken.setdefault(key, source.path)
    return GateConfig.model_validate_json(json.dumps(merged | given))


def _thresholds(source: Source) -> Mapping[str, Any]:
    """All that a file's own configuration sets, or leaves at its default."""
    own = config_of(source)
    if not own.keys() >= OUR_KEYS:
        return {}
    try:
        return GateConfig.model_validate_json(json.dumps(own["gate"])).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(["config", "gate", *map(str, first["loc"])])
        msg = f"{source.path}: {key}: {first['msg'].lower()}"
        raise InputError(msg) from error


def bootstrap_of(sources: Sequence[Source], config: Config, thresholds: GateConfig) -> Bootstrap:
    """Intervals as the run made them: with its seed, unless `config` sets one.

    Raises:
        InputError: the files were made with different seeds.
    """
    stored: dict[int, Path] = {}
    for source in sources:
        seed = config_of(source).get("seed")
        if config_of(source).keys() >= OUR_KEYS and isinstance(seed, int) and seed >= 0:
            stored.setdefault(seed, source.path)
    seed = config.seed
    if "seed" not in config.model_fields_set:
        if len(stored) > 1:
            raise _differ("seed", ", ".join(f"{path}: {seed}" for seed, path in stored.items()))
        seed = next(iter(stored), seed)
    return Bootstrap(thresholds.confidence or CONFIDENCE, seed=seed)


def _differ(key: str, places: str) -> InputError:
    give = f"set it with --config or -c {key}=..., or score them one by one"
    return InputError(f"config.{key} differs, and would decide the verdict: {places}; {give}")


def index_all(sources: Sequence[Source], config: Config, task: Task) -> dict[Path, CaseIndex]:
    """By file, where its cases lie; every one of them is there.

    The data set is the one `config` sets, else the one stored with the file, else the task's
    own, else the default.

    Raises:
        InputError: a data set that cannot be read, or that lacks a case of a file.
    """
    indexes: dict[Path, CaseIndex] = {}
    found: dict[Path, CaseIndex] = {}
    for source in sources:
        path, own = data_path(config, task), config_of(source).get("dataset_path")
        if "dataset_path" not in config.model_fields_set and isinstance(own, str):
            path = resolve_path(own)
        if path not in indexes:
            indexes[path] = index_cases(path, task.declaration)
        found[source.path] = indexes[path]
        for concept_id, place in source.ids.items():
            if concept_id not in indexes[path].places:
                msg = (
                    f"{source.path}, {place}: concept_id {concept_id!r} is not in {path}; "
                    "give the data set of these answers with --dataset-path"
                )
                raise InputError(msg)
    return found


def other_data(sources: Sequence[Source], indexes: Mapping[Path, CaseIndex]) -> tuple[str, ...]:
    """A note on each file that was made with a data set of other content."""
    notes = []
    for source in sources:
        identity, index = identity_of(source), indexes[source.path]
        if identity is not None and identity.get("dataset") not in (None, index.sha256):
            notes.append(f"{source.path}: made with a data set of other content than {index.path}")
    return tuple(notes)
