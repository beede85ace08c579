"""What stored answers were made with, and what their files should hold, from what is stored.

Data set, task, thresholds and seed; and every outcome of the run, since the gate must not pass on a
part of one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import ValidationError

from vllm_eval.compare.gate import Rule, Verdict
from vllm_eval.compare.intervals import CONFIDENCE, Bootstrap
from vllm_eval.config.settings import Config, GateConfig, resolve_path
from vllm_eval.errors import InputError
from vllm_eval.inputs.cases import CaseIndex, index_cases
from vllm_eval.inputs.plan import data_path
from vllm_eval.records import BASELINE
from vllm_eval.rescore.stored import MAX_BYTES, StoredFile
from vllm_eval.store import manifest
from vllm_eval.store.folder import CONFIG, JOURNAL, is_finished
from vllm_eval.tasks import Task, refuse_file

OUR_KEYS = {"task", "engine", "gate", "dataset_path"}
"""Together in a stored configuration they tell that we wrote it."""


def config_of(file: StoredFile) -> Mapping[str, Any]:
    """The configuration stored in a file, or beside a journal; empty where there is none."""
    if file.config or file.path.name != JOURNAL:
        return file.config
    try:
        text = file.path.with_name(CONFIG).read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # a journal without its folder
    return loaded if isinstance(loaded, dict) else {}


def _own_config(file: StoredFile) -> Mapping[str, Any]:
    """The configuration of a run of ours; empty where the file is of no such run."""
    config = config_of(file)
    return config if config.keys() >= OUR_KEYS else {}


def identity_of(file: StoredFile) -> Mapping[str, Any] | None:
    """What the run of a file was made of, from the manifest beside it; None where unknown."""
    identity = _manifest_of(file).get("identity")
    return identity if isinstance(identity, dict) else None


def records_of(file: StoredFile) -> int | None:
    """How many records the data set of a file's run had; None where unknown."""
    dataset = _manifest_of(file).get("dataset")
    records = dataset.get("records") if isinstance(dataset, dict) else None
    return records if isinstance(records, int) else None


