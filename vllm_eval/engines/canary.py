"""Proof at start that base answers come from the bare base and adapter answers from the adapter.

An engine build is known that serves base rows in a mixed batch with an adapter's weights
(https://github.com/vllm-project/vllm/pull/48421); its scores would look like any others. So,
before the first case, each arm is asked for the next token after a few texts: the base in a batch
of its own, then all arms mixed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
CLEARLY = 3.0
"""An effect counts where it is so many times the noise between two base batches."""
SMALLEST = 1e-5
"""Less is rounding, whatever the noise."""


def distance(one: Distribution, other: Distribution) -> float:
    """Total variation, in [0, 1], of two next-token distributions given as log probabilities."""
    tokens = one.keys() | other.keys()
    return 0.5 * sum(abs(_share(one, token) - _share(other, token)) for token in tokens)


def prove(alone: Sequence[Distribution], mixed: Mapping[str, Sequence[Distribution]]) -> None:
    """Compare what the arms would say next.

    Args:
        alone: for each text, the base's log probability by token, the base alone in its batch.
        mixed: the same for each arm, all of them in one batch.

    Raises:
        EngineError: the base does not answer as itself, an adapter changes nothing, or two
            adapters are the same.
    """
    noise = _farthest(alone, mixed[BASELINE])
    students = {arm: rows for arm, rows in mixed.items() if arm != BASELINE}
    for arm, rows in students.items():
        effect = _farthest(alone, rows)
        if effect <= SMALLEST:
            _fail(f"adapter {arm!r} changes nothing: the engine answers as with the bare base")
        if effect <= CLEARLY * noise:
            _fail(
                f"beside {arm!r} the base does not answer as it does alone (it moves by "
                f"{noise:.1e}, the adapter by {effect:.1e}): base requests are served with an "
                "adapter's weights"
            )
    names = list(students)
    for number, arm in enumerate(names):
        for other in names[number + 1 :]:
            between = _farthest(students[arm], students[other])
            if between <= max(SMALLEST, CLEARLY * noise):
                _fail(f"adapters {arm!r} and {other!r} give the same answers: are they the same?")


def _share(distribution: Distribution, token: int) -> float:
    return math.exp(distribution[token]) if token in distribution else 0.0


def _farthest(one: Sequence[Distribution], other: Sequence[Distribution]) -> float:
    return max(distance(a, b) for a, b in zip(one, other, strict=True))


def _fail(what: str) -> None:
    msg = f"canary: {what}; no score of this engine can be trusted"
    raise EngineError(msg)
