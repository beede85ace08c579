"""A survey of all attempts becomes a diagnosis: clusters, remedies, patterns."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING

from vllm_eval.diagnose.clusters import KINDS
from vllm_eval.diagnose.records import ClusterGroup, Diagnosis, Pattern
from vllm_eval.diagnose.remedies import Patient, find_remedies
from vllm_eval.records import BASELINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vllm_eval.compare.gate import Verdict
    from vllm_eval.compare.summary import Summary
    from vllm_eval.diagnose.records import Remedy
    from vllm_eval.diagnose.remedies import Limits
    from vllm_eval.diagnose.survey import Survey, Tally
    from vllm_eval.tasks.declaration import Declaration, Value

MOST_PATTERNS = 3
"""Patterns named of one arm."""
UNTRAINED = (
    "That is the base's failure, not the adapter's: make the prompt clearer (`--prompt-template`), "
    "constrain it (`--constrain`) or take another base."
)


def diagnose(
    survey: Survey,
    arms: Mapping[str, Summary],
    limits: Limits,
    repaired: Sequence[Verdict] = (),
    constrained: Mapping[str, Summary] | None = None,
) -> Diagnosis:
    """Put together what a survey has counted.

    Args:
        survey: that has seen every attempt.
        arms: summaries of the outcomes, by arm.
        limits: settings of the run.
        repaired: the gate's verdicts with repaired answers; none where the run has not finished.
        constrained: by arm, its summary under the task's grammar, where the run has both.
    """
    groups = [
        ClusterGroup(
            cluster=cluster,
            what=KINDS[cluster].what,
            arm=arm,
            tier=tier,
            attempts=tally.attempts,
            outcomes=tally.outcomes,
            truncated=tally.truncated,
            repaired=None if survey.repaired is None else tally.repaired,
            retried=tally.retried,
            then_valid=tally.then_valid,
            reasons=dict(tally.reasons.most_common()),
            example=tally.example,
        )
        for (cluster, arm, tier), tally in survey.tallies.items()
    ]
    groups.sort(key=lambda g: (-g.attempts, -g.outcomes, g.cluster, g.tier or "", g.arm))
    passes = {verdict.arm: verdict.passed for verdict in repaired}
    if repaired:
        passes[BASELINE] = all(passes.values())
    by_arm = {arm: _clusters(survey, arm) for arm in arms}
    remedies: list[Remedy] = []
    for arm, summary in arms.items():
        if any(tally.outcomes for tallies in by_arm[arm].values() for tally in tallies):
            patient = Patient(
                arm,
                summary,
                survey.arms[arm],
                by_arm[arm],
                limits,
                passes.get(arm),
                (constrained or {}).get(arm),
                mending=survey.repaired is not None,
            )
            remedies += find_remedies(patient)
    patterns = [
        pattern
        for arm, clusters in by_arm.items()
        for pattern in _patterns(arm, clusters, survey.declaration)
    ]
    return Diagnosis(
        attempts=sum(group.attempts for group in groups),
        outcomes=sum(group.outcomes for group in groups),
        clusters=tuple(groups),
        remedies=tuple(remedies),
        patterns=tuple(patterns),
    )


def _clusters(survey: Survey, arm: str) -> dict[str, list[Tally]]:
    found: dict[str, list[Tally]] = {}
    for (cluster, of, _), tally in survey.tallies.items():
        if of == arm:
            found.setdefault(cluster, []).append(tally)
    return found


def _patterns(
    arm: str, clusters: Mapping[str, Sequence[Tally]], declaration: Declaration
) -> Iterator[Pattern]:
    """The most frequent clusters of an arm, each at the place it has most often."""
    total = sum(tally.attempts for tallies in clusters.values() for tally in tallies)
    counts = {name: sum(tally.attempts for tally in tallies) for name, tallies in clusters.items()}
    for cluster in sorted(counts, key=lambda name: (-counts[name], name))[:MOST_PATTERNS]:
        places = sum((tally.places for tally in clusters[cluster]), Counter[str]())
        sizes = sum((tally.sizes for tally in clusters[cluster]), Counter[int]())
        place, times = next(iter(places.most_common(1)), (None, 0))
        kind = KINDS[cluster]
        yield Pattern(
            arm=arm,
            cluster=cluster,
            what=kind.what,
            attempts=counts[cluster],
            of=total,
            place=place,
            at_place=times,
            size=statistics.median(sizes.elements()) if sizes else None,
            bound=_bound(place, declaration) if sizes else None,
            todo=UNTRAINED if arm == BASELINE and cluster not in _OURS else kind.todo,
        )


_OURS = ("truncated", "no_answer")
"""Clusters that have nothing to do with what a model was trained on."""


def _bound(place: str | None, declaration: Declaration) -> int | None:
    """What is declared of the value at a place: its most words, or its least items."""
    label, *path = (place or "").split(".")
    keys = declaration.blocks[label].keys if label in declaration.blocks else {}
    value: Value | None = None
    for name in path:
        value = keys.get(name)
        keys = value.keys if value else {}
    return None if value is None else value.max_words or value.min_items
