"""A run from start to end: prepare, evaluate, conclude."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vllm_eval.compare.settling import Settling
from vllm_eval.conclude.conclude import conclude, refuse_unanswered
from vllm_eval.conclude.one_pass import Evaluated, outcome_of, settle
from vllm_eval.conclude.results import Finished
from vllm_eval.config.layers import dump_config
from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.engines import open_engine
from vllm_eval.engines.protocol import Engine
from vllm_eval.errors import EngineDiedError, EngineError, EvalError, InputError
from vllm_eval.inputs import cases
from vllm_eval.inputs.plan import Plan, complete, read_plan
from vllm_eval.preflight.check import check_plan, refuse
from vllm_eval.records import Attempt, Ledger, Progress, Watcher
from vllm_eval.report.stored_run import StoredRun, load_run
from vllm_eval.report.write import write_reports
from vllm_eval.run.loop import Job, evaluate
from vllm_eval.run.peak_memory import watch_memory
from vllm_eval.run.resume import AUTO, other_engine, refuse_other_engine, requeue_refused
from vllm_eval.store import folder as store
from vllm_eval.store import manifest
from vllm_eval.store.folder import RunFolder
from vllm_eval.store.journal import Journal, read_journal
from vllm_eval.tasks.declaration import TASK_FILE, dump_declaration

_Stops = Callable[[Progress], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A run whose journal this process alone writes to."""

    plan: Plan
    watcher: Watcher
    folder: RunFolder
    manifest: dict[str, Any]
    """What the run is made of; written again whenever it changes."""
    journal: Journal


def run(
    config: Config,
    watcher: Watcher,
    resume: Path | Literal["auto"] | None = None,
    *,
    stop_on_signals: bool = False,
) -> tuple[Finished, StoredRun]:
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
    with _open(plan, resume, watcher) as opened:
        folder = opened.folder
        if changed := store.note_config(folder.path, dump_config(config)):
            watcher.stage(f"resumed with a different {', '.join(changed)}")
        if requeued := requeue_refused(plan, folder.path, opened.manifest, opened.journal):
            watcher.stage(f"asking {requeued} prompts again that were too long before")
        progress, settling = _progress(plan, opened.journal.ledger), None
        if config.until_settled:
            settling = settle(_evaluated(opened, partial=True), read_journal(folder.journal))
            progress.stopping = settling.look() is not None
        if progress.done < progress.total and not progress.stopping:
            refuse_other_engine(plan, folder.path, opened.manifest)
            stops = _stop_on_signals if stop_on_signals else nullcontext
            session = _answer_pending(opened, settling, progress, stops)
            session["total_s"] = time.monotonic() - start
            _note(opened, "sessions", [*opened.manifest.get("sessions", ()), session])
        watcher.stage("scoring and writing results")
        finished = conclude(_evaluated(opened, partial=progress.stopping))
    stored = load_run(folder.path)
    _write_reports(config, folder, stored, watcher)
    refuse_unanswered(finished)
    return finished, stored


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


def _write_reports(config: Config, folder: RunFolder, stored: StoredRun, watcher: Watcher) -> None:
    """Write the report and then the ZIP, even if the report fails."""
    try:
        if config.report:
            watcher.stage("writing the report")
            write_reports(stored)
    except (EvalError, OSError) as error:  # the verdict does not depend on it
        again = f"python -m vllm_eval report {folder.path}"
        watcher.stage(f"the report was not written: {error}; try again with {again}")
    finally:
        store.write_zip(folder)


def _evaluated(opened: _Opened, *, partial: bool) -> Evaluated:
    """The run to conclude; without a stop nothing may be pending, so lost answers are noticed."""
    plan, folder = opened.plan, opened.folder
    paths = {arm.name: str(arm.adapter.path) if arm.adapter else None for arm in plan.arms}
    rows = store.index_rows(folder.path)
    return Evaluated(folder, opened.manifest, plan.config, paths, rows, plan.task, partial)


@contextmanager
def _open(plan: Plan, resume: Path | Literal["auto"] | None, watcher: Watcher) -> Iterator[_Opened]:
    """A new run folder, or the one to resume if it is of the same run.

    The manifest is read under the journal's lock, so that no other process changes it later.
    """
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
        with closing(Journal(resume / store.JOURNAL)) as journal:
            recorded = manifest.read(resume)
            if changed := manifest.differences(recorded["identity"], identity):
                msg = f"{resume}: cannot be resumed, it is a different run: {'; '.join(changed)}"
                raise InputError(msg)
            folder = RunFolder(resume, store.timestamp_of(resume, recorded))
            if not (resume / store.CASES).is_file():
                _note_cases(plan, folder)
            yield _Opened(plan, watcher, folder, recorded, journal)
        return
    if unfinished := store.find_like(output_dir, identity, finished=False):
        watcher.stage(f"an unfinished run like this one: continue it with --resume {unfinished}")
    now = datetime.now().astimezone()
    folder = store.create_run(output_dir, plan.config.tag or plan.arms[1].name, now)
    store.write_text(folder.path / store.CONFIG, dump_config(plan.config))
    store.write_text(folder.path / TASK_FILE, dump_declaration(plan.task.declaration))
    _note_cases(plan, folder)
    recorded = manifest.describe(plan, identity, now)
    store.write_json(folder.path / manifest.FILE, recorded)
    with closing(Journal(folder.journal)) as journal:
        yield _Opened(plan, watcher, folder, recorded, journal)


