"""Counts every attempt of a run once, for costs, timing, failures and remedies."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import astuple, dataclass, field

from vllm_eval.diagnose.clusters import KINDS, Cause, find_cause
from vllm_eval.diagnose.example import Blocks, Example, make_example
from vllm_eval.records import Attempt, Key
from vllm_eval.tasks.declaration import Declaration

MAX_EXAMPLES = 3
"""Examples kept of each kind of failure; the journal holds all of them."""
LOOP, TIMES = 40, 4
"""An answer repeats itself if its last `LOOP` characters occur `TIMES` times near its end."""
LOOPED = 4096
"""Characters from the end in which they are looked for."""


def _doubles() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Numbered:
    """The model's attempts of one arm with the same number, or with several."""

    made: int = 0
    valid: int = 0
    score: float = 0.0
    """Sum over the valid ones."""
    output_tokens: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class ArmTally:
    """All attempts of the model in one arm, without the engine's errors."""

    numbers: dict[int, Numbered] = field(default_factory=dict)
    """By number of the model's attempt, counted from 1."""
    asked: dict[int, Numbered] = field(default_factory=dict)
    """The same of those that this run asked; without those copied from another one."""
    prompt_tokens: int = 0
    """What this run has spent, as are the cached ones and the times below."""
    cached_tokens: int = 0
    unanswered: int = 0
    """Outcomes without any attempt of the model: the engine's errors came first."""
    truncated: int = 0
    """Outcomes truncated at the token limit."""
    ended: int = 0
    """Attempts with an answer that ended by itself."""
    ended_valid: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Output tokens of valid answers."""
    queued: array[float] = field(default_factory=_doubles)
    """Seconds, one value a timed attempt, as are the next three."""
    ttft: array[float] = field(default_factory=_doubles)
    itl: array[float] = field(default_factory=_doubles)
    """Decode time over the tokens but one: of attempts with more than one token."""
    e2e: array[float] = field(default_factory=_doubles)

    def together(self, first: int = 1) -> Numbered:
        """The attempts from number `first` on."""
        return _together(self.numbers, first)

    def spent(self, first: int = 1) -> Numbered:
        """Those of them that this run asked."""
        return _together(self.asked, first)


@dataclass(slots=True)
class Spans:
    """Of every attempt the engine answered: first token, end, tokens, whether it is a retry."""

    first: array[float] = field(default_factory=_doubles)
    end: array[float] = field(default_factory=_doubles)
    tokens: array[float] = field(default_factory=_doubles)
    retry: array[float] = field(default_factory=_doubles)


@dataclass(slots=True)
class FailureGroup:
    """The failed attempts of one arm and tier with one reason."""

    reason: str
    tier: str | None
    arm: str
    attempts: int = 0
    outcomes: int = 0
    """Of the attempts, those after which none was left: the answer stayed a failure."""
    truncated: int = 0
    """Of the attempts, those truncated at the token limit."""
    examples: list[Example] = field(default_factory=list)
    """The first few, each of another case."""


@dataclass(slots=True, kw_only=True)
class ClusterGroup:
    """The failed attempts of one arm and tier whose text has the same shape."""

    cluster: str
    what: str
    """The cluster in a few words."""
    arm: str
    tier: str | None
    attempts: int = 0
    outcomes: int = 0
    """Of the attempts, those after which none was left: the answer stayed a failure."""
    truncated: int = 0
    """Of the attempts, those truncated at the token limit."""
    repaired: int | None
    """Of the outcomes, those that a repair of their text makes valid; None if not measured."""
    retried: int = 0
    """Of the attempts, those that another attempt followed."""
    then_valid: int = 0
    """Of the retried ones, those whose next attempt was valid."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Of the attempts, those with each reason."""
    final_reasons: dict[str, int] = field(default_factory=dict)
    """Of the outcomes, those with each reason."""
    example: Example
    """The first one met."""


@dataclass(slots=True)
class Cluster:
    """A group, and what only remedies and patterns look at."""

    group: ClusterGroup
    looping: int = 0
    """Of the outcomes, those that were truncated while they repeated themselves."""
    places: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[str | None, int]] = field(default_factory=Counter)
    """Each with its place."""


