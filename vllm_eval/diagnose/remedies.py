"""What each remedy would recover in one arm, as far as its stored answers tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vllm_eval.compare.intervals import share_interval
from vllm_eval.compare.summary import Summary
from vllm_eval.config.settings import Config
from vllm_eval.diagnose.clusters import BEYOND_GRAMMAR, MENDABLE
from vllm_eval.diagnose.survey import ArmTally, Cluster

NO_ANSWER, TRUNCATED, TOO_LONG = "no_answer", "truncated", "prompt_too_long"
UNMEASURED = (
    "not measured: the code of a task that only a stored run names is not executed; "
    "`score RUN --repair --task FILE` measures it"
)
ROUND_TO = 128
"""Tokens to which a proposed limit is rounded up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What one setting would do for one arm; counts are of outcomes that stayed failures."""

    name: Literal["repair", "max_new_tokens", "max_model_len", "retries", "constrain"]
    arm: str
    setting: str
    """What to add to the command line."""
    clusters: tuple[str, ...]
    """Those it addresses, of which this arm has failures."""
    addressed: int
    """Failures in them."""
    recovered: float | None = None
    """How many of those would be valid; None if unknown."""
    low: float | None = None
    """Ends of its interval at 0.95, where it has one."""
    high: float | None = None
    kind: Literal["counted", "measured", "estimated", "at most", "unknown"]
    """`counted`: applied to the stored answers; `measured`: in an arm of the run."""
    basis: str
    """Where the number comes from, in one sentence."""
    valid_rate: float | None = None
    """Of the arm with them."""
    passes: bool | None = None
    """Whether the gate passes with them; None if unknown, because scores are."""


@dataclass(frozen=True, slots=True)
class Patient:
    """One arm with failures that stayed."""

    arm: str
    summary: Summary
    tally: ArmTally
    clusters: Mapping[str, Sequence[Cluster]]
    """All tiers of each cluster."""
    config: Config
    """Of the run."""
    passes: bool | None = None
    """The gate's word on the run with repaired answers; for a student, on that one alone."""
    constrained: Summary | None = None
    """Of the same arm constrained by the task's grammar, where the run has both."""
    repairs: bool = True
    """Whether repaired answers could be graded."""

    def outcomes(self, *clusters: str) -> int:
        """Failures that stayed in some clusters."""
        return sum(one.group.outcomes for name in clusters for one in self.clusters.get(name, ()))


def find_remedies(patient: Patient) -> list[Remedy]:
    """Every remedy that addresses a failure of the arm, the one that recovers most first."""
    makers = (_repair, _longer_answers, _longer_prompts, _retry, _constrain)
    found = [_rated(patient, remedy) for make in makers for remedy in make(patient)]
    return sorted(found, key=lambda remedy: -(remedy.recovered or 0.0))


def _rated(patient: Patient, remedy: Remedy) -> Remedy:
    """With the arm's valid rate: exact where every case has as many samples as any other."""
    total = patient.summary.total
    if remedy.recovered is None or remedy.valid_rate is not None or not total:
        return remedy
    return replace(remedy, valid_rate=(patient.summary.valid + remedy.recovered) / total)


def _repair(patient: Patient) -> Iterator[Remedy]:
    measured, basis = patient.repairs, UNMEASURED
    counts = {name: patient.outcomes(name) for name in patient.clusters if name in MENDABLE}
    if measured:
        basis = "the repairs were applied to the stored answers and their results graded"
        every = patient.clusters.items()
        counts = {name: sum(one.group.repaired or 0 for one in found) for name, found in every}
    if clusters := tuple(name for name, count in counts.items() if count):
        yield Remedy(
            name="repair",
            arm=patient.arm,
            setting="--repair",
            clusters=clusters,
            addressed=patient.outcomes(*clusters),
            recovered=float(sum(counts.values())) if measured else None,
            kind="counted" if measured else "unknown",
            basis=basis,
            passes=patient.passes if measured else None,
        )