def _note_cases(plan: Plan, folder: RunFolder) -> None:
    drawn = cases.read_cases(plan.dataset)
    store.write_cases(folder, ((case, plan.task.prompt(case)) for case in drawn))


def _answer_pending(
    opened: _Opened, settling: Settling | None, progress: Progress, stops: _Stops
) -> dict[str, float | None]:
    """Answer and grade what is pending; returns the times and the memory that this took."""
    journal, watcher = opened.journal, opened.watcher
    job, record = _job(opened.plan, settling), partial(_record, journal, settling, progress)

    def answer(engine: Engine) -> None:
        with stops(progress):
            evaluate(job, engine, journal.ledger, record, progress, watcher.progress)

    with watch_memory() as memory, _naming_folder(opened.folder):
        engine_load_s = _generate(opened, progress, answer)
    return {
        "engine_load_s": engine_load_s,
        "grading_s": progress.grading_s,
        "peak_host_mib": memory.host_mib,
        "peak_device_mib": memory.device_mib,
    }


def _generate(opened: _Opened, progress: Progress, answer: Callable[[Engine], None]) -> float:
    """Run `answer`, restarting a dead engine; returns the seconds of the first start."""
    plan, folder, watcher = opened.plan, opened.folder, opened.watcher
    config, life, load_s = plan.config, 0, 0.0
    while True:
        watcher.stage(f"starting the {config.engine} engine; its log is {folder.engine_log}")
        begin, log = time.monotonic(), folder.engine_log
        try:
            with closing(open_engine(config, plan.arms, plan.base_model, log, life)) as engine:
                load_s = load_s or time.monotonic() - begin
                _note_engine(opened, engine.about)
                if unproven := engine.about.get("canary_warning"):
                    watcher.stage(f"warning  {unproven}")
                watcher.stage(f"evaluating {len(plan.dataset.drawn)} cases, {len(plan.arms)} arms")
                answer(engine)
                _note_engine(opened, engine.about)  # including what it had to send again
                return load_s
        except EngineDiedError as error:
            if progress.stopping:  # Ctrl-C reaches the engine's processes too
                return load_s
            if life >= config.max_engine_restarts:
                msg = f"{error}; what finished is safe: --resume {folder.path}"
                raise EngineError(msg) from error
            life += 1
            watcher.stage(f"{error}; {progress.done} of {progress.total} outcomes are safe")


def _job(plan: Plan, settling: Settling | None) -> Job:
    config, read = plan.config, partial(cases.read_cases, plan.dataset)
    samples, attempts = config.samples_per_case, 1 + config.retries
    job = Job(plan.task, plan.arms, read, samples, attempts, config.seed)
    return replace(job, limit=lambda: settling.limit) if settling else job


def _record(
    journal: Journal, settling: Settling | None, progress: Progress, attempts: Sequence[Attempt]
) -> None:
    """Write attempts to the journal, and end the evaluation if they settle the verdict."""
    journal.append(attempts)
    if settling is not None:
        settling.take(outcome_of(attempt) for attempt in attempts if attempt.final)
        progress.stopping = progress.stopping or settling.settled is not None


def _note_engine(opened: _Opened, about: Mapping[str, str | int]) -> None:
    """Store the engine's description of itself; InputError if an earlier session's differs."""
    before = opened.manifest.get("engine", {})
    for key in ("engine", "vllm", "transformers", "dtype", "quantization", "models"):
        if before and before.get(key) != about.get(key):
            differs = f"{key} {before.get(key)!r}, not {about.get(key)!r}"
            msg = f"{opened.folder.path}: begun with {differs}; start a new run, without --resume"
            raise InputError(msg)
    _note(opened, "engine", dict(about))


def _note(opened: _Opened, key: str, value: object) -> None:
    """Set a key of the manifest, and write the manifest if that changes it."""
    if opened.manifest.get(key) != value:
        opened.manifest[key] = value
        store.write_json(opened.folder.path / manifest.FILE, opened.manifest)


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
