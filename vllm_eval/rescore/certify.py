"""The stored evidence of several runs, taken together for each student."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_eval.compare import certificate
from vllm_eval.compare.certificate import Certificate, PastRun, rules_by_side
from vllm_eval.compare.verdict import Rule
from vllm_eval.conclude.conclude import concluded
from vllm_eval.config.layers import load_config
from vllm_eval.config.settings import Select
from vllm_eval.errors import InputError
from vllm_eval.store import evidence, manifest
from vllm_eval.store.evidence import RunEvidence, StudentEvidence
from vllm_eval.store.folder import CONFIG, find_run

FREE = frozenset(("dataset", "seed", "max_samples", "samples_per_case", "adapters", "script"))
"""Keys of a run's identity that may differ: they say which cases were drawn, and by whom answered.

Adapters and scripts are compared student by student."""


@dataclass(frozen=True, slots=True)
class _Graded:
    """One student in one run."""

    folder: Path
    run: RunEvidence
    student: StudentEvidence


def certify_runs(names: Sequence[str], output_dir: str, level: float) -> tuple[Certificate, ...]:
    """What the evidence of the runs says of each student together, at `level`.

    `names` are folders of runs, or their names in `output_dir`. A run given twice counts once, and
    so does a copy of its folder. Students are told apart by their adapters.

    Raises:
        InputError: the level is below 0.5, or 1 or more; a run is missing, did not finish or has no
            evidence; or runs of one adapter differ in base, task, way of asking or gate.
    """
    if not 0.5 <= level < 1:
        raise InputError(f"--certify: {level:g} must be at least 0.5 and below 1")
    runs: dict[str, tuple[Path, RunEvidence]] = {}
    for name in names:
        folder = find_run(name, output_dir)
        found = _read(folder)
        runs.setdefault(found.started_at, (folder, found))
    graded: dict[str, list[_Graded]] = {}
    for folder, run in runs.values():
        for student in run.students:
            graded.setdefault(student.adapter, []).append(_Graded(folder, run, student))
    for found_in in graded.values():
        for other in found_in[1:]:
            _refuse_other(found_in[0], other)
    certificates = certificate.certify(dict(_named(graded)), level)
    left_out = _left_out(graded, runs)
    return tuple(
        _noted(one, rows, left_out[adapter])
        for one, (adapter, rows) in zip(certificates, graded.items(), strict=True)
    )


def select_of(names: Sequence[str], output_dir: str) -> Select:
    """Whom the word on several runs is about: the best student if each run was asked for it."""
    configs = (load_config([str(find_run(name, output_dir) / CONFIG)]) for name in names)
    return "best" if all(config.gate.select == "best" for config in configs) else "all"


def _read(folder: Path) -> RunEvidence:
    if concluded(folder)["partial"]:
        raise InputError(f"{folder}: did not finish, so it is not evidence; --resume it")
    found = evidence.read(folder)
    if found is None:
        why = "is missing: an arm of the run never answered, or the file is lost"
        raise InputError(f"{folder / evidence.FILE}: {why}")
    return found


def _refuse_other(one: _Graded, other: _Graded) -> None:
    """InputError if two runs of one adapter are not evidence of the same claims."""
    mine, theirs = (
        {k: v for k, v in g.run.identity.items() if k not in FREE} for g in (one, other)
    )
    why = manifest.differences(mine, theirs)
    if not why:
        bounds = (_bounds(g.student.rules) for g in (one, other))
        why = [f"the gates differ: {each}" for each in manifest.differences(*bounds)]
    if why:
        raise InputError(
            f"{other.folder}: cannot be taken together with {one.folder} for "
            f"{other.student.arm}: {'; '.join(why)}"
        )


def _bounds(rules: Sequence[Rule]) -> dict[str, float]:
    found = rules_by_side(rules).items()
    return {f"{kind} of the baseline" if base else kind: r.threshold for (kind, base), r in found}


def _named(graded: Mapping[str, Sequence[_Graded]]) -> Iterator[tuple[str, list[PastRun]]]:
    """The runs of each student, by a name that no other has."""
    arms = [rows[0].student.arm for rows in graded.values()]
    for rows in graded.values():
        arm, first = rows[0].student.arm, rows[0].folder.name
        runs = [PastRun(g.folder.name, frozenset(g.run.cases), g.student.rules) for g in rows]
        yield (arm if arms.count(arm) == 1 else f"{arm} of {first}"), runs


def _left_out(
    graded: Mapping[str, Sequence[_Graded]], taken: Collection[str]
) -> dict[str, list[str]]:
    """By adapter, the runs that graded it and are not among those `taken` (their starts)."""
    names: dict[str, list[str]] = {adapter: [] for adapter in graded}
    folders = [g.folder.resolve() for rows in graded.values() for g in rows]
    for folder in {folder.parent: folder for folder in folders}.values():
        for path, other in evidence.read_beside(folder, unread=[]):
            if other.started_at in taken:
                continue
            for adapter in {student.adapter for student in other.students} & graded.keys():
                if other.same_question(graded[adapter][0].run):
                    names[adapter].append(path.name)
    return names


def _noted(one: Certificate, rows: Sequence[_Graded], left_out: Sequence[str]) -> Certificate:
    """With notes on the data sets, and on runs that were left out."""
    notes = [*one.verdict.notes]
    if len({str(g.run.identity.get("dataset")) for g in rows}) > 1:
        notes.append(
            "The runs use different data sets. If these differ in kind, a rule that is shown holds "
            "for at least one of them."
        )
    if left_out:
        notes.append(
            f"Left out: {', '.join(left_out)}, which graded the same adapter. The level holds only "
            "if that was decided before the results were known."
        )
    return replace(one, verdict=replace(one.verdict, notes=tuple(notes)))
