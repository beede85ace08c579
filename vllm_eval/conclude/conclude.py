"""From the journal to verdicts and files; for a run that ends now, and for one that was cut off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vllm_eval.compare import gate
from vllm_eval.compare.intervals import CONFIDENCE, Bootstrap
from vllm_eval.compare.summary import compare_arms, comparison_to_json
from vllm_eval.conclude.account import take_account
from vllm_eval.conclude.constrained import Tally, compare_constrained
from vllm_eval.conclude.repaired import Mending, Standing, repair_to_json, stand_repaired
from vllm_eval.conclude.results import write_results
from vllm_eval.conclude.rows import case_rows, distributions, sample_rows
from vllm_eval.conclude.timing import take_timing
from vllm_eval.config.settings import load_config
from vllm_eval.diagnose.diagnosis import diagnose
from vllm_eval.diagnose.remedies import Limits
from vllm_eval.diagnose.survey import Survey
from vllm_eval.errors import EvalError
from vllm_eval.inputs.index import CaseFile, read_order
from vllm_eval.records import BASELINE, CONSTRAINED, free_arms
from vllm_eval.store import manifest
from vllm_eval.store.folder import COMPARISON, CONFIG, RunFolder, timestamp_of, write_json
from vllm_eval.store.journal import read_journal
from vllm_eval.store.ledger import check_complete, read_outcomes
from vllm_eval.tasks import open_stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_eval.compare.gate import Verdict
    from vllm_eval.compare.summary import Comparison
    from vllm_eval.conclude.account import Account
    from vllm_eval.conclude.constrained import Constrained
    from vllm_eval.conclude.timing import Timing
    from vllm_eval.config.settings import Config
    from vllm_eval.diagnose.records import Diagnosis
    from vllm_eval.records import Outcome
    from vllm_eval.tasks import Task

SCHEMA_VERSION = 5
"""Of `comparison.json`; 2 added cases, distributions, environment and the timing's details, 3 tells
how many cases there are and whether those listed are a sample, 4 what repairs would recover and why
answers failed."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A run folder whose journal can be concluded."""

    folder: RunFolder
    config: Config
    adapters: Mapping[str, str | None]
    """Path of the adapter of each arm, the baseline first; None where it has none."""
    order: Mapping[str, int]
    """Place of each case drawn."""
    task: Task
    pending: int = 0
    """Outcomes an interrupted run has not reached; 0 for a complete one."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A concluded run, or what there is of an interrupted one."""

    folder: Path
    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    account: Account
    """Failures and costs."""
    timing: Mapping[str, Any]
    pending: int
    """Outcomes an interrupted run has not reached; 0 for a complete one."""
    repair: Mapping[str, Any]
    """With repaired answers counted as valid, as `repairs.to_json` has it."""
    diagnosis: Diagnosis
    """Why answers failed, and what would help."""
    constrained: Constrained
    """Each arm against itself held to the task's grammar."""
    quantization: str = "none"
    """Of the base that all arms stand on, as the engine calls it: part of what was measured."""

    @property
    def passed(self) -> bool:
        """Whether the run is whole and every student passed the gate."""
        return self.pending == 0 and all(verdict.passed for verdict in self.verdicts)


def reopen(path: Path) -> Evaluated:
    """A stored run that did not end, as its folder alone tells of it.

    Raises:
        InputError: the folder holds no run of ours, or not all that is needed.
    """
    recorded = manifest.read(path)
    config = load_config([str(path / CONFIG)])
    folder = RunFolder(path, timestamp_of(path, recorded))
    paths = {name: about["path"] for name, about in recorded["adapters"].items()}
    names = [BASELINE, *recorded["identity"]["adapters"]]
    if config.constrain == "beside":
        paths |= {name + CONSTRAINED: path for name, path in paths.items()}
        names += [name + CONSTRAINED for name in names]
    order = read_order(path)
    done = sum(attempt.final for _, attempt in read_journal(folder.journal))
    return Evaluated(
        folder=folder,
        config=config,
        adapters={name: paths.get(name) for name in names},
        order=order,
        task=open_stored(path, config.task),
        pending=len(order) * len(names) * config.samples_per_case - done,
    )


def conclude(run: Evaluated) -> Finished:
    """Summarise the journal and write the result files, partial while outcomes are pending.

    Raises:
        EvalError: the journal does not hold exactly one outcome per arm and case.
    """
    names, samples = list(run.adapters), run.config.samples_per_case
    outcomes = read_outcomes(run.folder.journal)
    expected = ((a, c, s) for a in names for c in run.order for s in range(samples))
    check_complete(outcomes, expected, partial=run.pending > 0)
    free = free_arms(names)  # what is constrained beside them is compared, never graded
    rules = run.config.gate
    bootstrap = Bootstrap(rules.confidence or CONFIDENCE, seed=run.config.seed)
    each = len(run.order) * samples

    def grade(comparison: Comparison) -> tuple[Verdict, ...]:
        return tuple(gate.decide_student(comparison, name, each, rules) for name in free[1:])

    comparison = compare_arms(outcomes, free, bootstrap=bootstrap)
    strict = Standing(comparison, grade(comparison))
    recorded = manifest.read(run.folder.path)
    with CaseFile(run.folder.path, run.order, run.task.declaration) as case_file:
        mending = Mending(run.task, case_file)
        attempts = (attempt for _, attempt in read_journal(run.folder.journal))
        found = mending.found if run.task.grades else None
        survey = Survey(run.task.blocks, run.task.declaration, found)
        tally = Tally()
        account = take_account(survey.watch(mending.watch(tally.watch(attempts))), run.task.blocks)
        outcomes = mending.attach(outcomes)
        mended = stand_repaired(outcomes, strict, grade, bootstrap)
        spent = take_timing(attempt for _, attempt in read_journal(run.folder.journal))
        mode = run.config.constrain
        held = compare_constrained(mode, outcomes, comparison, tally, bootstrap)
        constrained = {arm: both.constrained.summary for arm, both in held.arms.items()}
        limits = Limits(run.config.max_new_tokens, run.config.retries, mode)
        then = () if run.pending else mended.verdicts
        finished = Finished(
            run.folder.path,
            comparison,
            strict.verdicts,
            account,
            _timing(spent, recorded.get("sessions", ())),
            run.pending,
            _repair(run, outcomes, mended),
            diagnose(survey, comparison.arms, limits, then, constrained),
            held,
            recorded.get("engine", {}).get("quantization", "none"),
        )
        _write_files(run, finished, outcomes, mending)
    return finished