def _manifest_of(file: StoredFile) -> Mapping[str, Any]:
    if file.path.name != JOURNAL and not _own_config(file):
        return {}
    try:
        recorded = orjson.loads(file.path.with_name(manifest.FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}  # a result file away from its folder
    return recorded if isinstance(recorded, dict) else {}


def task_of(files: Sequence[StoredFile], config: Config) -> str:
    """The task that `config` sets, else the one the files were made with, else the default.

    Raises:
        InputError: the files were made with different tasks, or with a file as their task.
    """
    if "task" in config.model_fields_set:
        return config.task
    named = {str(own["task"]): file.path for file in files if (own := _own_config(file))}
    if len(named) > 1:
        found = ", ".join(f"{path}: {task!r}" for task, path in named.items())
        raise InputError(f"config.task differs, {found}; score them one by one, or give --task")
    for task, path in named.items():
        refuse_file(task, path)
    return next(iter(named), config.task)


def thresholds_of(files: Sequence[StoredFile], config: Config, *, graded: bool) -> GateConfig:
    """The thresholds stored with the files, those that `config` sets laid over them.

    Raises:
        InputError: stored thresholds that cannot be used, or, where a verdict is `graded` by
            them, that differ between files.
    """
    given = config.gate.model_dump(exclude_unset=True) if "gate" in config.model_fields_set else {}
    merged: dict[str, Any] = {}
    taken: dict[str, Path] = {}
    for file in files:
        for key, value in _thresholds(file).items():
            if graded and key not in given and merged.get(key, value) != value:
                places = f"{taken[key]}: {merged[key]!r}, {file.path}: {value!r}"
                raise _differ(f"gate.{key}", places)
            merged[key] = value
            taken.setdefault(key, file.path)
    return GateConfig.model_validate_json(json.dumps(merged | given))


def _thresholds(file: StoredFile) -> Mapping[str, Any]:
    """All that a file's own configuration sets, or leaves at its default."""
    own = _own_config(file)
    if not own:
        return {}
    try:
        return GateConfig.model_validate_json(json.dumps(own["gate"])).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(["config", "gate", *map(str, first["loc"])])
        raise InputError(f"{file.path}: {key}: {first['msg'].lower()}") from error


def bootstrap_of(files: Sequence[StoredFile], config: Config, thresholds: GateConfig) -> Bootstrap:
    """Intervals as the run made them: with its seed, unless `config` sets one.

    Raises:
        InputError: the files were made with different seeds.
    """
    stored: dict[int, Path] = {}
    for file in files:
        seed = _own_config(file).get("seed")
        if isinstance(seed, int) and seed >= 0:
            stored.setdefault(seed, file.path)
    seed = config.seed
    if "seed" not in config.model_fields_set:
        if len(stored) > 1:
            raise _differ("seed", ", ".join(f"{path}: {seed}" for seed, path in stored.items()))
        seed = next(iter(stored), seed)
    return Bootstrap(thresholds.confidence or CONFIDENCE, seed=seed)


def _differ(key: str, places: str) -> InputError:
    give = f"set it with --config or -c {key}=..., or score them one by one"
    return InputError(f"config.{key} differs, and would decide the verdict: {places}; {give}")


def index_all(files: Sequence[StoredFile], config: Config, task: Task) -> dict[Path, CaseIndex]:
    """By file, where its cases lie; every one of them is there.

    The data set is the one `config` sets, else the one stored with the file, else the task's
    own, else the default.

    Raises:
        InputError: a data set that cannot be read, or that lacks a case of a file.
    """
    indexes: dict[Path, CaseIndex] = {}
    found: dict[Path, CaseIndex] = {}
    for file in files:
        path, own = data_path(config, task), config_of(file).get("dataset_path")
        if "dataset_path" not in config.model_fields_set and isinstance(own, str):
            path = resolve_path(own)
        if path not in indexes:
            indexes[path] = index_cases(path, task.declaration)
        found[file.path] = indexes[path]
        for concept_id, place in file.ids.items():
            if concept_id not in indexes[path].places:
                msg = (
                    f"{file.path}, {place}: concept_id {concept_id!r} is not in {path}; "
                    "give the data set of these answers with --dataset-path"
                )
                raise InputError(msg)
    return found


def other_data(files: Sequence[StoredFile], indexes: Mapping[Path, CaseIndex]) -> tuple[str, ...]:
    """A note on each file that was made with a data set of other content."""
    notes = []
    for file in files:
        identity, index = identity_of(file), indexes[file.path]
        if identity is not None and identity.get("dataset") not in (None, index.sha256):
            notes.append(f"{file.path}: made with a data set that differs from {index.path}")
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the files should hold together."""

    arms: tuple[str, ...]
    """All that their runs evaluate, also those without an answer yet."""
    outcomes: int
    """Of each arm: as many cases and samples as any of them is asked."""
    gaps: tuple[str, ...]
    """Why a file does not hold what it should."""

    def refuse(self, verdict: Verdict) -> Verdict:
        """The verdict, which no student passes on files with gaps."""
        if not self.gaps:
            return verdict
        why = "; ".join(self.gaps)
        name = "files that are whole"
        rule = Rule("whole_files", verdict.arm, name, None, 1.0, None, False, why)
        chance = None if verdict.pass_chance is None else 0.0
        rules = (*verdict.rules, rule)
        return replace(verdict, passed=False, rules=rules, pass_chance=chance)


def find_expected(files: Sequence[StoredFile], indexes: Mapping[Path, CaseIndex]) -> Expected:
    """What the files should hold, from what is stored in them and beside them.

    Where a run says nothing of its size, each arm should have every case and sample that any has.
    """
    arms: dict[str, None] = {}
    every: set[tuple[str, int]] = set()
    sizes = [0]
    gaps: list[str] = []
    for file in files:
        arms |= dict.fromkeys(_arms(file))
        every |= {key[1:] for key in file.keys}
        size = _run_size(file, indexes[file.path])
        if size is not None:
            sizes.append(size)
        gaps += _gaps(file, size)
    return Expected(tuple(arms), max(len(every), *sizes), tuple(gaps))


def _gaps(file: StoredFile, size: int | None) -> list[str]:
    path, held = file.path, file.outcomes
    gaps = []
    if file.partial:
        gaps.append(f'{path} says "partial": true')
    if file.stated is not None and file.stated != held:
        gaps.append(f"{path} says {file.stated} total_samples but holds {held}")
    each = Counter(key[0] for key, place in file.keys.items() if place)
    short = [arm for arm in _arms(file) if size is not None and each[arm] < size]
    return [*gaps, *(f"{path} holds {each[arm]} of {size} outcomes of {arm}" for arm in short)]


def _arms(file: StoredFile) -> tuple[str, ...]:
    """The arms that a file should hold: of a journal all that its run evaluates."""
    identity = identity_of(file) if file.path.name == JOURNAL else None
    adapters = identity.get("adapters") if identity else None
    run = (BASELINE, *adapters) if isinstance(adapters, dict) else ()
    return tuple(dict.fromkeys((*file.arms, *run)))


def _run_size(file: StoredFile, index: CaseIndex) -> int | None:
    """How many outcomes each arm of the run must have; None where that is not known."""
    identity = identity_of(file)
    records = records_of(file)
    if identity is not None and records is not None:
        return _size(identity, records)
    config = config_of(file)
    if file.partial or (file.path.name == JOURNAL and config):
        return _size(config, len(index.places))
    return None


def _size(settings: Mapping[str, Any], records: int) -> int:
    most, samples = settings.get("max_samples"), settings.get("samples_per_case")
    drawn = min(most, records) if isinstance(most, int) else records
    return drawn * (samples if isinstance(samples, int) else 1)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of answers behind `paths`, each of which is a file or a run folder.

    Of a run that did not end, or whose result files are too large to be read, its journal.

    Raises:
        InputError: there is no such file, or a folder without answers.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [*sorted(path.glob(f"{BASELINE}*.json")), *sorted(path.glob("student*.json"))]
        usable = inside and all(file.stat().st_size <= MAX_BYTES for file in inside)
        if (path / JOURNAL).is_file() and not (usable and is_finished(path)):
            inside = [path / JOURNAL]
        if not inside:
            raise InputError(f"{path}: has no {BASELINE}_*.json, student_*.json or {JOURNAL}")
        found += inside
    return list(dict.fromkeys(found))
