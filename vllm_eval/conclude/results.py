"""The files of a concluded run: `comparison.json`, and one result file an arm.

A result file has the predecessor's keys. What repairs would recover stands beside the strict
figures, which alone decide: nothing here changes what an answer was graded to be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.compare import ranking, verdict
from vllm_eval.compare.ranking import Ranked
from vllm_eval.compare.selection import NONE_PASSES, Selected
from vllm_eval.compare.summary import Comparison, Summary, comparison_to_json
from vllm_eval.compare.verdict import NOT_FINISHED, Verdict, word_on
from vllm_eval.conclude import curve
from vllm_eval.conclude.case_rows import CaseRow, case_rows, distributions, sample_rows
from vllm_eval.conclude.constrained import Constrained
from vllm_eval.conclude.curve import Curve
from vllm_eval.conclude.one_pass import Evaluated, Places, Reading
from vllm_eval.conclude.timing import ArmAttempts
from vllm_eval.config.settings import Select, file_name
from vllm_eval.diagnose.diagnosis import Diagnosis
from vllm_eval.diagnose.survey import FailureGroup
from vllm_eval.preflight.reused import Reused, reused_to_json
from vllm_eval.records import BASELINE, CONSTRAINED, Case, Key, free_arms
from vllm_eval.store.evidence import Look
from vllm_eval.store.folder import COMPARISON, read_row, write_json, written_whole
from vllm_eval.tasks import Task
from vllm_eval.tasks.repair import mend

SCHEMA_VERSION = 7
"""Of `comparison.json`; 2 added cases, distributions, environment and the timing's details, 3 tells
how many cases there are and whether those listed are a sample, 4 what repairs would recover and why
answers failed, 5 renamed `owed` and `judging_s` and added the index, 6 added evidence and looks,
ranks by verdict, and says where the verdict was settled, 7 added `selected`, `curve` and
`baseline_from`."""
METRICS = ("mean", "std", "min", "max", "mean_all")
CASE_KEYS = ("arm", "concept_id", "tier")
"""Keys of an attempt that its case states once."""
REPAIRED = "repaired"
"""Status, in a result file, of an answer that broke the contract and keeps it after a repair."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A concluded run, or what there is of an interrupted one."""

    folder: Path
    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    ranking: tuple[Ranked, ...]
    """The students, best first."""
    curves: tuple[Curve, ...]
    """One for each training run of which several steps were compared."""
    failures: tuple[FailureGroup, ...]
    """Most frequent first."""
    attempts: Mapping[str, ArmAttempts]
    """Scores and costs, by arm."""
    timing: Mapping[str, Any]
    pending: int
    """Outcomes an interrupted run has not reached; 0 for a complete one."""
    settled: Mapping[str, int] | None
    """How many `cases` settled the verdict, `of` how many, and how many `outcomes_after` that are
    not counted; None if all of them count."""
    repair: Mapping[str, Any]
    """With repaired answers counted as valid, as `repair_to_json` has it."""
    diagnosis: Diagnosis
    """Why answers failed, and what would help."""
    constrained: Constrained
    """Each arm compared with its constrained variant."""
    quantization: str = "none"
    """Of the base model, as the engine calls it."""
    reused: Reused | None = None
    """Whose answers of the baseline these are; None if the run asked it itself."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """By student, which look at these cases this run is; empty for an incomplete run."""
    unread: tuple[str, ...] = ()
    """Why runs beside this one could not be counted among the looks."""
    select: Select = "all"
    """Whom the word is about: `gate.select`."""
    selected: Selected | None = None
    """The student that ships; None if none passes, and while outcomes are pending."""

    @property
    def word(self) -> str:
        """Of the whole run: NOT FINISHED, or what the gate says of all students, or of the best."""
        return NOT_FINISHED if self.pending else word_on(self.verdicts, self.select)

    @property
    def silent(self) -> list[str]:
        """The arms that a rule is about and that never answered."""
        graded = {rule.arm for verdict in self.verdicts for rule in verdict.rules}
        arms = self.comparison.arms.items()
        return [arm for arm, found in arms if arm in graded and found.errors == found.total]

    @property
    def unanswered(self) -> list[str]:
        """The silent arms for want of which nothing is evaluated.

        Where the best student is selected, one that never answered does not stop the others.
        """
        students = {verdict.arm for verdict in self.verdicts}
        if self.select == "best" and not students <= set(self.silent):
            return [arm for arm in self.silent if arm not in students]
        return self.silent


def _stem(arm: str, arms: int) -> str:
    """What an arm's result file is called, among so many free arms: the only student just that."""
    free = arm.removesuffix(CONSTRAINED)
    if free != BASELINE:
        free = "student" if arms == 2 else f"student_{file_name(free)}"
    return free + CONSTRAINED if arm.endswith(CONSTRAINED) else free