def _longer_answers(patient: Patient) -> Iterator[Remedy]:
    """Truncated answers that do not repeat themselves would be valid as often as complete ones."""
    truncated = patient.outcomes(TRUNCATED)
    if not truncated:
        return
    tally, limit = patient.tally, patient.config.max_new_tokens
    looping = sum(one.looping for one in patient.clusters[TRUNCATED])
    wanted = ROUND_TO * math.ceil(2 * limit / ROUND_TO)
    worth = truncated - looping
    parts = [f"{worth} of {truncated} truncated answers do not repeat themselves at their end"]
    recovered = low = high = None
    if tally.ended:
        share = tally.ended_valid / tally.ended
        ends = share_interval(tally.ended_valid, tally.ended)
        recovered, (low, high) = share * worth, (worth * end for end in ends)
        complete = f"the {tally.ended} attempts that ended by themselves"
        parts.append(f"{share:.0%} of {complete} are valid")
    if tally.lengths:
        usual, most = _at_share(tally.lengths, 0.95), max(tally.lengths)
        parts.append(f"valid answers took {usual} tokens (95th percentile), {most} at most")
        if 2 * most <= limit:
            parts.append("far below the limit, so that these may never end")
    yield Remedy(
        name="max_new_tokens",
        arm=patient.arm,
        setting=f"--max-new-tokens {wanted}",
        clusters=(TRUNCATED,),
        addressed=truncated,
        recovered=recovered,
        low=low,
        high=high,
        kind="unknown" if recovered is None else "estimated",
        basis="; ".join(parts),
    )


def _longer_prompts(patient: Patient) -> Iterator[Remedy]:
    """Prompts that did not fit are answered as validly as the others, at best."""
    groups = [one.group for one in patient.clusters.get(NO_ANSWER, ())]
    count = sum(group.final_reasons.get(TOO_LONG, 0) for group in groups)
    if not count:
        return
    answered = patient.summary.total - patient.summary.errors
    share = patient.summary.valid / answered if answered else None
    yield Remedy(
        name="max_model_len",
        arm=patient.arm,
        setting="--max-model-len",
        clusters=(NO_ANSWER,),
        addressed=count,
        recovered=None if share is None else share * count,
        kind="unknown" if share is None else "estimated",
        basis=f"{count} prompts did not fit; `check` says how long they are"
        + ("" if share is None else f"; {share:.0%} of the answered ones are valid"),
    )


def _retry(patient: Patient) -> Iterator[Remedy]:
    """One more attempt succeeds as often as the last one did, after as many failures but one."""
    clusters = tuple(name for name in patient.clusters if name != NO_ANSWER)
    failed = patient.outcomes(*clusters)
    if not failed:
        return
    numbers = patient.tally.numbers
    last = max(numbers)
    recovered = low = high = None
    basis = "no answer of this arm was retried"
    if last > 1:
        made, valid = numbers[last].made, numbers[last].valid
        low, high = (failed * end for end in share_interval(valid, made))
        recovered = failed * valid / made
        times = "once" if last == 2 else f"{last - 1} times"
        basis = f"of {made} answers that had failed {times}, {valid} were valid at the next attempt"
    yield Remedy(
        name="retries",
        arm=patient.arm,
        setting=f"--retries {max(patient.config.retries, last - 1) + 1}",
        clusters=tuple(name for name in clusters if patient.outcomes(name)),
        addressed=failed,
        recovered=recovered,
        low=low,
        high=high,
        kind="unknown" if recovered is None else "estimated",
        basis=basis,
    )


def _constrain(patient: Patient) -> Iterator[Remedy]:
    if patient.config.constrain == "only":
        return
    failed = [name for name in patient.clusters if patient.outcomes(name)]
    if patient.constrained is not None:
        answered = tuple(name for name in failed if name != NO_ANSWER)
        if answered:
            yield _constrained(patient, answered, patient.constrained)
        return
    clusters = tuple(name for name in failed if name not in BEYOND_GRAMMAR)
    if clusters:
        count = patient.outcomes(*clusters)
        yield Remedy(
            name="constrain",
            arm=patient.arm,
            setting="--constrain",
            clusters=clusters,
            addressed=count,
            recovered=float(count),
            kind="at most",
            basis="the grammar rules these out; a constrained answer can still be truncated",
        )


def _constrained(patient: Patient, clusters: tuple[str, ...], held: Summary) -> Remedy:
    """What the same cases came to under the grammar, in the same run; missing answers apart."""
    free = patient.summary
    whole = held.total == free.total  # else one of them has answers that are pending in the other
    fewer = float((free.failed - free.errors) - (held.failed - held.errors))
    return Remedy(
        name="constrain",
        arm=patient.arm,
        setting="-c constrain=only",
        clusters=clusters,
        addressed=patient.outcomes(*clusters),
        recovered=fewer if whole else None,
        kind="measured" if whole else "unknown",
        basis=f"{held.valid} of {held.total} constrained answers are valid in this run, "
        f"and {free.valid} of {free.total} free ones",
        valid_rate=held.valid_rate if whole else None,
    )


def _at_share(counts: Counter[int], share: float) -> int:
    """The least value that so large a share of the counted ones does not exceed."""
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)
