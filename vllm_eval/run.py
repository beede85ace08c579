"""The story of a run, one screen: prepare, evaluate, conclude."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from vllm_eval import __version__, adapters, cases, gate, machine, stats, store
from vllm_eval.config import dump_config, resolve_path
from vllm_eval.engines import open_engine
from vllm_eval.evaluate import Job, Progress, evaluate
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_eval.config import Config
    from vllm_eval.gate import Verdict
    from vllm_eval.records import Arm
    from vllm_eval.stats import Comparison
    from vllm_eval.tasks import Task

SAMPLES_PER_CASE = 1


class Watcher(Protocol):
    """Whoever wants to see a run happen."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def progress(self, progress: Progress) -> None:
        """The evaluation has come further."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run: everything left of the engine."""

    config: Config
    task: Task
    dataset: cases.Dataset
    arms: tuple[Arm, ...]
    base_model: str | None
    """None where no model is read (scripted engine)."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A concluded run."""

    folder: Path
    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    timing: Mapping[str, Any]
    files: tuple[Path, ...]

    @property
    def passed(self) -> bool:
        """Whether every student passed the gate."""
        return all(verdict.passed for verdict in self.verdicts)


def run(config: Config, watcher: Watcher) -> Finished:
    """Evaluate base and students over the cases and judge the students.

    Raises:
        InputError: configuration, data set or adapter cannot be used.
        EngineError: the engine could not be started or died.
    """
    start = time.monotonic()
    watcher.stage("checking data set and adapters")
    plan = prepare(config)
    now = datetime.now().astimezone()
    tag = config.tag or plan.arms[1].name
    folder = store.create_run(resolve_path(config.output_dir), tag, now)
    store.write_text(folder.path / "config.yaml", dump_config(config))
    watcher.stage(f"starting the {config.engine} engine; its log is {folder.engine_log}")
    engine_start = time.monotonic()
    with closing(open_engine(config, plan.arms, plan.base_model, folder.engine_log)) as engine:
        engine_load_s = time.monotonic() - engine_start
        manifest = _manifest(plan, now) | {"engine": dict(engine.about)}
        store.write_json(folder.path / "manifest.json", manifest)
        progress = Progress(total=len(plan.dataset.drawn) * len(plan.arms) * SAMPLES_PER_CASE)
        watcher.stage(f"evaluating {len(plan.dataset.drawn)} cases, {len(plan.arms)} arms")
        job = Job(
            plan.task,
            plan.arms,
            lambda: cases.read_cases(plan.dataset),
            SAMPLES_PER_CASE,
            1 + config.retries,
            config.seed,
        )
        with store.Journal(folder.journal) as journal:
            ledger = store.read_ledger(folder.journal)
            evaluate(job, engine, ledger, journal.append, progress, watcher.progress)
    watcher.stage("scoring and writing results")
    timing = {
        "engine_load_s": engine_load_s,
        "first_answer_s": progress.first_answer_s,
        "generation_s": progress.seconds,
        "output_tokens": progress.output_tokens,
        "output_tokens_per_s": progress.output_tokens / progress.seconds,
        "attempts": progress.attempts,
        "total_s": time.monotonic() - start,
    }
    return conclude(plan, folder, manifest, timing)


def prepare(config: Config) -> Plan:
    """Read and check everything that can be checked before an engine is started.

    Raises:
        InputError: configuration, data set or adapter cannot be used.
    """
    template = resolve_path(config.prompt_template) if config.prompt_template else None
    arms = adapters.open_arms(config)
    return Plan(
        config=config,
        task=open_task(config.task, template),
        dataset=cases.open_dataset(
            resolve_path(config.dataset_path), config.max_samples, config.seed
        ),
        arms=arms,
        base_model=None
        if config.engine == "scripted"
        else adapters.base_of(arms, config.base_model),
    )


def conclude(
    plan: Plan, folder: store.RunFolder, manifest: Mapping[str, Any], timing: Mapping[str, Any]
) -> Finished:
    """From the journal to verdicts and files.

    Raises:
        EvalError: the journal does not hold exactly one outcome per arm and case.
    """
    order = {case.id: n for n, case in enumerate(cases.read_cases(plan.dataset))}
    names = [arm.name for arm in plan.arms]
    outcomes = store.read_outcomes(folder.journal)
    samples = range(SAMPLES_PER_CASE)
    store.check_complete(outcomes, ((a, c, s) for a in names for c in order for s in samples))
    comparison = stats.compare(outcomes, names)
    verdicts = tuple(
        gate.judge_student(comparison, arm.name, plan.config.gate) for arm in plan.arms[1:]
    )
    files = [folder.path / "config.yaml", folder.path / "manifest.json", folder.journal]
    for arm in plan.arms:
        head = {
            "arm": arm.name,
            "adapter": str(arm.adapter.path) if arm.adapter else None,
            "timestamp": folder.timestamp,
            "config": plan.config.model_dump(mode="json"),
            "timing": dict(timing),
        }
        path = folder.path / f"{_file_stem(arm, plan.arms)}_{folder.timestamp}.json"
        summary = comparison.arms[arm.name]
        files.append(
            store.write_results(path, folder.journal, order, head, summary, plan.task.blocks)
        )
    whole = {
        "schema_version": store.SCHEMA_VERSION,
        "verdicts": [asdict(verdict) | {"verdict": verdict.word} for verdict in verdicts],
        "passed": all(verdict.passed for verdict in verdicts),
        **asdict(comparison),
        "timing": dict(timing),
        "manifest": dict(manifest),
    }
    files.append(store.write_json(folder.path / "comparison.json", whole))
    files.append(store.write_zip(folder, files))
    return Finished(folder.path, comparison, verdicts, timing, tuple(files))


def _file_stem(arm: Arm, arms: tuple[Arm, ...]) -> str:
    if arm is arms[0]:
        return arm.name
    return "student" if len(arms) == 2 else f"student_{arm.name}"


def _manifest(plan: Plan, now: datetime) -> dict[str, Any]:
    return {
        "schema_version": store.SCHEMA_VERSION,
        "vllm_eval": __version__,
        "started_at": now.isoformat(),
        "task": {"name": plan.task.name, "version": plan.task.version},
        "profile": plan.config.profile,
        "base_model": plan.base_model,
        "dataset": {
            "path": str(plan.dataset.path),
            "sha256": plan.dataset.sha256,
            "records": plan.dataset.total,
            "drawn": len(plan.dataset.drawn),
        },
        "adapters": [
            {"arm": arm.name}
            | (
                {
                    "path": str(arm.adapter.path),
                    "rank": arm.adapter.rank,
                    "base_model": arm.adapter.base_model,
                    "sha256": arm.adapter.sha256,
                }
                if arm.adapter
                else {}
            )
            for arm in plan.arms[1:]
        ],
        "machine": asdict(machine.detect()),
    }
