"""Which look at its cases a run is, and what it leaves for later runs to count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_eval.conclude.one_pass import Evaluated, Reading
from vllm_eval.conclude.results import Finished
from vllm_eval.errors import InputError
from vllm_eval.store import evidence
from vllm_eval.store.evidence import Look, RunEvidence, StudentEvidence


def note_evidence(run: Evaluated, reading: Reading, finished: Finished) -> Finished:
    """Write the `evidence.json` of a complete run; returns the run with its looks.

    Writes nothing if outcomes are pending, or if an arm is `silent` for want of which the run has
    evaluated nothing; leaves out other students that are silent.
    """
    if finished.pending or finished.unanswered:
        return finished
    order, contents = run.cases.order, run.cases.contents
    answered = sorted({order[outcome.concept_id] for outcome in reading.outcomes})
    identity, path = dict(run.manifest["identity"]), run.folder.path
    draft = RunEvidence(
        schema_version=1,
        started_at=str(run.manifest.get("started_at")),
        identity=identity,
        cases=tuple(f"{contents[place]:016x}" for place in answered),
        students=tuple(
            StudentEvidence(v.arm, _adapter(identity, v.arm), v.rules, Look(1, 0, len(answered)))
            for v in finished.verdicts
            if v.arm not in finished.silent
        ),
    )
    before = _looks_before(path, draft)
    looks, unread = (before, []) if before else _count_looks(path, draft)
    students = (replace(student, look=looks[student.arm]) for student in draft.students)
    evidence.write(path, replace(draft, students=tuple(students)))
    return replace(finished, looks=looks, unread=tuple(unread))


def _adapter(identity: Mapping[str, Any], arm: str) -> str:
    """What identifies an adapter: its files, or else its name and the script that answers."""
    script = identity.get("script")
    return identity["adapters"].get(arm) or (f"{arm}, script {script}" if script else arm)


def _looks_before(folder: Path, run: RunEvidence) -> Mapping[str, Look] | None:
    """The looks when the run was last concluded, if that was on the same cases."""
    try:
        before = evidence.read(folder)
    except InputError:
        return None
    if before is None or before.cases != run.cases:
        return None
    known = {student.arm: student for student in before.students}
    if not known.keys() >= {student.arm for student in run.students}:
        return None
    return {student.arm: _same_look(known[student.arm], student) for student in run.students}


def _same_look(before: StudentEvidence, now: StudentEvidence) -> Look:
    """The look of a run concluded again; a further one if its thresholds have changed."""
    one, two = ({(r.kind, r.arm): r.threshold for r in each.rules} for each in (before, now))
    look = before.look
    return look if one == two else Look(look.number + 1, look.cases, look.cases)


def _count_looks(folder: Path, run: RunEvidence) -> tuple[Mapping[str, Look], list[str]]:
    """The looks by student, after the runs beside `folder`; and why some cannot be counted."""
    times: dict[str, Counter[str]] = {student.arm: Counter() for student in run.students}
    taken, unread = {run.started_at}, list[str]()
    for _, other in evidence.read_beside(folder, unread):
        if other.started_at in taken or not run.same_question(other):
            continue
        taken.add(other.started_at)  # a copied folder is the same run
        adapters = {student.adapter for student in other.students}
        for student in run.students:
            if student.adapter in adapters:
                times[student.arm].update(set(other.cases))
    return {arm: _look(run, counter) for arm, counter in times.items()}, unread


def _look(run: RunEvidence, times: Counter[str]) -> Look:
    counts = [times[case] for case in run.cases]
    return Look(1 + max(counts, default=0), sum(map(bool, counts)), len(counts))
