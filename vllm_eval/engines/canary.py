"""Proof at start that base answers come from the bare base and adapter answers from the adapter.

There is an engine build that serves base rows of a mixed batch with an adapter's weights
(https://github.com/vllm-project/vllm/pull/48421); its scores would look like any other. So,
before the first case, each arm is asked for the next token after a few texts: the base in a batch
of its own, then all arms mixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE

Distribution = Mapping[int, float]

TEXTS = (
    "Concept: a booking portal for small clinics.\nRequirements:\n- FR001: book a visit\n",
    "```yaml VISION\nproduct_name: Booking Portal\nproduct_summary:",
    "```yaml REVIEW\nstatus: aligned\nsummary:\n- The requirements",
    "requirements_alignment:\n  aligned:\n  - FR001:",
    "recommended_actions:\n-",
    "narrative: The requirements cover",
    "You are the Product Owner. Write the vision and the review as YAML.\n",
    "key_capabilities:\n- Book a visit\n-",
)
TOP_TOKENS = 20
"""How many of the most likely next tokens are compared: vLLM's default limit."""
SMALLEST = 1e-6
"""Less is rounding: two rows of one batch with the same weights are exactly equal."""


def distance(one: Distribution, other: Distribution) -> float:
    """Total variation distance of two next-token distributions, in [0, 1].

    Counts only tokens in both lists: otherwise a token that rounding drops from one list would
    count with all its weight. Distributions that share no token have distance 1.
    """
    common = one.keys() & other.keys()
    if not common:
        return 1.0
    return 0.5 * sum(abs(math.exp(one[token]) - math.exp(other[token])) for token in common)


def prove(alone: Sequence[Distribution], mixed: Mapping[str, Sequence[Distribution]]) -> None:
    """Compare the arms' next tokens: for each text, the log probability by token.

    `alone` is the base's, from a batch of its own; `mixed` is each arm's, from one common batch.

    Raises:
        EngineError: the base does not answer as itself, an adapter changes nothing, or two
            adapters are the same.
    """
    for arm, rows in (("the base alone", alone), *mixed.items()):
        if not all(math.isfinite(p) for row in rows for p in row.values()):
            _fail(f"{arm!r} answers with probabilities that are not numbers")
    base = mixed[BASELINE]
    moved = _apart(alone, base)
    students = {arm: rows for arm, rows in mixed.items() if arm != BASELINE}
    for arm, rows in students.items():
        if moved > SMALLEST and _apart(base, rows) < moved:
            _fail(
                f"beside {arm!r} the base answers less like itself alone ({moved:.1e} away) than "
                f"like that adapter ({_apart(base, rows):.1e} away): base requests are served with "
                "an adapter's weights"
            )
    for arm, rows in students.items():
        if _apart(alone, rows) <= max(SMALLEST, moved):  # no more than the base itself moves
            _fail(f"adapter {arm!r} changes nothing: the engine answers as with the bare base")
    for arm, other in itertools.combinations(students, 2):
        if _apart(students[arm], students[other]) <= SMALLEST:
            _fail(f"adapters {arm!r} and {other!r} give the same answers: are they the same?")


def _apart(one: Sequence[Distribution], other: Sequence[Distribution]) -> float:
    return sum(distance(a, b) for a, b in zip(one, other, strict=True)) / len(one)


def _fail(what: str) -> None:
    raise EngineError(f"canary: {what}; no score of this engine can be trusted")
