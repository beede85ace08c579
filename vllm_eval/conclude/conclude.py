"""From the journal to verdicts and files, for a run that has just ended or was interrupted."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from vllm_eval.compare.gate import grade
from vllm_eval.compare.ranking import rank
from vllm_eval.compare.selection import select
from vllm_eval.compare.summary import as_repaired
from vllm_eval.conclude.constrained import compare_constrained
from vllm_eval.conclude.curve import make_curves
from vllm_eval.conclude.looks import note_evidence
from vllm_eval.conclude.one_pass import Evaluated, first_pending, read_attempts, settle
from vllm_eval.conclude.repaired import repair_to_json
from vllm_eval.conclude.results import (
    SCHEMA_VERSION,
    Finished,
    write_comparison,
    write_results,
)
from vllm_eval.conclude.timing import take_attempts, take_timing, timing_to_json
from vllm_eval.config.layers import load_config
from vllm_eval.diagnose.diagnosis import diagnose
from vllm_eval.errors import EvalError, InputError
from vllm_eval.preflight.reused import read_reused
from vllm_eval.records import BASELINE, CONSTRAINED, free_arms
from vllm_eval.store import manifest
from vllm_eval.store.folder import (
    CONFIG,
    JOURNAL,
    RunFolder,
    index_rows,
    read_comparison,
    timestamp_of,
)
from vllm_eval.store.journal import Journal, read_journal
from vllm_eval.tasks import open_stored

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vllm_eval.compare.summary import Comparison
    from vllm_eval.compare.verdict import Verdict
    from vllm_eval.conclude.one_pass import Reading
    from vllm_eval.records import Outcome


def concluded(folder: Path) -> dict[str, Any]:
    """The `comparison.json` of a run, written again if it is missing or older than the journal.

    So is one of an earlier schema.

    Raises:
        InputError: the folder holds no run, or a damaged one, or another process is writing to it.
    """
    journal, comparison = folder / JOURNAL, read_comparison(folder)
    if not journal.is_file():  # else it would be made here, and the run concluded as an empty one
        raise InputError(f"{journal}: is missing; without its answers a run cannot be reported")
    current = comparison and comparison.get("schema_version") == SCHEMA_VERSION
    if comparison and current and "index" in comparison:
        return comparison
    try:
        with closing(Journal(journal)):  # two at once would write to the same temporary files
            conclude(reopen(folder))
    except InputError:
        raise
    except EvalError as error:
        raise InputError(f"{error}; restore the file, or evaluate again") from error
    except OSError as error:
        msg = f"{error.filename or folder}: cannot conclude this run: {error.strerror or error}"
        raise InputError(msg) from error
    return read_comparison(folder) or {}


def reopen(path: Path) -> Evaluated:
    """A stored run, as its folder alone tells of it.

    Raises:
        InputError: the folder holds no run, or files are missing.
    """
    recorded = manifest.read(path)
    config = load_config([str(path / CONFIG)])
    try:
        paths = {name: about["path"] for name, about in recorded["adapters"].items()}
        names = [BASELINE, *recorded["identity"]["adapters"]]
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{path / manifest.FILE}: damaged ({error!r}); restore it, or evaluate again"
        raise InputError(msg) from error
    if config.constrain == "beside":
        paths |= {name + CONSTRAINED: path for name, path in paths.items()}
        names += [name + CONSTRAINED for name in names]
    return Evaluated(
        folder=RunFolder(path, timestamp_of(path, recorded)),
        manifest=recorded,
        config=config,
        adapters={name: paths.get(name) for name in names},
        cases=index_rows(path),
        task=open_stored(path, config.task),
        partial=True,
    )


def conclude(run: Evaluated) -> Finished:
    """Summarise the journal and write the result files, partial while outcomes are pending.

    Raises:
        EvalError: the journal does not hold exactly one outcome per arm and case.
    """
    config, names, order = run.config, list(run.adapters), run.cases.order
    journal, settled = run.folder.journal, None
    if config.until_settled:
        settled = settle(run, read_journal(journal)).look()
    reading = read_attempts(run, read_journal(journal), settled)
    if reading.pending and not run.partial:
        example = first_pending(reading, order, config.samples_per_case)
        raise EvalError(f"the journal lacks {reading.pending} outcomes, for example {example}")
    finished = note_evidence(run, reading, _summarise(run, reading, free_arms(names)))
    write_results(run, finished, reading)
    write_comparison(run, finished, reading)
    return finished


def refuse_unanswered(finished: Finished) -> None:
    """A whole run in which an arm never answered has evaluated nothing.

    Where the best student is selected, this takes the baseline or all students.

    Raises:
        EvalError: an arm that a rule is about has no answer at all.
    """
    for name in () if finished.pending else finished.unanswered:
        reasons = ", ".join(finished.comparison.reasons[name]) or "no reason"
        raise EvalError(f"no case of {name} has an answer ({reasons}); see {finished.folder}")


def _summarise(run: Evaluated, reading: Reading, free: Sequence[str]) -> Finished:
    """Everything computed; constrained variants of the `free` arms get no verdict."""
    config, survey, outcomes = run.config, reading.survey, reading.outcomes
    each, drawn = reading.cases * config.samples_per_case, run.cases.order
    settled = None
    if reading.cases < len(drawn) or reading.after:
        settled = {"cases": reading.cases, "of": len(drawn), "outcomes_after": reading.after}

    def decide(outcomes: Sequence[Outcome]) -> tuple[Comparison, tuple[Verdict, ...]]:
        return grade(outcomes, free, each, config.gate, drawn=drawn, seed=config.seed)

    comparison, verdicts = repaired, repaired_verdicts = decide(outcomes)
    if any(outcome.repair for outcome in outcomes):
        repaired, repaired_verdicts = decide([as_repaired(outcome) for outcome in outcomes])
    variants = compare_constrained(config.constrain, outcomes, comparison, survey.arms, drawn)
    constrained = {arm: both.constrained.summary for arm, both in variants.arms.items()}
    then = () if reading.pending else repaired_verdicts
    failures = list(survey.failures.values())
    failures.sort(key=lambda g: (-g.attempts, -g.outcomes, g.reason, g.tier or "", g.arm))
    ranking, origins = rank(comparison, verdicts), manifest.origins(run.manifest)
    selected = None if reading.pending else select(comparison, verdicts, ranking, origins)
    curves = make_curves(run.manifest, comparison, verdicts, ranking, outcomes, selected)
    return Finished(
        folder=run.folder.path,
        comparison=comparison,
        verdicts=verdicts,
        ranking=ranking,
        curves=curves,
        failures=tuple(failures),
        attempts={arm: take_attempts(tally) for arm, tally in survey.arms.items() if tally.numbers},
        timing=timing_to_json(take_timing(survey), run.manifest.get("sessions", ())),
        pending=reading.pending,
        settled=settled,
        repair=repair_to_json(
            outcomes,
            repaired.arms,
            repaired_verdicts,
            config,
            measured=run.task.grades,
            pending=reading.pending,
        ),
        diagnosis=diagnose(survey, comparison.arms, config, then, constrained),
        constrained=variants,
        reused=read_reused(run.manifest),
        quantization=run.manifest.get("engine", {}).get("quantization", "none"),
        select=config.gate.select,
        selected=selected,
    )
