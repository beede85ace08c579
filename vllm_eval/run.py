"""The story of a run, one screen: prepare, evaluate, conclude."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from vllm_eval import cases, gate, manifest, stats, store
from vllm_eval.config import dump_config, resolve_path
from vllm_eval.engines import open_engine
from vllm_eval.errors import EngineDiedError, EngineError, EvalError, InputError
from vllm_eval.evaluate import Job, Progress, evaluate
from vllm_eval.journal import Journal, check_complete, read_journal, read_ledger, read_outcomes
from vllm_eval.plan import prepare
from vllm_eval.preflight.check import check_plan, refuse
from vllm_eval.stats.bootstrap import CONFIDENCE, Bootstrap
from vllm_eval.stats.failures import take_account

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vllm_eval.config import Config
    from vllm_eval.gate import Verdict
    from vllm_eval.plan import Plan
    from vllm_eval.records import Arm
    from vllm_eval.stats import Comparison
    from vllm_eval.stats.failures import Account


class Watcher(Protocol):
    """Whoever wants to see a run happen."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def progress(self, progress: Progress) -> None:
        """The evaluation has come further."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A concluded run, or what there is of an interrupted one."""

    folder: Path
    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    account: Account
    """Failures and costs."""
    timing: Mapping[str, Any]
    owed: int
    """Outcomes an interrupted run still owes; 0 for a whole one."""

    @property
    def passed(self) -> bool:
        """Whether the run is whole and every student passed the gate."""
        return self.owed == 0 and all(verdict.passed for verdict in self.verdicts)


def run(config: Config, watcher: Watcher, resume: Path | None = None) -> Finished:
    """Evaluate base and students over the cases and judge the students.

    Args:
        config: the resolved configuration.
        watcher: is told how the run goes.
        resume: folder of a run to be continued; None for a new one.

    Raises:
        InputError: configuration, data set or adapter cannot be used, or the run to be
            resumed is another one.
        EngineError: the engine could not be started, or died too often.
    """
    start = time.monotonic()
    watcher.stage("checking data set and adapters")
    plan = prepare(config)
    findings = check_plan(plan)
    for finding in findings:
        if finding.level == "warning":
            watcher.stage(finding.line)
    refuse(findings)
    folder = _open_folder(plan, resume, watcher)
    with Journal(folder.journal) as journal:
        if changed := store.note_config(folder.path, dump_config(config)):
            watcher.stage(f"resumed with another {', '.join(changed)}")
        ledger = read_ledger(folder.journal)
        progress = Progress(
            total=len(plan.dataset.drawn) * len(plan.arms) * config.samples_per_case,
            done=len(ledger.done),
            valid=ledger.valid,
            failed=len(ledger.done) - ledger.valid,
            attempts=ledger.attempts,
            output_tokens=ledger.output_tokens,
            seconds=ledger.seconds,
        )
        engine_load_s = 0.0
        if progress.done < progress.total:
            engine_load_s = _generate(plan, folder, journal, progress, watcher)
        # Without a stop nothing may be owed: `conclude` then finds what was lost.
        owed = progress.total - progress.done if progress.stopping else 0
        watcher.stage("scoring and writing results")
        timing = {
            "engine_load_s": engine_load_s,
            "first_answer_s": progress.first_answer_s,
            "generation_s": progress.seconds,
            "output_tokens": progress.output_tokens,
            "output_tokens_per_s": progress.output_tokens / max(progress.seconds, 1e-9),
            "attempts": progress.attempts,
            "total_s": time.monotonic() - start,
        }
        return conclude(plan, folder, timing, owed=owed)


def _open_folder(plan: Plan, resume: Path | None, watcher: Watcher) -> store.RunFolder:
    """A new run folder, or the one to be resumed once it has proved to be of the same run."""
    identity = manifest.identify(plan)
    if resume is not None:
        recorded = manifest.read(resume)
        if changed := manifest.differences(recorded["identity"], identity):
            msg = f"{resume}: cannot be resumed, it is another run: {'; '.join(changed)}"
            raise InputError(msg)
        return store.RunFolder(resume, store.timestamp_of(resume, recorded))
    output_dir = resolve_path(plan.config.output_dir)
    if unfinished := store.find_unfinished(output_dir, identity):
        watcher.stage(f"an unfinished run like this one: continue it with --resume {unfinished}")
    now = datetime.now().astimezone()
    folder = store.create_run(output_dir, plan.config.tag or plan.arms[1].name, now)
    store.write_text(folder.path / store.CONFIG, dump_config(plan.config))
    store.write_json(folder.path / manifest.FILE, manifest.describe(plan, identity, now))
    return folder


