"""A run from start to end: prepare, evaluate, conclude."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from vllm_eval.compare.settling import Settling
from vllm_eval.conclude.conclude import conclude, refuse_unanswered
from vllm_eval.conclude.one_pass import Evaluated, outcome_of, settle
from vllm_eval.conclude.results import Finished
from vllm_eval.config.layers import dump_config
from vllm_eval.config.settings import Config
from vllm_eval.engines import open_engine
from vllm_eval.engines.protocol import Engine
from vllm_eval.errors import EngineDiedError, EngineError, EvalError
from vllm_eval.inputs import cases
from vllm_eval.inputs.plan import Plan, complete, read_plan
from vllm_eval.preflight.check import ADAPTERS, check_plan, refuse
from vllm_eval.preflight.slots import Slots, choose_slots
from vllm_eval.records import Attempt, Ledger, Progress, Watcher
from vllm_eval.report.stored_run import StoredRun, load_run
from vllm_eval.report.write import write_reports
from vllm_eval.run.loop import Job, evaluate
from vllm_eval.run.opened import Opened, note, note_base, note_engine, open_run
from vllm_eval.run.peak_memory import watch_memory
from vllm_eval.run.resume import refuse_other_engine, requeue_refused
from vllm_eval.store import folder as store
from vllm_eval.store.folder import RunFolder
from vllm_eval.store.journal import Journal, read_journal

_Stops = Callable[[Progress], AbstractContextManager[object]]


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
    with open_run(plan, resume, watcher) as opened:
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
            note(opened, "sessions", [*opened.manifest.get("sessions", ()), session])
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
        if finding.level == "warning" or finding.where in ("profile", ADAPTERS):
            watcher.stage(finding.line)
    refuse(findings)
    return complete(draft)


def _progress(plan: Plan, ledger: Ledger) -> Progress:
    """The progress of an evaluation that continues from a journal."""
    return Progress(
        total=len(plan.dataset.drawn) * len(plan.arms) * plan.config.samples_per_case,
        done=len(ledger.done),
        reused=ledger.reused,
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


def _evaluated(opened: Opened, *, partial: bool) -> Evaluated:
    """The run to conclude; without a stop nothing may be pending, so lost answers are noticed."""
    plan, folder = opened.plan, opened.folder
    paths = {arm.name: str(arm.adapter.path) if arm.adapter else None for arm in plan.arms}
    rows = store.index_rows(folder.path)
    return Evaluated(folder, opened.manifest, plan.config, paths, rows, plan.task, partial)


def _answer_pending(
    opened: Opened, settling: Settling | None, progress: Progress, stops: _Stops
) -> dict[str, float | None]:
    """Answer and grade what is pending; returns the times and the memory that this took."""
    journal, watcher = opened.journal, opened.watcher
    slots = choose_slots(opened.plan)
    job = _job(opened.plan, settling, slots)
    record = partial(_record, journal, settling, progress)

    def answer(engine: Engine) -> None:
        with stops(progress):
            evaluate(job, engine, journal.ledger, record, progress, watcher.progress)

    with watch_memory() as memory, _naming_folder(opened.folder):
        engine_load_s = _generate(opened, slots, progress, answer)
    return {
        "engine_load_s": engine_load_s,
        "grading_s": progress.grading_s,
        "peak_host_mib": memory.host_mib,
        "peak_device_mib": memory.device_mib,
    }


def _generate(
    opened: Opened, slots: Slots, progress: Progress, answer: Callable[[Engine], None]
) -> float:
    """Run `answer`, restarting a dead engine; returns the seconds of the first start."""
    plan, folder, watcher = opened.plan, opened.folder, opened.watcher
    config, life, load_s = slots.applied(plan.config), 0, 0.0
    while True:
        watcher.stage(f"starting the {config.engine} engine; its log is {folder.engine_log}")
        begin, log = time.monotonic(), folder.engine_log
        try:
            with closing(open_engine(config, plan.arms, plan.base_model, log, life)) as engine:
                load_s = load_s or time.monotonic() - begin
                note_engine(opened, engine.about)
                note_base(opened, engine)
                if unproven := engine.about.get("canary_warning"):
                    watcher.stage(f"warning  {unproven}")
                watcher.stage(f"evaluating {len(plan.dataset.drawn)} cases, {len(plan.arms)} arms")
                answer(engine)
                note_engine(opened, engine.about)  # including what it had to send again
                return load_s
        except EngineDiedError as error:
            if progress.stopping:  # Ctrl-C reaches the engine's processes too
                return load_s
            if life >= config.max_engine_restarts:
                msg = f"{error}; what finished is safe: --resume {folder.path}"
                raise EngineError(msg) from error
            life += 1
            watcher.stage(f"{error}; {progress.done} of {progress.total} outcomes are safe")


def _job(plan: Plan, settling: Settling | None, slots: Slots) -> Job:
    config, read = plan.config, partial(cases.read_cases, plan.dataset)
    samples, attempts = config.samples_per_case, 1 + config.retries
    job = Job(plan.task, plan.arms, read, samples, attempts, config.seed, slots=slots.at_once)
    return replace(job, limit=lambda: settling.limit) if settling else job


def _record(
    journal: Journal, settling: Settling | None, progress: Progress, attempts: Sequence[Attempt]
) -> None:
    """Write attempts to the journal, and end the evaluation if they settle the verdict."""
    journal.append(attempts)
    if settling is not None:
        settling.take(outcome_of(attempt) for attempt in attempts if attempt.final)
        progress.stopping = progress.stopping or settling.settled is not None


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