def write_results(run: Evaluated, finished: Finished, reading: Reading) -> None:
    """One file an arm, with the attempts of each case fetched from the journal by their places."""
    folder, task, arms = run.folder, run.task, finished.comparison.arms
    repaired: set[Key] = set()
    if run.config.repair:
        repaired = {(o.arm, o.concept_id, o.sample) for o in reading.outcomes if o.repair}

    def about(last: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"blocks": task.blocks(last["raw_response"])}
        if run.cases.order[last["concept_id"]] >= reading.cases:
            return found | {"after_decision": True}
        if (last["arm"], last["concept_id"], last["sample"]) in repaired:
            case = partial(read_row, run.cases, task.declaration, last["concept_id"])
            return found | _repaired(task, case, last)
        return found

    for name, adapter in run.adapters.items():
        head: dict[str, Any] = {
            "arm": name,
            "adapter": adapter,
            "timestamp": folder.timestamp,
            "partial": finished.pending > 0,
            "settled": finished.settled,
            "config": run.config.model_dump(mode="json"),
            "timing": dict(finished.timing),
        }
        if run.config.repair:
            head["repaired_samples"] = sum(arm == name for arm, _, _ in repaired)
        path = folder.path / f"{_stem(name, len(arms))}_{folder.timestamp}.json"
        free = name.removesuffix(CONSTRAINED)
        constrained = finished.constrained.arms[free].constrained.summary if free != name else None
        summary = constrained or arms[name]
        _write_arm(path, folder.journal, reading.places[name], head, summary, about)


def write_comparison(run: Evaluated, finished: Finished, reading: Reading) -> None:
    """`comparison.json`: every figure, and where the report finds the texts of a case."""
    comparison, order = finished.comparison, run.cases.order
    graded = [outcome for outcome in reading.outcomes if outcome.arm in comparison.arms]
    rows = case_rows(graded, comparison, order, BASELINE)
    examples = {e.concept_id for group in finished.failures for e in group.examples}
    shown = sample_rows(rows, examples)
    sampled = len(shown) < len(rows)
    whole = {
        "schema_version": SCHEMA_VERSION,
        "partial": finished.pending > 0,
        "pending": finished.pending,
        "settled": finished.settled,
        "word": finished.word,
        "passed": finished.word == "PASS",
        "select": finished.select,
        "selected": asdict(finished.selected) if finished.selected else None,
        "unselected": "" if finished.selected else _unselected(finished),
        "quantization": finished.quantization,
        "baseline_from": reused_to_json(finished.reused),
        "verdicts": verdict.to_json(finished.verdicts, finished.pending),
        "looks": {arm: asdict(look) for arm, look in finished.looks.items()},
        **comparison_to_json(comparison),
        "ranking": ranking.to_json(finished.ranking, finished.pending),
        "curve": curve.to_json(finished.curves, finished.pending),
        "failures": [asdict(group) for group in finished.failures],
        "attempts": {arm: asdict(made) for arm, made in finished.attempts.items()},
        "repair": dict(finished.repair),
        "diagnosis": asdict(finished.diagnosis),
        "constrained": asdict(finished.constrained),
        "timing": dict(finished.timing),
        "distributions": {arm: asdict(d) for arm, d in distributions(comparison).items()},
        "environment": {key: run.manifest[key] for key in run.manifest if key != "training"},
        "cases_total": reading.cases,
        "cases_answered": len(rows),
        "cases_sampled": sampled,
        "cases": [asdict(row) for row in shown],
        "index": {
            "journal_bytes": run.folder.journal.stat().st_size,
            "cases": _index(run, reading, shown if sampled or reading.after else None),
        },
    }
    write_json(run.folder.path / COMPARISON, whole)


