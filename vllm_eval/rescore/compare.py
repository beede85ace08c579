"""Two stored runs compared case by case: whether they are comparable, and how they differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.compare.betting import chance
from vllm_eval.compare.summary import compare_arms, comparison_to_json
from vllm_eval.config.identity import NOT_IDENTITY
from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.report.words import look
from vllm_eval.rescore import stored
from vllm_eval.rescore.origin import config_of, find_files, identity_of
from vllm_eval.store import evidence, manifest
from vllm_eval.store.folder import is_finished

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.compare.paired import Paired
    from vllm_eval.compare.summary import Comparison
    from vllm_eval.records import Outcome
    from vllm_eval.rescore.stored import StoredFile

REFUSED = {
    "task": "the task or its rules differ; grade both again with `score`",
    "dataset": "the data sets differ",
}
"""Keys of a run's identity that must be equal, with the message if they are not."""
FOLDED = frozenset(("adapters", "script"))
"""Keys of a run's identity that are compared arm by arm, or not at all."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One side: what was recorded in it, without the texts."""

    path: Path
    outcomes: Mapping[str, Sequence[Outcome]]
    """By arm."""
    identity: Mapping[str, Any] | None
    """From its manifest; None if there is none."""
    config: Mapping[str, Any]
    flags: list[str]
    """Notes on its files."""
    looks: list[str]
    """Its further looks at the same cases, a line for each."""


@dataclass(frozen=True, slots=True)
class ArmPair:
    """An arm of A and an arm of B."""

    first: str
    second: str
    comparison: Comparison
    """Of two arms, named like `student (A)` and `student (B)`; the one of A is the baseline."""

    @property
    def paired(self) -> Paired:
        """B compared with A."""
        return next(iter(self.comparison.students.values()))


@dataclass(frozen=True, slots=True)
class Compared:
    """The comparison of two runs."""

    first: Path
    second: Path
    pairs: tuple[ArmPair, ...]
    flags: tuple[str, ...]
    """What makes the two runs less comparable."""
    looks: tuple[str, ...] = ()
    """A line for each adapter that an earlier run graded on the same cases."""

    def __repr__(self) -> str:
        notes = [f"note: {note}" for note in (*self.looks, *self.flags)]
        lines = [f"A  {self.first}", f"B  {self.second}", *notes]
        for pair in self.pairs:
            found = pair.paired
            ratio = "-" if found.ratio.value is None else f"{found.ratio.value:.4f}"
            lines.append(
                f"{pair.second}: B higher in {found.wins}, lower in {found.losses}, the same in "
                f"{found.ties}; ratio of means B / A {ratio}, {chance(found.scores.p)}"
            )
        return "\n".join(lines)


def compare_runs(first: str | Path, second: str | Path) -> Compared:
    """Compare the recorded outcomes of two run folders or result files, by arm and case.

    Arms with the same name are paired. So are the arms of two sides with one arm each, and students
    with different names if each side has one.

    Raises:
        InputError: a file cannot be used, or the two are not comparable.
    """
    first, second = Path(first), Path(second)
    one, two = _open_side(first), _open_side(second)
    flags = [*_check_identity(one, two), *one.flags, *two.flags]
    names = _pair_names(list(one.outcomes), list(two.outcomes))
    if not names:
        have = f"{', '.join(one.outcomes)} and {', '.join(two.outcomes)}"
        raise InputError(f"{first} and {second} have no arm in common: {have}")
    pairs = []
    for a, b in names:
        if a != b:
            flags.append(f"{a} of A is compared with {b} of B")
        flags += _check_cases(one, two, a, b)
        pairs.append(_compare_arms(one.outcomes[a], two.outcomes[b]))
    notes, looks = tuple(dict.fromkeys(flags)), (*one.looks, *two.looks)
    return Compared(first, second, tuple(pairs), notes, looks)


def to_json(compared: Compared) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "a": str(compared.first),
        "b": str(compared.second),
        "flags": compared.flags,
        "looks": compared.looks,
        "arms": [
            {"a": pair.first, "b": pair.second, "comparison": comparison_to_json(pair.comparison)}
            for pair in compared.pairs
        ],
    }


def _open_side(path: Path) -> RecordedRun:
    outcomes: dict[str, list[Outcome]] = {}
    files = [stored.open_file(found) for found in find_files([path])]
    unfinished = (path / manifest.FILE).is_file() and not is_finished(path)
    partial = unfinished or any(file.partial for file in files)
    flags = [f"{path} holds a run that did not finish"] if partial else []
    for file in files:
        flags += [*file.notes(), *_read_outcomes(file, outcomes)]
    about, looks = files[0], [] if partial else _read_looks(path)
    return RecordedRun(path, outcomes, identity_of(about), config_of(about), flags, looks)


