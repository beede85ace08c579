"""A survey of all attempts becomes a diagnosis: clusters, remedies, patterns."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_eval.compare.summary import Summary
from vllm_eval.compare.verdict import Verdict, word_on
from vllm_eval.config.settings import Config
from vllm_eval.diagnose.clusters import KINDS
from vllm_eval.diagnose.remedies import Patient, Remedy, find_remedies
from vllm_eval.diagnose.survey import Cluster, ClusterGroup, Survey
from vllm_eval.records import BASELINE
from vllm_eval.tasks.declaration import Declaration, Value

MOST_PATTERNS = 3
"""Patterns named of one arm."""
UNTRAINED = (
    "That is the base's failure, not the adapter's: make the prompt clearer (`--prompt-template`), "
    "constrain it (`--constrain`) or take another base."
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one arm does wrong most, for training or prompt."""

    arm: str
    cluster: str
    what: str
    attempts: int
    """Failed attempts of this cluster."""
    of: int
    """All failed attempts of the arm."""
    place: str | None
    """Block and key that the most of them have in common, as `REVIEW.narrative`."""
    at_place: int
    """How many of them."""
    size: float | None
    """Median of the items or words at the place, where their number is what is wrong."""
    bound: int | None
    """Least items, or most words."""
    todo: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All of it."""

    attempts: int
    """Failed ones."""
    outcomes: int
    """Of those, the ones that stayed failures."""
    clusters: tuple[ClusterGroup, ...]
    """Most frequent first."""
    remedies: tuple[Remedy, ...]
    """By arm, the one that recovers most first; none for an arm without a failed outcome."""
    patterns: tuple[Pattern, ...]
    """By arm, the most frequent first."""


def diagnose(
    survey: Survey,
    arms: Mapping[str, Summary],
    config: Config,
    repaired: Sequence[Verdict] = (),
    constrained: Mapping[str, Summary] | None = None,
) -> Diagnosis:
    """Put together what a survey of all attempts has counted.

    `repaired` are the gate's verdicts with repaired answers; none if the run has not finished.
    `constrained` has an arm's summary under the task's grammar, if the run has both.
    """
    groups = [
        replace(group, reasons=_most(group.reasons), final_reasons=_most(group.final_reasons))
        for group in (cluster.group for cluster in survey.clusters.values())
    ]
    groups.sort(key=lambda g: (-g.attempts, -g.outcomes, g.cluster, g.tier or "", g.arm))
    passes = {verdict.arm: verdict.passed for verdict in repaired}
    if repaired:
        passes[BASELINE] = word_on(repaired, config.gate.select) == "PASS"
    by_arm = {arm: _clusters(survey, arm) for arm in arms}
    remedies: list[Remedy] = []
    for arm, summary in arms.items():
        if any(one.group.outcomes for found in by_arm[arm].values() for one in found):
            held, tally = (constrained or {}).get(arm), survey.arms[arm]
            about = (arm, summary, tally, by_arm[arm], config, passes.get(arm), held)
            remedies += find_remedies(Patient(*about, repairs=survey.repairs))
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


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _clusters(survey: Survey, arm: str) -> dict[str, list[Cluster]]:
    found: dict[str, list[Cluster]] = {}
    for (name, of, _), cluster in survey.clusters.items():
        if of == arm:
            found.setdefault(name, []).append(cluster)
    return found


def _patterns(
    arm: str, clusters: Mapping[str, Sequence[Cluster]], declaration: Declaration
) -> Iterator[Pattern]:
    """The most frequent clusters of an arm, each at the place it has most often."""
    counts = {name: sum(one.group.attempts for one in found) for name, found in clusters.items()}
    total = sum(counts.values())
    for cluster in sorted(counts, key=lambda name: (-counts[name], name))[:MOST_PATTERNS]:
        places = sum((one.places for one in clusters[cluster]), Counter[str]())
        place, times = next(iter(places.most_common(1)), (None, 0))
        every = (found for one in clusters[cluster] for found in one.sizes.elements())
        sizes = [size for where, size in every if where == place]
        kind = KINDS[cluster]
        yield Pattern(
            arm=arm,
            cluster=cluster,
            what=kind.what,
            attempts=counts[cluster],
            of=total,
            place=place,
            at_place=times,
            size=statistics.median(sizes) if sizes else None,
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


def recovered(remedy: Mapping[str, Any]) -> str:
    """How many failures a remedy would make valid, and how well that is known."""
    if remedy["recovered"] is None:
        return "unknown"
    if remedy["kind"] in ("counted", "measured"):
        return f"{remedy['recovered']:,.0f} ({remedy['kind']})"
    if remedy["kind"] == "at most":
        return f"at most {remedy['recovered']:,.0f}"
    ends = "" if remedy["low"] is None else f" [{remedy['low']:,.1f}, {remedy['high']:,.1f}]"
    return f"about {remedy['recovered']:,.1f}{ends}"


def retried(group: Mapping[str, Any]) -> str:
    """What came of asking again after such a failure."""
    if not group["retried"]:
        return "-"
    return f"{group['then_valid']:,} of {group['retried']:,} valid"


def pattern_line(pattern: Mapping[str, Any]) -> str:
    """What an arm does wrong, where, how often, and what to change; names between backticks."""
    often = f"{pattern['attempts']:,} of {pattern['of']:,} failed attempts"
    place = size = ""
    if pattern["place"]:
        times = "all" if pattern["at_place"] == pattern["attempts"] else f"{pattern['at_place']:,}"
        place = f", {times} of them in `{pattern['place'].replace('`', '')}`"
    if pattern["size"] is not None and pattern["bound"] is not None:
        least = "at least" if pattern["size"] < pattern["bound"] else "at most"
        size = f" (median {pattern['size']:g}, {least} {pattern['bound']})"
    return f"{pattern['what']} in {often}{place}{size}. {pattern['todo']}"
