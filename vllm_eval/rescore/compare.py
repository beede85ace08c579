"""Two runs of different days, paired by case: what is comparable, and how they differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.compare.summary import compare_arms, comparison_to_json
from vllm_eval.config.settings import NOT_IDENTITY
from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.rescore import stored
from vllm_eval.rescore.origin import config_of, find_files, identity_of
from vllm_eval.store import manifest
from vllm_eval.store.folder import is_finished

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.compare.summary import Comparison
    from vllm_eval.records import Outcome
    from vllm_eval.rescore.stored import StoredFile

REFUSED = {
    "task": "the task or its rules differ; grade both again with `score`",
    "dataset": "the data sets differ",
}
"""Parts of a run's identity that must be the same, with what is wrong where they are not."""
FOLDED = frozenset(("adapters", "script"))
"""Parts of a run's identity that are told apart by arm, or say nothing."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One of the two: what was recorded in it, without the texts."""

    path: Path
    outcomes: Mapping[str, Sequence[Outcome]]
    """By arm."""
    identity: Mapping[str, Any] | None
    """From its manifest; None where there is none."""
    config: Mapping[str, Any]
    flags: tuple[str, ...]
    """What was met in its files."""


@dataclass(frozen=True, slots=True)
class ArmPair:
    """An arm of A against an arm of B."""

    first: str
    second: str
    comparison: Comparison
    """Of two arms, called as `label` calls them; A's is the baseline."""

    def label(self, side: str) -> str:
        """How side `A` or `B` is called in the comparison."""
        return f"{self.first if side == 'A' else self.second} ({side})"


@dataclass(frozen=True, slots=True)
class Compared:
    """Everything that comparing found."""

    first: Path
    second: Path
    pairs: tuple[ArmPair, ...]
    flags: tuple[str, ...]
    """What makes the two less comparable than they look."""

    def __repr__(self) -> str:
        lines = [f"A  {self.first}", f"B  {self.second}", *(f"note: {flag}" for flag in self.flags)]
        for pair in self.pairs:
            found = pair.comparison.students[pair.label("B")]
            ratio = "-" if found.ratio.value is None else f"{found.ratio.value:.4f}"
            lines.append(
                f"{pair.second}: B higher in {found.wins}, lower in {found.losses}, the same in "
                f"{found.ties}; ratio of means B / A {ratio}, p = {found.scores.p:.4f}"
            )
        return "\n".join(lines)


def compare_runs(first: str | Path, second: str | Path) -> Compared:
    """Pair two run folders or result files by arm and case, on what was recorded.

    Arms of one name are paired; so are the only arms, or the only other students, of both sides.

    Raises:
        InputError: a file that cannot be used, or two that must not be compared.
    """
    first, second = Path(first), Path(second)
    one, two = _open_side(first), _open_side(second)
    flags = [*_check_identity(one, two), *one.flags, *two.flags]
    names = _pair_names(list(one.outcomes), list(two.outcomes))
    if not names:
        have = f"{', '.join(one.outcomes)} and {', '.join(two.outcomes)}"
        msg = f"{first} and {second} have no arm in common: {have}"
        raise InputError(msg)
    pairs = []
    for a, b in names:
        if a != b:
            flags.append(f"{a} of A is compared with {b} of B")
        flags += _check_cases(one, two, a, b)
        pairs.append(_compare_arms(one.outcomes[a], two.outcomes[b]))
    return Compared(first, second, tuple(pairs), tuple(dict.fromkeys(flags)))


def to_json(compared: Compared) -> dict[str, Any]:
    """What was found, as JSON values."""
    return {
        "a": str(compared.first),
        "b": str(compared.second),
        "flags": compared.flags,
        "arms": [
            {"a": pair.first, "b": pair.second, "comparison": comparison_to_json(pair.comparison)}
            for pair in compared.pairs
        ],
    }


def _open_side(path: Path) -> RecordedRun:
    outcomes: dict[str, list[Outcome]] = {}
    files = [stored.open_file(found) for found in find_files([path])]
    cut = (path / manifest.FILE).is_file() and not is_finished(path)
    partial = cut or any(file.partial for file in files)
    flags = [f"{path} holds a run that did not end"] if partial else []
    for file in files:
        flags += [*file.notes, *_read_outcomes(file, outcomes)]
    return RecordedRun(path, outcomes, identity_of(files[0]), config_of(files[0]), tuple(flags))


def _read_outcomes(file: StoredFile, outcomes: dict[str, list[Outcome]]) -> list[str]:
    """Add what was recorded in a file, and say what of it is not compared."""
    if taken := [arm for arm in file.arms if arm in outcomes]:
        msg = f"{file.path}: another file also holds {taken[0]}; name one file"
        raise InputError(msg)
    unscored, unusable = 0, ""
    for answer in stored.read_answers(file):
        if answer.status is None:
            what = f"has the unknown status {answer.unknown_status}"
            what = what if answer.unknown_status else "lacks `status`"
            msg = f"{file.path}, {answer.place}: {what}; grade it with `score` instead"
            raise InputError(msg)
        if answer.final:
            outcomes.setdefault(answer.arm, []).append(answer.outcome())
            unscored += answer.status == "success" and answer.score is None
            if answer.unusable_score and not unusable:
                unusable = f"{answer.place}: score {answer.unusable_score}"
    flags = []
    if unusable:
        flags.append(f"{file.path}, {unusable} is not a number from 0 to 1, so it is not compared")
    if unscored:
        words = "recorded as success without a usable score count as valid, in no pair of scores"
        flags.append(f"{file.path}: {unscored} answers {words}")
    return flags


def _check_identity(one: RecordedRun, two: RecordedRun) -> list[str]:
    """Refuse what must be the same, and list what else is not.

    Without both manifests the stored configurations are compared in what they have in common.
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
            msg = (
                f"{one.path} and {two.path}: cannot be compared: {why} "
                f"({key}: {mine.get(key)} and {theirs.get(key)})"
            )
            raise InputError(msg)
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in FOLDED and mine.get(key) != theirs.get(key):
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
        msg = f"{one.path} and {two.path}: no case of {a} is in both"
        raise InputError(msg)
    if mine == theirs:
        return []
    alone = f"{len(mine - theirs)} only in A, {len(theirs - mine)} only in B"
    return [f"{len(mine & theirs)} cases are in both, {alone}; only pairs are tested"]


def _compare_arms(first: Sequence[Outcome], second: Sequence[Outcome]) -> ArmPair:
    names = (f"{first[0].arm} (A)", f"{second[0].arm} (B)")
    outcomes = [replace(outcome, arm=names[0]) for outcome in first]
    outcomes += [replace(outcome, arm=names[1]) for outcome in second]
    comparison = compare_arms(outcomes, names, baseline=names[0])
    return ArmPair(first[0].arm, second[0].arm, comparison)