def _read_looks(path: Path) -> list[str]:
    """The further looks that a run folder records; none for a file or unusable evidence."""
    try:
        found = evidence.read(path)
    except InputError:
        return []
    looks = {one.arm: look(asdict(one.look)) for one in found.students} if found else {}
    return [f"{path}: {arm}: {words}" for arm, words in looks.items() if words]


def _read_outcomes(file: StoredFile, outcomes: dict[str, list[Outcome]]) -> list[str]:
    """Add the outcomes in a file; returns notes on those that are not compared."""
    if taken := [arm for arm in file.arms if arm in outcomes]:
        raise InputError(f"{file.path}: another file also holds {taken[0]}; name one file")
    unscored, unusable = 0, ""
    for answer in stored.read_answers(file):
        if answer.status is None:
            what = f"has the unknown status {answer.unknown_status}"
            what = what if answer.unknown_status else "lacks `status`"
            raise InputError(f"{file.path}, {answer.place}: {what}; grade it with `score` instead")
        if answer.final:
            outcomes.setdefault(answer.arm, []).append(answer.outcome())
            unscored += answer.status == "success" and answer.score is None
            if answer.unusable_score and not unusable:
                unusable = f"{answer.place}: score {answer.unusable_score}"
    flags = []
    if unusable:
        flags.append(f"{file.path}, {unusable} is not a number from 0 to 1, so it is not compared")
    if unscored:
        words = "valid answers have no usable score, and are in no pair of scores"
        flags.append(f"{file.path}: {unscored} {words}")
    return flags


def _check_identity(one: RecordedRun, two: RecordedRun) -> list[str]:
    """Refuse two runs that are not comparable, and list their other differences.

    Without both manifests, compares the keys that both stored configurations have.
    """
    if one.identity is not None and two.identity is not None:
        mine, theirs = dict(one.identity), dict(two.identity)
        flags = []
    else:
        common = (one.config.keys() & two.config.keys()) - NOT_IDENTITY
        mine, theirs = ({key: side.config[key] for key in common} for side in (one, two))
        flags = ["the two do not both record whether data sets and adapters are the same"]
    for key, why in REFUSED.items():
        if mine.get(key) != theirs.get(key):
            both = f"{key}: {mine.get(key)} and {theirs.get(key)}"
            raise InputError(f"{one.path} and {two.path}: cannot be compared: {why} ({both})")
    for key in manifest.differing(mine, theirs):
        if key not in FOLDED:
            flags.append(f"{key} differs: {mine.get(key)!r} in A, {theirs.get(key)!r} in B")
    adapters = mine.get("adapters") or {}, theirs.get("adapters") or {}
    for arm in sorted(adapters[0].keys() & adapters[1].keys()):
        if adapters[0][arm] != adapters[1][arm]:
            flags.append(f"{arm} is a different adapter in A and in B")
    return flags


def _pair_names(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    pairs = [(arm, arm) for arm in first if arm in second]
    mine = [arm for arm in first if arm not in second and arm != BASELINE]
    theirs = [arm for arm in second if arm not in first and arm != BASELINE]
    return [*pairs, (mine[0], theirs[0])] if len(mine) == len(theirs) == 1 else pairs


def _check_cases(one: RecordedRun, two: RecordedRun, a: str, b: str) -> list[str]:
    mine = {outcome.concept_id for outcome in one.outcomes[a]}
    theirs = {outcome.concept_id for outcome in two.outcomes[b]}
    if not mine & theirs:
        raise InputError(f"{one.path} and {two.path}: no case of {a} is in both")
    if mine == theirs:
        return []
    alone = f"{len(mine - theirs)} only in A, {len(theirs - mine)} only in B"
    return [f"{len(mine & theirs)} cases are in both, {alone}; only pairs are tested"]


def _compare_arms(first: Sequence[Outcome], second: Sequence[Outcome]) -> ArmPair:
    names = (f"{first[0].arm} (A)", f"{second[0].arm} (B)")
    sides = zip(names, (first, second), strict=True)
    outcomes = [replace(outcome, arm=name) for name, side in sides for outcome in side]
    comparison = compare_arms(outcomes, names, baseline=names[0])
    return ArmPair(first[0].arm, second[0].arm, comparison)