def refuse_unanswered(finished: Finished) -> None:
    """A whole run in which an arm never answered has evaluated nothing.

    Raises:
        EvalError: an arm has no answer at all.
    """
    comparison = finished.comparison
    for name, summary in comparison.arms.items():
        if not finished.pending and summary.errors == summary.total:
            reason = next(iter(comparison.reasons[name]), "no reason")
            msg = f"no case of {name} has an answer ({reason}); see {finished.folder}"
            raise EvalError(msg)


def _repair(run: Evaluated, outcomes: Sequence[Outcome], mended: Standing) -> dict[str, Any]:
    asked, measured = run.config.repair, run.task.grades
    return repair_to_json(outcomes, mended, asked=asked, measured=measured, pending=run.pending)


def _timing(spent: Timing, sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the journal tells, and what only the processes knew that came to their end.

    Starts, grading and wall time are sums over these, memory is the most of any.
    """
    sums = ("engine_load_s", "grading_s", "total_s")
    peaks = ("peak_host_mib", "peak_device_mib")
    known = {key: [s[key] for s in sessions if s.get(key) is not None] for key in sums + peaks}
    tokens, seconds = spent.all.output_tokens, spent.generation_s
    return {
        "sessions": len(sessions),
        **{key: sum(known[key]) if known[key] else None for key in sums},
        **{key: max(known[key], default=None) for key in peaks},
        "attempts": spent.all.attempts,
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / seconds if seconds else 0.0,
        "requests_per_s": spent.all.attempts / seconds if seconds else 0.0,
        **asdict(spent),
    }


def _stem(arm: str, arms: int) -> str:
    """What an arm's result file is called, among so many free arms: the only student just that."""
    free = arm.removesuffix(CONSTRAINED)
    if free != BASELINE:
        free = "student" if arms == 2 else f"student_{free}"
    return free + CONSTRAINED if arm.endswith(CONSTRAINED) else free


def _write_files(
    run: Evaluated, finished: Finished, outcomes: Sequence[Outcome], mending: Mending
) -> None:
    folder, comparison, asked = run.folder, finished.comparison, run.config.repair

    def about(last: Mapping[str, Any]) -> dict[str, Any]:
        blocks = {"blocks": run.task.blocks(last["raw_response"])}
        return blocks | mending.result(last) if asked else blocks

    for name, adapter in run.adapters.items():
        head: dict[str, Any] = {
            "arm": name,
            "adapter": adapter,
            "timestamp": folder.timestamp,
            "partial": run.pending > 0,
            "config": run.config.model_dump(mode="json"),
            "timing": dict(finished.timing),
        }
        if asked:
            head["repaired_samples"] = sum(o.arm == name for o in outcomes if o.repair)
        path = folder.path / f"{_stem(name, len(comparison.arms))}_{folder.timestamp}.json"
        free = name.removesuffix(CONSTRAINED)
        held = finished.constrained.arms[free].constrained.summary if free != name else None
        summary = held or comparison.arms[name]
        write_results(path, folder.journal, run.order, head, summary, about)
    graded = [outcome for outcome in outcomes if outcome.arm in comparison.arms]
    rows = case_rows(graded, comparison, run.order, BASELINE)
    groups = finished.account.failures
    shown = sample_rows(rows, {e.concept_id for group in groups for e in group.examples})
    whole = {
        "schema_version": SCHEMA_VERSION,
        "partial": run.pending > 0,
        "pending": run.pending,
        "passed": finished.passed,
        "quantization": finished.quantization,
        "verdicts": gate.to_json(finished.verdicts, run.pending),
        **comparison_to_json(comparison),
        **asdict(finished.account),
        "repair": dict(finished.repair),
        "diagnosis": asdict(finished.diagnosis),
        "constrained": asdict(finished.constrained),
        "timing": dict(finished.timing),
        "distributions": {arm: asdict(d) for arm, d in distributions(comparison).items()},
        "environment": manifest.read(folder.path),
        "cases_total": len(run.order),
        "cases_answered": len(rows),
        "cases_sampled": len(shown) < len(rows),
        "cases": [asdict(row) for row in shown],
    }
    write_json(folder.path / COMPARISON, whole)