def _generate(
    plan: Plan, folder: store.RunFolder, journal: Journal, progress: Progress, watcher: Watcher
) -> float:
    """Have all that is owed answered; an engine that dies is started again with what it owed.

    Returns the seconds the first engine took to start.
    """
    config, life, load_s = plan.config, 0, 0.0
    job = Job(
        plan.task,
        plan.arms,
        lambda: cases.read_cases(plan.dataset),
        config.samples_per_case,
        1 + config.retries,
        config.seed,
    )
    while True:
        watcher.stage(f"starting the {config.engine} engine; its log is {folder.engine_log}")
        begin = time.monotonic()
        try:
            with closing(
                open_engine(config, plan.arms, plan.base_model, folder.engine_log, life)
            ) as engine:
                load_s = load_s or time.monotonic() - begin
                _note_engine(folder, engine.about)
                watcher.stage(f"evaluating {len(plan.dataset.drawn)} cases, {len(plan.arms)} arms")
                ledger = read_ledger(folder.journal)
                with _stop_on_signal(progress):
                    evaluate(job, engine, ledger, journal.append, progress, watcher.progress)
                return load_s
        except EngineDiedError as error:
            if progress.stopping:  # Ctrl-C reaches the engine's own processes as well
                return load_s
            life += 1
            if life > config.max_engine_restarts:
                msg = f"{error}; what finished is safe: --resume {folder.path}"
                raise EngineError(msg) from error
            watcher.stage(f"{error}; {progress.done} of {progress.total} outcomes are safe")


def _note_engine(folder: store.RunFolder, about: Mapping[str, str | int]) -> None:
    """Keep what the engine says of itself; a later session must not be of another kind.

    Raises:
        InputError: the run was begun with another engine, release, type or quantisation.
    """
    path = folder.path / manifest.FILE
    before = manifest.read(folder.path).get("engine", {})
    for key in ("engine", "vllm", "dtype", "quantization"):
        if before and before.get(key) != about.get(key):
            msg = f"{folder.path}: begun with {key} {before.get(key)!r}, this is {about.get(key)!r}"
            raise InputError(msg)
    store.add_to_json(path, {"engine": dict(about)})


@contextmanager
def _stop_on_signal(progress: Progress) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the evaluation in order, the second one at once."""

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


def conclude(
    plan: Plan, folder: store.RunFolder, timing: Mapping[str, Any], owed: int = 0
) -> Finished:
    """From the journal to verdicts and files; with outcomes still `owed` they are partial.

    Raises:
        EvalError: the journal does not hold exactly one outcome per arm and case, or an arm
            has no answer at all.
    """
    order = {case.id: n for n, case in enumerate(cases.read_cases(plan.dataset))}
    names = [arm.name for arm in plan.arms]
    samples = plan.config.samples_per_case
    outcomes = read_outcomes(folder.journal)
    expected = ((a, c, s) for a in names for c in order for s in range(samples))
    check_complete(outcomes, expected, partial=owed > 0)
    rules = plan.config.gate
    bootstrap = Bootstrap(rules.confidence or CONFIDENCE, seed=plan.config.seed)
    comparison = stats.compare(outcomes, names, bootstrap=bootstrap)
    each = len(order) * samples
    verdicts = tuple(gate.judge_student(comparison, name, each, rules) for name in names[1:])
    attempts = (attempt for _, attempt in read_journal(folder.journal))
    account = take_account(attempts, plan.task.blocks)
    finished = Finished(folder.path, comparison, verdicts, account, timing, owed)
    files = [folder.path / store.CONFIG, folder.path / manifest.FILE, folder.journal]
    for arm in plan.arms:
        head = {
            "arm": arm.name,
            "adapter": str(arm.adapter.path) if arm.adapter else None,
            "timestamp": folder.timestamp,
            "partial": owed > 0,
            "config": plan.config.model_dump(mode="json"),
            "timing": dict(timing),
        }
        path = folder.path / f"{_file_stem(arm, plan.arms)}_{folder.timestamp}.json"
        summary = comparison.arms[arm.name]
        store.write_results(path, folder.journal, order, head, summary, plan.task.blocks)
        files.append(path)
    whole = {
        "schema_version": manifest.SCHEMA_VERSION,
        "partial": owed > 0,
        "owed": owed,
        "passed": finished.passed,
        "verdicts": [asdict(verdict) | {"verdict": verdict.word} for verdict in verdicts],
        **stats.to_json(comparison),
        **asdict(account),
        "timing": dict(timing),
    }
    files.append(store.write_json(folder.path / store.COMPARISON, whole))
    store.write_zip(folder, files)
    for name, summary in comparison.arms.items():
        if not owed and summary.errors == summary.total:
            first = next(outcome for outcome in outcomes if outcome.arm == name)
            msg = f"no case of {name} has an answer ({first.reason}); see {folder.path}"
            raise EvalError(msg)
    return finished


def _file_stem(arm: Arm, arms: tuple[Arm, ...]) -> str:
    if arm is arms[0]:
        return arm.name
    return "student" if len(arms) == 2 else f"student_{arm.name}"
