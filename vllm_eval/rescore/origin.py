"""The origin of stored answers: their data set, task, thresholds and seed, and all their outcomes.

The outcomes count because the gate must not pass on a part of a run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import ValidationError

from vllm_eval.compare.rules import make_rule
from vllm_eval.compare.selection import Origin
from vllm_eval.compare.verdict import Verdict
from vllm_eval.config.layers import validated
from vllm_eval.config.settings import Config, GateConfig, resolve_path
from vllm_eval.errors import InputError
from vllm_eval.inputs.cases import CaseIndex, index_cases
from vllm_eval.inputs.plan import data_path
from vllm_eval.records import BASELINE
from vllm_eval.rescore.stored import MAX_BYTES, StoredFile
from vllm_eval.store import manifest
from vllm_eval.store.folder import CONFIG, JOURNAL, index_rows, is_finished
from vllm_eval.tasks import Task, refuse_file

OUR_KEYS = {"task", "engine", "gate", "dataset_path"}
"""A stored configuration with all of these is ours."""


def config_of(file: StoredFile) -> Mapping[str, Any]:
    """The configuration stored in a file or beside a journal; empty if there is none."""
    if file.config or file.path.name != JOURNAL:
        return file.config
    try:
        loaded = yaml.safe_load(file.path.with_name(CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # a journal without its folder
    return loaded if isinstance(loaded, dict) else {}


def _own_config(file: StoredFile) -> Mapping[str, Any]:
    """The configuration of one of our runs; empty for any other file."""
    config = config_of(file)
    return config if config.keys() >= OUR_KEYS else {}


def identity_of(file: StoredFile) -> Mapping[str, Any] | None:
    """The identity of a file's run, from the manifest beside it; None if unknown."""
    identity = _manifest_of(file).get("identity")
    return identity if isinstance(identity, dict) else None