@dataclass(slots=True)
class Survey:
    """Counts attempts, one after the other; holds no text but that of the examples."""

    blocks: Blocks
    """Gives the text of each block of an answer, by its label in lower case."""
    declaration: Declaration
    repairs: bool = True
    """Whether repaired answers are graded, so that a group's `repaired` is known."""
    arms: dict[str, ArmTally] = field(default_factory=dict)
    spans: Spans = field(default_factory=Spans)
    seconds: float = 0.0
    """From the first submission to the last completion, without the time between sessions."""
    failures: dict[tuple[str, str | None, str], FailureGroup] = field(default_factory=dict)
    """By reason, tier and arm."""
    clusters: dict[tuple[str, str, str | None], Cluster] = field(default_factory=dict)
    """By cluster, arm and tier."""
    _waiting: dict[tuple[Key, bool], Cluster] = field(default_factory=dict)
    """Where failed attempts that another will follow are counted; engine errors (true) apart."""

    def take(self, attempt: Attempt, *, repaired: bool = False) -> None:
        """Count one attempt, in the order of the journal.

        `repaired` tells whether a repair of its text makes it valid.
        """
        arm = self.arms.get(attempt.arm)
        if arm is None:
            arm = self.arms[attempt.arm] = ArmTally()
        if attempt.uncounted:
            arm.unanswered += attempt.final and attempt.number == 0
        else:
            _count(arm, attempt)
        if not attempt.reused:
            self.seconds = max(self.seconds, attempt.finished_at)
            if attempt.status != "error":
                _note(self.spans, attempt)
        valid = attempt.status == "success"
        if self._waiting:
            key = (attempt.arm, attempt.concept_id, attempt.sample)
            for kind in {True, attempt.uncounted}:  # an answer still follows an engine error
                if (before := self._waiting.pop((key, kind), None)) is not None:
                    before.group.retried += 1
                    before.group.then_valid += valid
        if not valid:
            self._take_failed(attempt, repaired=repaired)

    def _take_failed(self, attempt: Attempt, *, repaired: bool) -> None:
        reason = attempt.reason or attempt.status
        key = (reason, attempt.tier, attempt.arm)
        failures = self.failures.setdefault(key, FailureGroup(*key))
        cause = find_cause(attempt, self.blocks, self.declaration)
        cluster = self._cluster(attempt, cause)
        for group in (failures, cluster.group):
            group.attempts += 1
            group.outcomes += attempt.final
            group.truncated += attempt.truncated
        cases = {example.concept_id for example in failures.examples}
        if len(failures.examples) < MAX_EXAMPLES and attempt.concept_id not in cases:
            failures.examples.append(make_example(attempt, self.blocks))
        _add(cluster.group.reasons, reason)
        if cause.place is not None:
            cluster.places[cause.place] += 1
        if cause.size is not None:
            cluster.sizes[cause.place, cause.size] += 1
        if attempt.final:
            _add(cluster.group.final_reasons, reason)
            cluster.looping += attempt.truncated and runs_in_circles(attempt.raw_response)
            if cluster.group.repaired is not None:
                cluster.group.repaired += repaired
        else:
            answer = (attempt.arm, attempt.concept_id, attempt.sample)
            self._waiting[answer, attempt.uncounted] = cluster

    def _cluster(self, attempt: Attempt, cause: Cause) -> Cluster:
        key = (cause.cluster, attempt.arm, attempt.tier)
        if key not in self.clusters:
            group = ClusterGroup(
                cluster=cause.cluster,
                what=KINDS[cause.cluster].what,
                arm=attempt.arm,
                tier=attempt.tier,
                repaired=0 if self.repairs else None,
                example=make_example(attempt, self.blocks),
            )
            self.clusters[key] = Cluster(group)
        return self.clusters[key]


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _together(numbers: dict[int, Numbered], first: int) -> Numbered:
    rows = [row for number, row in numbers.items() if number >= first]
    return Numbered(*map(sum, zip(*map(astuple, rows), strict=True)))


def _count(arm: ArmTally, attempt: Attempt) -> None:
    valid = attempt.status == "success"
    for numbers in (arm.numbers,) if attempt.reused else (arm.numbers, arm.asked):
        row = numbers.get(attempt.number)
        if row is None:
            row = numbers[attempt.number] = Numbered()
        row.made += 1
        row.output_tokens += attempt.output_tokens
        row.seconds += attempt.total_s
        if valid:
            row.valid += 1
            row.score += attempt.score or 0.0
    arm.truncated += attempt.final and attempt.truncated
    if valid:
        arm.lengths[attempt.output_tokens] += 1
    if attempt.status != "error" and not attempt.truncated:
        arm.ended += 1
        arm.ended_valid += valid
    if not attempt.reused:
        _spend(arm, attempt)


def _spend(arm: ArmTally, attempt: Attempt) -> None:
    arm.prompt_tokens += attempt.prompt_tokens
    arm.cached_tokens += attempt.cached_tokens
    if attempt.total_s > 0:
        arm.queued.append(attempt.queued_s)
        arm.ttft.append(attempt.ttft_s)
        arm.e2e.append(attempt.total_s)
        if attempt.output_tokens > 1:
            arm.itl.append((attempt.total_s - attempt.ttft_s) / (attempt.output_tokens - 1))


def _note(spans: Spans, attempt: Attempt) -> None:
    spans.first.append(max(0.0, attempt.finished_at - attempt.total_s + attempt.ttft_s))
    spans.end.append(attempt.finished_at)
    spans.tokens.append(attempt.output_tokens)
    spans.retry.append(attempt.number > 1)


def runs_in_circles(text: str) -> bool:
    """Whether a text ends by repeating itself, so that more tokens would not help."""
    end = text.rstrip()[-LOOPED:]
    return len(end) > LOOP and end.count(end[-LOOP:]) >= TIMES
