"""Which student ships: the leader of the ranking, or an earlier checkpoint that is tied with it.

Each passing student is tested against the leader, not against the next one: ties do not add up, so
a walk from tie to tie could end far below the leader. It is the idea of the one-standard-error rule
(Breiman, Friedman, Olshen & Stone, Classification and Regression Trees, 1984, section 3.4.3): the
simplest model that cannot be told apart from the best. The p-values are corrected (Holm 1979),
because the leader is the luckiest of its equals and would otherwise stand out from them too often
(Hsu, Constrained simultaneous confidence intervals for multiple comparisons with the best, Annals
of Statistics 12, 1984).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from vllm_eval.compare.betting import chance
from vllm_eval.compare.paired import holm, pair_all, paired_means
from vllm_eval.compare.ranking import ALPHA, Ranked
from vllm_eval.compare.summary import Comparison
from vllm_eval.compare.verdict import Verdict, Word

MOST_NAMED = 3
"""Tied students named in a sentence; `tied_with` has all."""
NONE_PASSES = "no student passes"
SAME_CASES = (
    "It was chosen by its score on these cases, so expect a slightly lower one on new cases"
)
"""What choosing does to a score, whatever the verdict's level (the winner's curse)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a student's adapter comes from."""

    path: str | None = None
    """None if it is only a name."""
    step: int | None = None
    """Training step at which it was saved, where that is known."""
    training: str | None = None
    """Folder of its training run, where that is known."""

    @property
    def place(self) -> float:
        """Its step; that of an adapter in the run's own folder, which is the end, is the last."""
        if self.step is not None:
            return self.step
        return math.inf if self.training is not None and self.path == self.training else -math.inf


@dataclass(frozen=True, slots=True)
class Selected:
    """The student that ships; it has passed."""

    arm: str
    path: str | None
    """Of its adapter; None if it is only a name."""
    step: int | None
    """Training step at which it was saved, where that is known."""
    training: str | None
    """Folder of its training run, where that is known."""
    verdict: Word
    mean_all: float | None
    """Mean over all cases, with failed answers as 0."""
    rank: int
    """Among all students; above 1 for an earlier checkpoint that is tied with the leader."""
    tied_with: tuple[str, ...]
    """The leader, unless it is selected, and others that cannot be told apart from the leader."""
    why: str
    """One sentence or two; names stand between backticks."""
    caution: str
    """What the choice does to its score and its verdict; empty for an only student, or where the
    verdict is certified."""


@dataclass(frozen=True, slots=True)
class _Rival:
    """A passing student beside the leader."""

    arm: str
    mean: float | None
    p: float
    """Of the test that its mean is the leader's, corrected for the number of such tests."""


def select(
    comparison: Comparison,
    verdicts: Sequence[Verdict],
    ranking: Sequence[Ranked],
    origins: Mapping[str, Origin],
) -> Selected | None:
    """The student to ship; None if none passes.

    It is the first in the ranking, unless an earlier checkpoint of the same training run passes
    too and is tied with it: of these the earliest is taken. Only those whose step is known count.
    The order in which the students are given does not matter.
    """
    by_arm = {verdict.arm: verdict for verdict in verdicts}
    passing = [ranked for ranked in ranking if by_arm[ranked.arm].passed]
    if not passing:
        return None
    leader, *others = passing
    tied = [one for one in _test(comparison, leader, others) if one.p >= ALPHA]
    places = {ranked.arm: ranked for ranked in passing}
    earlier = _earlier([one.arm for one in tied], leader.arm, origins)
    arm = min(earlier, key=lambda name: (earlier[name], places[name].rank), default=leader.arm)
    if arm == leader.arm:
        later = _all_later([one.arm for one in tied], leader.arm, origins)
        why = _leads(leader, len(passing), len(ranking), tied, later=later)
    else:
        why = _is_earlier(leader, next(one for one in tied if one.arm == arm), tied)
    origin, verdict = origins.get(arm, Origin()), by_arm[arm]
    return Selected(
        arm=arm,
        path=origin.path,
        step=origin.step,
        training=origin.training,
        verdict=verdict.word,
        mean_all=places[arm].mean_all.value,
        rank=places[arm].rank,
        tied_with=tuple(name for name in (leader.arm, *(t.arm for t in tied)) if name != arm),
        why=why,
        caution=_caution(verdict, len(ranking)),
    )