def _manifest_of(file: StoredFile) -> Mapping[str, Any]:
    if file.path.name != JOURNAL and not _own_config(file):
        return {}
    try:
        recorded = orjson.loads(file.path.with_name(manifest.FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}  # a result file away from its folder
    return recorded if isinstance(recorded, dict) else {}


def task_of(files: Sequence[StoredFile], config: Config) -> str:
    """The task that `config` sets, else the one stored with the files, else the default.

    Raises:
        InputError: the files have different tasks, or a Python file as their task.
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
    """The thresholds stored with the files, overridden by those that `config` sets.

    Raises:
        InputError: stored thresholds are invalid, do not fit those given, or differ between files
            although a verdict is `graded` by them.
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
    return validated(Config, {"gate": merged | given}, "stored thresholds and those given").gate


def _thresholds(file: StoredFile) -> Mapping[str, Any]:
    """All thresholds of a file's own configuration, defaults included."""
    own = _own_config(file)
    if not own:
        return {}
    try:
        return GateConfig.model_validate_json(json.dumps(own["gate"])).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(["config", "gate", *map(str, first["loc"])])
        raise InputError(f"{file.path}: {key}: {first['msg'].lower()}") from error


def origins_of(files: Sequence[StoredFile]) -> dict[str, Origin]:
    """Where the students' adapters come from, by arm, as the manifests beside the files say."""
    recorded = [manifest.origins(_manifest_of(file)) for file in files]
    return {arm: origin for found in recorded for arm, origin in found.items()}


def seed_of(files: Sequence[StoredFile], config: Config) -> int:
    """The run's own seed, unless `config` sets one.

    Raises:
        InputError: the files have different seeds.
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
    return seed


def _differ(key: str, places: str) -> InputError:
    give = f"set it with --config or -c {key}=..., or score them one by one"
    return InputError(f"config.{key} differs, and would decide the verdict: {places}; {give}")


def index_all(files: Sequence[StoredFile], config: Config, task: Task) -> dict[Path, CaseIndex]:
    """The places of each file's cases, by file.

    The data set is the one that `config` sets, else the one stored with the file, else the task's
    own, else the default.

    Raises:
        InputError: a data set cannot be read, or lacks a case of a file.
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
                raise InputError(
                    f"{file.path}, {place}: concept_id {concept_id!r} is not in {path}; "
                    "give the data set of these answers with --dataset-path"
                )
    return found


def other_data(files: Sequence[StoredFile], indexes: Mapping[Path, CaseIndex]) -> list[str]:
    """A note on each file whose run had a data set with other content."""
    notes = []
    for file in files:
        identity, index = identity_of(file), indexes[file.path]
        if identity is not None and identity.get("dataset") not in (None, index.sha256):
            notes.append(f"{file.path}: made with a data set that differs from {index.path}")
    return notes


@dataclass(frozen=True, slots=True)
class Expected:
    """What complete files would hold."""

    arms: tuple[str, ...]
    """All arms of the runs, including those without an answer yet."""
    outcomes: int
    """Of each arm: the largest number of cases and samples that any arm is asked."""
    gaps: tuple[str, ...]
    """Why a file is incomplete."""
    drawn: tuple[str, ...] | None = None
    """The cases that could be drawn, in the order drawn; None if unknown."""

    def refuse(self, verdict: Verdict) -> Verdict:
        """The verdict, which fails if files have gaps."""
        if not self.gaps:
            return verdict
        name, why = "files that are whole", "; ".join(self.gaps)
        rule = make_rule("whole_files", verdict.arm, name, None, 1.0, why)
        chance = None if verdict.pass_chance is None else 0.0
        rules = (*verdict.rules, rule)
        return replace(verdict, word="FAIL", certified="FAIL", rules=rules, pass_chance=chance)


def find_expected(files: Sequence[StoredFile], indexes: Mapping[Path, CaseIndex]) -> Expected:
    """What complete files would hold, from what is stored in them and beside them.

    If a run does not state its size, each arm should have every case and sample that any arm has.
    An answer that repeats a case without a `sample` is a further sample if all arms have it, and a
    gap in its own file otherwise.
    """
    arms: dict[str, None] = {}
    every = {key[1:] for file in files for key in file.keys if key not in file.counted}
    repeated = Counter(key[1:] for file in files for key in file.counted)
    holders = sum(len(file.arms) for file in files)
    every |= {key for key, times in repeated.items() if times == holders}
    sizes = [0]
    gaps: list[str] = []
    for file in files:
        arms |= dict.fromkeys(_arms(file))
        size = _run_size(file, indexes[file.path])
        sizes.append(size or 0)
        gaps += [*_gaps(file, size), *_duplicates(file, every)]
    return Expected(tuple(arms), max(len(every), *sizes), tuple(gaps), _drawn(files))


def _drawn(files: Sequence[StoredFile]) -> tuple[str, ...] | None:
    """The cases of the runs that all the files are of, if they drew the same."""
    folders = {file.path.parent for file in files if _manifest_of(file)}
    try:
        orders = {tuple(index_rows(folder).order) for folder in folders}
    except InputError:  # the answers are all there without it
        return None
    return orders.pop() if len(orders) == 1 and all(map(_manifest_of, files)) else None


def _gaps(file: StoredFile, size: int | None) -> list[str]:
    path, held, stated = file.path, file.outcomes, file.head.get("total_samples")
    gaps = [f'{path} says "partial": true'] if file.partial else []
    if isinstance(stated, int) and not isinstance(stated, bool) and stated != held:
        gaps.append(f"{path} says {stated} total_samples but holds {held}")
    each = Counter(key[0] for key, place in file.keys.items() if place)
    short = [arm for arm in _arms(file) if size is not None and each[arm] < size]
    return [*gaps, *(f"{path} holds {each[arm]} of {size} outcomes of {arm}" for arm in short)]


def _duplicates(file: StoredFile, every: Collection[tuple[str, int]]) -> Iterator[str]:
    """A gap for each arm with answers that repeat a case and that another arm lacks."""
    for arm in file.arms:
        keys = [key for key in file.counted if key[0] == arm and key[1:] not in every]
        if keys:
            repeat = "1 answer repeats" if len(keys) == 1 else f"{len(keys)} answers repeat"
            repeat += f" a case of {arm} without a `sample`, and another arm has fewer"
            yield f"{file.path}: {repeat} (first {file.keys[keys[0]]}, concept_id {keys[0][1]!r})"


def _arms(file: StoredFile) -> tuple[str, ...]:
    """The arms that a file should hold; a journal should hold all arms of its run."""
    identity = identity_of(file) if file.path.name == JOURNAL else None
    adapters = identity.get("adapters") if identity else None
    run = (BASELINE, *adapters) if isinstance(adapters, dict) else ()
    return tuple(dict.fromkeys((*file.arms, *run)))


def _run_size(file: StoredFile, index: CaseIndex) -> int | None:
    """How many outcomes each arm of the run must have; None if unknown."""
    recorded = _manifest_of(file)
    settings, dataset = recorded.get("identity"), recorded.get("dataset")
    records = dataset.get("records") if isinstance(dataset, dict) else None
    if not isinstance(settings, dict) or not isinstance(records, int):
        settings, records = config_of(file), len(index.places)
        if not file.partial and not (file.path.name == JOURNAL and settings):
            return None
    most, samples = settings.get("max_samples"), settings.get("samples_per_case")
    most = file.settled or most
    drawn = min(most, records) if isinstance(most, int) else records
    return drawn * (samples if isinstance(samples, int) else 1)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of answers at `paths`, each of which is a file or a run folder.

    In the folder of a run that is unfinished, or has too large result files, this is the journal.

    Raises:
        InputError: a folder has no answers.
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
