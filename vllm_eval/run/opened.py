"""A run folder that this process writes to: a new one, or the one to resume; and its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vllm_eval.config.layers import dump_config
from vllm_eval.config.settings import resolve_path
from vllm_eval.engines.base_canary import to_json
from vllm_eval.engines.protocol import Engine
from vllm_eval.errors import EngineError, InputError
from vllm_eval.inputs import cases
from vllm_eval.inputs.arms import run_label
from vllm_eval.inputs.plan import Plan
from vllm_eval.preflight.baseline import count, open_baseline
from vllm_eval.preflight.engine_release import other_about, other_engine
from vllm_eval.preflight.reused import CANARY, FROM, reused_to_json
from vllm_eval.records import Watcher
from vllm_eval.run.baseline import copy_answers, hold_base
from vllm_eval.run.resume import AUTO
from vllm_eval.store import folder as store
from vllm_eval.store import manifest
from vllm_eval.store.folder import RunFolder
from vllm_eval.store.journal import Journal
from vllm_eval.tasks.declaration import TASK_FILE, dump_declaration


@dataclass(frozen=True, slots=True)
class Opened:
    """A run whose journal this process alone writes to."""

    plan: Plan
    watcher: Watcher
    folder: RunFolder
    manifest: dict[str, Any]
    """What the run is made of; written again whenever it changes."""
    journal: Journal


@contextmanager
def open_run(
    plan: Plan, resume: Path | Literal["auto"] | None, watcher: Watcher
) -> Iterator[Opened]:
    """A new run folder, or the one to resume if it is of the same run.

    The manifest is read under the journal's lock, so that no other process changes it later.
    """

    def usable(path: Path, engine: Mapping[str, Any]) -> bool:
        if why := other_engine(plan, engine):
            watcher.stage(f"resume: not {path}: {why}")
        return why is None

    if resume == AUTO:
        output_dir = resolve_path(plan.config.output_dir)
        resume = store.find_like(output_dir, manifest.identify(plan), usable=usable)
        watcher.stage(f"resume: {resume or 'no run like this one yet, so a new one starts'}")
    with _resumed(plan, resume, watcher) if resume else _begun(plan, watcher) as opened:
        yield opened


@contextmanager
def _resumed(plan: Plan, path: Path, watcher: Watcher) -> Iterator[Opened]:
    with closing(Journal(path / store.JOURNAL)) as journal:
        recorded, identity = manifest.read(path), manifest.identify(plan)
        if changed := manifest.differences(recorded["identity"], identity):
            msg = f"{path}: cannot be resumed, it is a different run: {'; '.join(changed)}"
            again = manifest.adapters_again(recorded)
            if again and recorded["identity"].get("adapters") != identity["adapters"]:
                msg += f"; its own adapters are {again}"
            raise InputError(msg)
        if plan.config.baseline is not None and recorded.get(FROM) is None:
            watcher.stage(
                "resume: --baseline is ignored: only a new run takes another one's answers"
            )
        folder = RunFolder(path, store.timestamp_of(path, recorded))
        if not (path / store.CASES).is_file():
            _note_cases(plan, folder)
        yield Opened(plan, watcher, folder, recorded, journal)


@contextmanager
def _begun(plan: Plan, watcher: Watcher) -> Iterator[Opened]:
    """A new run; without a manifest it is none, so that comes last."""
    identity, output_dir = manifest.identify(plan), resolve_path(plan.config.output_dir)
    if unfinished := store.find_like(output_dir, identity, finished=False):
        watcher.stage(f"an unfinished run like this one: continue it with --resume {unfinished}")
    found = open_baseline(plan) if plan.config.baseline is not None else None
    now = datetime.now().astimezone()
    folder = store.create_run(output_dir, plan.config.tag or run_label(plan.arms), now)
    store.write_text(folder.path / store.CONFIG, dump_config(plan.config))
    store.write_text(folder.path / TASK_FILE, dump_declaration(plan.task.declaration))
    _note_cases(plan, folder)
    recorded = manifest.describe(plan, identity, now)
    with closing(Journal(folder.journal)) as journal:
        if found is not None:
            copied = copy_answers(found, journal)
            watcher.stage(f"baseline: {count(found, copied.answers)}")
            recorded |= {FROM: reused_to_json(copied), CANARY: found.base and to_json(found.base)}
        store.write_json(folder.path / manifest.FILE, recorded)
        yield Opened(plan, watcher, folder, recorded, journal)


def _note_cases(plan: Plan, folder: RunFolder) -> None:
    drawn = cases.read_cases(plan.dataset)
    store.write_cases(folder, ((case, plan.task.prompt(case)) for case in drawn))


def note_engine(opened: Opened, about: Mapping[str, str | int]) -> None:
    """Store the engine's description of itself; InputError if an earlier session's differs."""
    before = opened.manifest.get("engine")
    if before and (why := other_about(before, about)):
        raise InputError(f"{opened.folder.path}: {why}; start a new run, without --resume")
    note(opened, "engine", dict(about))


def note_base(opened: Opened, engine: Engine) -> None:
    """Store what the base answers the canary, or hold it against the re-used baseline's.

    Answers of another base are taken out again, unless this run has asked anything on top of them.

    Raises:
        EngineError: the re-used answers are not this base's.
    """
    begun = opened.journal.ledger.attempts > 0
    found, why = hold_base(opened.manifest, engine, opened.plan.config, begun=begun)
    todo = "continue with the engine and hardware that it was begun with, or start a new run"
    if why and not begun:
        opened.journal.drop(lambda attempt: attempt.reused)
        found = dict.fromkeys((FROM, CANARY))
        todo = f"--resume {opened.folder.path} asks the baseline anew"
    for key, value in found.items():
        note(opened, key, value)
    if why:
        raise EngineError(f"baseline: {why}; {todo}")


def note(opened: Opened, key: str, value: object) -> None:
    """Set a key of the manifest, and write the manifest if that changes it."""
    if opened.manifest.get(key) != value:
        opened.manifest[key] = value
        store.write_json(opened.folder.path / manifest.FILE, opened.manifest)
