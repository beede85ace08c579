"""A run from start to end: prepare, evaluate, conclude."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vllm_eval.conclude.conclude import conclude, refuse_unanswered
from vllm_eval.conclude.one_pass import Evaluated
from vllm_eval.conclude.results import Finished
from vllm_eval.config.layers import dump_config
from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.engines import open_engine
from vllm_eval.errors import EngineDiedError, EngineError, EvalError, InputError
from vllm_eval.inputs import cases
from vllm_eval.inputs.plan import Plan, complete, read_plan
from vllm_eval.preflight.check import check_plan, refuse
from vllm_eval.records import Ledger, Progress, Watcher
from vllm_eval.report.stored_run import load_run
from vllm_eval.report.write import write_reports
from vllm_eval.run.loop import Job, evaluate
from vllm_eval.run.peak_memory import watch_memory
from vllm_eval.run.resume import AUTO, other_engine, refuse_other_engine, requeue_refused
from vllm_eval.store import folder as store
from vllm_eval.store import manifest
from vllm_eval.store.folder import RunFolder
from vllm_eval.store.journal import Journal
from vllm_eval.tasks.declaration import TASK_FILE, dump_declaration

_Stops = Callable[[Progress], AbstractContextManager[object]]


def run(
    config: Config,
    watcher: Watcher,
    resume: Path | Literal["auto"] | None = None,
    *,
    stop_on_signals: bool = False,
) -> Finished:
    """Evaluate base and students over the cases and decide whether the students pass.

    `resume` is the folder of a run to be continued, or `AUTO`; None for a new one. With
    `stop_on_signals`, the first SIGINT or SIGTERM while the engine answers ends the evaluation
    cleanly, with a partial run, the second one at once.

    Raises:
        InputError: configuration, data set or adapter cannot be used, or the run to be
            resumed is another one.
        EngineError: the engine could not be started, or died too often.
        KeyboardInterrupt: Ctrl-C, unless `stop_on_signals`; a note names the folder to resume.
    """
    start = time.monotonic()
    plan = _prepare(config, watcher)
    config = plan.config
    folder = _open_folder(plan, resume, watcher)
    with closing(Journal(folder.journal)) as journal:
        if changed := store.note_config(folder.path, dump_config(config)):
            watcher.stage(f"resumed with a different {', '.join(changed)}")
        if requeued := requeue_refused(plan, folder.path, journal):
            watcher.stage(f"asking {requeued} prompts again that were too long before")
        progress = _progress(plan, journal.ledger)
        if progress.done < progress.total:
            refuse_other_engine(plan, folder.path)
            stops: _Stops = _stop_on_signals if stop_on_signals else nullcontext
            with watch_memory() as memory, _naming_folder(folder):
                engine_load_s = _generate(plan, folder, journal, progress, watcher, stops)
            session = {
                "engine_load_s": engine_load_s,
                "grading_s": progress.grading_s,
                "peak_host_mib": memory.host_mib,
                "peak_device_mib": memory.device_mib,
                "total_s": time.monotonic() - start,
            }
            sessions = [*manifest.read(folder.path).get("sessions", ()), session]
            store.add_to_json(folder.path / manifest.FILE, {"sessions": sessions})
        watcher.stage("scoring and writing results")
        finished = conclude(_evaluated(plan, folder, partial=progress.stopping))
    _write_reports(config, folder, watcher)
    refuse_unanswered(finished)
    return finished


def _prepare(config: Config, watcher: Watcher) -> Plan:
    """Read and check everything before the engine."""
    watcher.stage("checking data set and adapters")
    findings = check_plan(draft := read_plan(config))
    for finding in findings:
        if finding.level == "warning" or finding.where == "profile":
            watcher.stage(finding.line)
    refuse(findings)
    return complete(draft)


def _progress(plan: Plan, ledger: Ledger) -> Progress:
    """The progress of an evaluation that continues from a journal."""
    return Progress(
        total=len(plan.dataset.drawn) * len(plan.arms) * plan.config.samples_per_case,
        done=len(ledger.done),
        valid=ledger.valid,
        failed=len(ledger.done) - ledger.valid,
        attempts=ledger.attempts,
        output_tokens=ledger.output_tokens,
        seconds=ledger.seconds,
    )


def _write_reports(config: Config, folder: RunFolder, watcher: Watcher) -> None:
    """Write the report and then the ZIP, even if the report fails."""
    try:
        if config.report:
            watcher.stage("writing the report")
            write_reports(load_run(folder.path))
    except (EvalError, OSError) as error:  # the verdict does not depend on it
        again = f"python -m vllm_eval report {folder.path}"
        watcher.stage(f"the report was not written: {error}; try again with {again}")
    finally:
        store.write_zip(folder)


def _evaluated(plan: Plan, folder: RunFolder, *, partial: bool) -> Evaluated:
    """Conclude the run; without a stop nothing may be pending, so lost answers are noticed."""
    paths = {arm.name: str(arm.adapter.path) if arm.adapter else None for arm in plan.arms}
    recorded, rows = manifest.read(folder.path), store.index_rows(folder.path)
    return Evaluated(folder, recorded, plan.config, paths, rows, plan.task, partial)


def _open_folder(plan: Plan, resume: Path | Literal["auto"] | None, watcher: Watcher) -> RunFolder:
    """A new run folder, or the one to resume, after checking that it is of the same run."""
    identity = manifest.identify(plan)
    output_dir = resolve_path(plan.config.output_dir)

    def usable(path: Path, engine: Mapping[str, Any]) -> bool:
        if why := other_engine(plan, engine):
            watcher.stage(f"resume: not {path}: {why}")
        return why is None

    if resume == AUTO:
        resume = store.find_like(output_dir, identity, usable=usable)
        watcher.stage(f"resume: {resume or 'no run like this one yet, so a new one starts'}")
    if resume is not None:
        recorded = manifest.read(resume)
        if changed := manifest.differences(recorded["identity"], identity):
            msg = f"{resume}: cannot be resumed, it is a different run: {'; '.join(changed)}"
            raise InputError(msg)
        folder = RunFolder(resume, store.timestamp_of(resume, recorded))
        if not (resume / store.CASES).is_file():
            _note_cases(plan, folder)
        return folder
    if unfinished := store.find_like(output_dir, identity, finished=False):
        watcher.stage(f"an unfinished run like this one: continue it with --resume {unfinished}")
    now = datetime.now().astimezone()
    folder = store.create_run(output_dir, plan.config.tag or plan.arms[1].name, now)
    store.write_text(folder.path / store.CONFIG, dump_config(plan.config))
    store.write_text(folder.path / TASK_FILE, dump_declaration(plan.task.declaration))
    _note_cases(plan, folder)
    store.write_json(folder.path / manifest.FILE, manifest.describe(plan, identity, now))
    return folder


def _note_cases(plan: Plan, folder: RunFolder) -> None:
    drawn = cases.read_cases(plan.dataset)
    store.write_cases(folder, ((case, plan.task.prompt(case)) for case in drawn))


def _generate(
    plan: Plan,
    folder: RunFolder,
    journal: Journal,
    progress: Progress,
    watcher: Watcher,
    stops: _Stops,
) -> float:
    """Answer what is pending, restarting a dead engine; returns the seconds of the first start."""
    config, life, load_s = plan.config, 0, 0.0
    samples, attempts = config.samples_per_case, 1 + config.retries
    read = partial(cases.read_cases, plan.dataset)
    job = Job(plan.task, plan.arms, read, samples, attempts, config.seed)
    while True:
        watcher.stage(f"starting the {config.engine} engine; its log is {folder.engine_log}")
        begin, log = time.monotonic(), folder.engine_log
        try:
            with closing(open_engine(config, plan.arms, plan.base_model, log, life)) as engine:
                load_s = load_s or time.monotonic() - begin
                _note_engine(folder, engine.about)
                watcher.stage(f"evaluating {len(plan.dataset.drawn)} cases, {len(plan.arms)} arms")
                with stops(progress):
                    ledger, record = journal.ledger, journal.append
                    evaluate(job, engine, ledger, record, progress, watcher.progress)
                _note_engine(folder, engine.about)  # including what it had to send again
                return load_s
        except EngineDiedError as error:
            if progress.stopping:  # Ctrl-C reaches the engine's processes too
                return load_s
            if life >= config.max_engine_restarts:
                msg = f"{error}; what finished is safe: --resume {folder.path}"
                raise EngineError(msg) from error
            life += 1
            watcher.stage(f"{error}; {progress.done} of {progress.total} outcomes are safe")


def _note_engine(folder: RunFolder, about: Mapping[str, str | int]) -> None:
    """Store the engine's description of itself; InputError if an earlier session's differs."""
    before = manifest.read(folder.path).get("engine", {})
    for key in ("engine", "vllm", "transformers", "dtype", "quantization", "models"):
        if before and before.get(key) != about.get(key):
            msg = f"{folder.path}: begun with {key} {before.get(key)!r}, not {about.get(key)!r}"
            raise InputError(f"{msg}; start a new run, without --resume")
    store.add_to_json(folder.path / manifest.FILE, {"engine": dict(about)})


@contextmanager
def _naming_folder(folder: RunFolder) -> Iterator[None]:
    """Add to an interrupt where the answers so far are."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"what has finished is in {folder.path}; resume it to continue")
        raise


@contextmanager
def _stop_on_signals(progress: Progress) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the evaluation cleanly, the second one at once."""

    def stop(number: int, frame: object) -> None:
        del number, frame
        if progress.stopping:
            raise KeyboardInterrupt
        progress.stopping = True

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