def _unselected(finished: Finished) -> str:
    """Why no student is selected."""
    return "answers are still pending" if finished.pending else NONE_PASSES


def _index(
    run: Evaluated, reading: Reading, shown: Collection[CaseRow] | None
) -> dict[str, dict[str, Any]]:
    """The bytes at which a case and the attempts of its free arms begin, of all or those shown."""
    names, samples = list(run.cases.order), run.config.samples_per_case
    wanted = None if shown is None else {run.cases.order[row.concept_id] for row in shown}
    found: dict[int, list[int]] = {}
    for arm in free_arms(reading.places):
        places = reading.places[arm]
        for answer, byte in zip(places.answers, places.bytes, strict=True):
            case = answer // samples
            if wanted is None or case in wanted:
                found.setdefault(case, []).append(byte)
    return {
        names[case]: {"row": run.cases.offsets[case], "attempts": sorted(found[case])}
        for case in sorted(found)
    }


def _write_arm(
    path: Path,
    journal: Path,
    places: Places,
    head: Mapping[str, Any],
    summary: Summary,
    about: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    """One arm's result file, its cases in data set order, with all their attempts.

    The structure is the predecessor's (`design.md`, "The run folder") with more in it: what `about`
    makes of a last attempt is added to its result. Memory holds one case at a time: its attempts
    are fetched from the journal by their places.
    """
    top = {
        **head,
        "total_samples": summary.total,
        "valid_samples": summary.valid,
        "failed_samples": summary.failed,
        "error_samples": summary.errors,
        "first_attempt_valid_samples": summary.first_valid,
        "metrics": {key: getattr(summary, key) for key in METRICS},
    }
    answer_of = places.answers.__getitem__
    in_order = sorted(range(len(places.answers)), key=answer_of)
    with written_whole(path) as out, journal.open("rb") as file:
        out.write(orjson.dumps(top)[:-1] + b',"results":[')
        before = b"\n"
        for answer, numbers in groupby(in_order, answer_of):
            if not places.ended[answer]:  # an interrupted run has begun more than it has ended
                continue
            attempts = []
            for number in numbers:
                file.seek(places.bytes[number])
                attempts.append(orjson.loads(file.readline()))
            out.write(before)
            out.write(orjson.dumps(_result(attempts, about)))
            before = b",\n"
        out.write(b"\n]}\n")


def _result(
    attempts: Sequence[dict[str, Any]], about: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    last = attempts[-1]
    stated = ("concept_id", "tier", "sample", "status", "score", "parts", "reason", "error")
    history = [{key: one[key] for key in one if key not in CASE_KEYS} for one in attempts]
    return {
        **{key: last[key] for key in (*stated, "truncated")},
        "attempts": last["attempt"] - last.get("engine_errors", 0),
        **about(last),
        "raw_response": last["raw_response"],
        "history": history,
    }


def _repaired(task: Task, case: Callable[[], Case], last: Mapping[str, Any]) -> dict[str, Any]:
    """What a result file says of a last attempt that a repair makes valid; empty for others."""
    found = mend(task, case, last["raw_response"], ended=not last["truncated"])
    if found is None:
        return {}
    return {
        "status": REPAIRED,
        "repairs": found.names,
        "repaired_response": found.text,
        "repaired_score": found.score,
        "repaired_parts": found.parts,
    }
