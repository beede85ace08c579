"""What a diagnosis consists of; stored as `diagnosis` in `comparison.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_eval.diagnose.example import Example

Kind = Literal["counted", "measured", "estimated", "at most", "unknown"]
"""`counted`: the remedy was applied to the stored answers; `measured`: in an arm of the run."""


@dataclass(frozen=True, slots=True)
class ClusterGroup:
    """The failed attempts of one arm and tier whose text has the same shape."""

    cluster: str
    what: str
    """The cluster in a few words."""
    arm: str
    tier: str | None
    attempts: int
    outcomes: int
    """Of the attempts, those after which none was left: the answer stayed a failure."""
    truncated: int
    """Of the attempts, those truncated at the token limit."""
    repaired: int | None
    """Of the outcomes, those that a repair of their text makes valid; None if not measured."""
    retried: int
    """Of the attempts, those that another attempt followed."""
    then_valid: int
    """Of the retried ones, those whose next attempt was valid."""
    reasons: Mapping[str, int]
    """Most frequent first."""
    example: Example
    """The first one met."""


@dataclass(frozen=True, slots=True)
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
    recovered: float | None
    """How many of those would be valid; None where nothing stored tells."""
    low: float | None
    """Ends of its interval at 0.95, where it has one."""
    high: float | None
    kind: Kind
    basis: str
    """Where the number comes from, in one sentence."""
    valid_rate: float | None
    """Of the arm with them."""
    passes: bool | None = None
    """The gate's word with them; None where it cannot be known, as scores are not."""


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
    """Median of the items or words, where their number is what is wrong."""
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