def from_json(data: Mapping[str, Any] | None) -> Selected | None:
    """The selection in a `comparison.json`."""
    return None if data is None else TypeAdapter(Selected).validate_python(data)


def _test(comparison: Comparison, leader: Ranked, others: Sequence[Ranked]) -> list[_Rival]:
    """The other passing students, best first, each tested against the leader."""
    cases = comparison.cases
    pairs = (pair_all(cases[leader.arm], cases[other.arm]) for other in others)
    p_values = holm([paired_means(*pair).p for pair in pairs])
    return [
        _Rival(other.arm, other.mean_all.value, p)
        for other, p in zip(others, p_values, strict=True)
    ]


def _earlier(arms: Sequence[str], leader: str, origins: Mapping[str, Origin]) -> dict[str, int]:
    """The steps of those `arms` that are earlier checkpoints of the leader's own training run."""
    its = origins.get(leader, Origin())
    known = {arm: origins[arm] for arm in arms if arm in origins}
    return {
        arm: origin.step
        for arm, origin in known.items()
        if origin.step is not None
        and origin.training is not None
        and origin.training == its.training
        and origin.step < its.place
    }


def _all_later(arms: Sequence[str], leader: str, origins: Mapping[str, Origin]) -> bool:
    """Whether all `arms` are later checkpoints of the leader's own training run."""
    its = origins.get(leader, Origin())
    others = [origins.get(arm, Origin()) for arm in arms]
    if its.training is None or its.step is None:
        return False
    return all(one.training == its.training and one.place > its.step for one in others)


def _leads(
    leader: Ranked, passing: int, students: int, tied: Sequence[_Rival], *, later: bool
) -> str:
    if students == 1:
        return f"{_code(leader.arm)} is selected: it is the only student, and it passes."
    if passing == 1:
        return f"{_code(leader.arm)} is selected: it is the only one of {students} that passes."
    mean = _number(leader.mean_all.value)
    why = f"{_code(leader.arm)} is selected: of the {passing} students that pass it has the highest"
    why = f"{why} mean (failures = 0), {mean}."
    if not tied:
        return why
    earliest = ", and is the earliest" if later else ""
    return f"{why} It cannot be told apart from {_listed(tied)}{earliest}."


def _is_earlier(leader: Ranked, chosen: _Rival, tied: Sequence[_Rival]) -> str:
    means = f"{_number(chosen.mean)} against {_number(leader.mean_all.value)}, {chance(chosen.p)}"
    tie = f"it is tied with {_code(leader.arm)} ({means})"
    why = f"{_code(chosen.arm)} is selected: {tie}, and is the"
    rest = [one for one in tied if one is not chosen]
    if not rest:
        return f"{why} earlier one."
    return f"{why} earliest one. Also tied with {_code(leader.arm)}: {_listed(rest)}."


def _caution(verdict: Verdict, students: int) -> str:
    if students == 1 or any(rule.state for rule in verdict.rules):
        return ""
    if any(rule.kind == "ratio_low" for rule in verdict.rules):
        return f"{SAME_CASES}; the ratio's lower end is corrected for {students} students."
    return f"{SAME_CASES}; `--certify` corrects the verdict for the choice."


def _listed(rivals: Sequence[_Rival]) -> str:
    named = [f"{_code(o.arm)} ({_number(o.mean)}, {chance(o.p)})" for o in rivals[:MOST_NAMED]]
    more = len(rivals) - len(named)
    *first, last = [*named, *([f"{more} more"] if more else [])]
    return f"{', '.join(first)} and {last}" if first else last


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _code(name: str) -> str:
    """A name between backticks, of which it holds none."""
    return f"`{name.replace('`', chr(39))}`"
