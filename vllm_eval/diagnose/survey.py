"""Every attempt of a run looked at once: clusters with their counts, lengths, what retries did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_eval.diagnose.clusters import Cause, find_cause
from vllm_eval.diagnose.example import make_example

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vllm_eval.diagnose.example import Blocks, Example
    from vllm_eval.records import Attempt, Key
    from vllm_eval.tasks.declaration import Declaration

LOOP, TIMES = 40, 4
"""An answer runs in circles where its last so many characters stand at its end so many times."""
LOOPED = 4096
"""Characters from the end in which they are looked for."""


@dataclass(slots=True)
class Tally:
    """The failed attempts of one cluster, arm and tier, counted up."""

    example: Example
    """The first of them."""
    attempts: int = 0
    outcomes: int = 0
    """Of the attempts, those after which none was left."""
    truncated: int = 0
    looping: int = 0
    """Of the outcomes, those that were cut while they repeated themselves."""
    repaired: int = 0
    """Of the outcomes, those that a repair of their text makes valid."""
    retried: int = 0
    """Of the attempts, those that another attempt followed."""
    then_valid: int = 0
    """Of the retried ones, those whose next attempt was valid."""
    reasons: Counter[str] = field(default_factory=Counter)
    final_reasons: Counter[str] = field(default_factory=Counter)
    """Reasons of the outcomes alone."""
    places: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class ArmTally:
    """What the remedies of one arm are computed from."""

    lengths: Counter[int] = field(default_factory=Counter)
    """Output tokens of valid answers."""
    uncut: int = 0
    """Attempts with an answer that ended by itself."""
    uncut_valid: int = 0
    made: Counter[int] = field(default_factory=Counter)
    """Attempts by their number."""
    valid: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class Survey:
    """Looks at attempts on their way to somebody else; one is in memory at a time."""

    blocks: Blocks
    declaration: Declaration
    repaired: Collection[Key] | None = frozenset()
    """Failed outcomes that a repair of their text makes valid; None where that is not measured."""
    tallies: dict[tuple[str, str, str | None], Tally] = field(default_factory=dict)
    """By cluster, arm and tier."""
    arms: dict[str, ArmTally] = field(default_factory=dict)
    _waiting: dict[Key, Tally] = field(default_factory=dict)
    """Of those that failed and are to be asked again, where they are counted."""

    def watch(self, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
        """The same attempts, each counted."""
        for attempt in attempts:
            self._take(attempt)
            yield attempt

    def _take(self, attempt: Attempt) -> None:
        valid = attempt.status == "success"
        arm = self.arms.setdefault(attempt.arm, ArmTally())
        arm.made[attempt.attempt] += 1
        arm.valid[attempt.attempt] += valid
        if attempt.status != "error" and not attempt.truncated:
            arm.uncut += 1
            arm.uncut_valid += valid
        if valid:
            arm.lengths[attempt.output_tokens] += 1
        key = (attempt.arm, attempt.concept_id, attempt.sample)
        if (before := self._waiting.pop(key, None)) is not None:
            before.retried += 1
            before.then_valid += valid
        if not valid:
            tally = self._count(attempt, find_cause(attempt, self.blocks, self.declaration))
            if not attempt.final:
                self._waiting[key] = tally

    def _count(self, attempt: Attempt, cause: Cause) -> Tally:
        key = (cause.cluster, attempt.arm, attempt.tier)
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = Tally(make_example(attempt, self.blocks))
        tally.attempts += 1
        tally.truncated += attempt.truncated
        tally.reasons[attempt.reason or attempt.status] += 1
        if cause.place is not None:
            tally.places[cause.place] += 1
        if cause.size is not None:
            tally.sizes[cause.size] += 1
        if attempt.final:
            tally.outcomes += 1
            tally.final_reasons[attempt.reason or attempt.status] += 1
            tally.looping += attempt.truncated and runs_in_circles(attempt.raw_response)
            outcome = (attempt.arm, attempt.concept_id, attempt.sample)
            tally.repaired += outcome in (self.repaired or ())
        return tally


def runs_in_circles(text: str) -> bool:
    """Whether a text ends with the same words over and over: more room would be filled likewise."""
    end = text.rstrip()[-LOOPED:]
    return len(end) > LOOP and end.count(end[-LOOP:]) >= TIMES
