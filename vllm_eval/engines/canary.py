"""Proof at start that every arm answers from its own weights.

There is an engine build that serves base rows of a mixed batch with an adapter's weights
(https://github.com/vllm-project/vllm/pull/48421); its scores would look like any other. So,
before the first case, each arm is asked for the next token after a few texts, alone and then in
one batch with all others. Each answer of the mixed batch must be the arm's own.

An engine repeats itself only up to rounding, which changes with the size of a batch. This noise is
measured in the same start: each arm answers alone in batches of two sizes, and the noise is the
largest distance from an arm's first answer to another of its answers to the same text. An answer is
strange if it is more than `TIMES` the noise away from the arm's first. It is wrong if, besides,
another arm's is `TIMES` nearer, or if half of the arm's answers are strange. The largest of so few
repeats is itself uncertain; `TIMES` is chosen so that fewer than one of 1,000 simulated starts ends
for noise alone (2 of 20,000 in the worst case, where noise moves all tokens of a text together,
towards an adapter that is as weak as the noise).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE

Distribution = Mapping[int, float]
"""Log probability of the likeliest next tokens, in nats."""
Rows = Sequence[Distribution]
"""An arm's answers to all texts."""

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
SMALLEST = 1e-5
"""Nats. Rows of one batch this close have the same weights."""
NEGLIGIBLE = 1e-3
"""Nats. More than single precision rounds, and too little to change an answer."""
TIMES = 3.0
"""Of the noise, beyond which an answer is strange; and how much nearer another arm's must be."""

MOST_NAMED = 8
"""Arms that a warning names; of more it says how many there are."""


def distance(one: Distribution, other: Distribution) -> float:
    """Root mean square difference in nats over all tokens of both lists, up to a common shift.

    The shift belongs to the normalisation: noise on a token that is almost certain moves all the
    others together. A token that one list lacks is there at most as likely as the list's last, and
    counts with the difference that is certain. Lists that share no token are infinitely far apart.
    """
    shared = one.keys() & other.keys()
    if not shared:
        return math.inf
    shift = sum(one[token] - other[token] for token in shared) / len(shared)
    last, last_other = min(one.values()), min(other.values())
    gaps = [one[token] - shift - other[token] for token in shared]
    gaps += [max(0.0, one[token] - shift - last_other) for token in one.keys() - shared]
    gaps += [max(0.0, other[token] + shift - last) for token in other.keys() - shared]
    return math.sqrt(sum(gap * gap for gap in gaps) / len(gaps))


def batches(arms: Sequence[str]) -> list[list[str]]:
    """The arms to ask all texts in each batch: first batches of one arm, then of all arms.

    An arm named twice in a batch answers the texts twice. The base, the same for all, is also
    asked alone in a batch as large as the mixed ones.
    """
    sizes = {arm: len(arms) if arm == BASELINE else 2 for arm in arms}
    alone = [[arm] * size for arm in arms for size in (1, sizes[arm])]
    return [*alone, list(arms), list(reversed(arms))]


def prove(asked: Sequence[Sequence[str]], answers: Sequence[Sequence[Rows]]) -> str | None:
    """Compare the answers in the `batches`, each arm's in its place; returns what is unproven.

    Raises:
        EngineError: an arm does not answer as itself, an adapter changes nothing, or two
            adapters are the same.
    """
    first: dict[str, Rows] = {}
    alone: list[_Again] = []
    mixed: list[_Again] = []
    for batch, given in zip(asked, answers, strict=True):
        for arm, rows in zip(batch, given, strict=True):
            if not all(math.isfinite(p) for row in rows for p in row.values()):
                _fail(f"{arm!r} answers with probabilities that are not numbers")
            known = first.setdefault(arm, rows)
            pairs = enumerate(zip(known, rows, strict=True))
            again = [_Again(arm, text, row, distance(own, row)) for text, (own, row) in pairs]
            (alone if len({*batch}) == 1 else mixed).extend(again)
    limit = max(NEGLIGIBLE, TIMES * _noise(first, alone))
    strange = [answer for answer in alone + mixed if answer.away > limit]
    unsteady = [arm for arm in first if _hold(first, arm, [a for a in strange if a.arm == arm])]
    together = [dict(zip(*both, strict=True)) for both in zip(asked, answers, strict=True)]
    for arms in (first, *(rows for rows in together if len(rows) > 1)):
        _refuse_same(arms)
    return _unproven(first, unsteady, limit)


@dataclass(frozen=True, slots=True)
class _Again:
    """An answer to a text that the arm has answered alone before."""

    arm: str
    text: int
    row: Distribution
    away: float
    """From the arm's first answer."""


def _other(first: Mapping[str, Rows], answer: _Again) -> tuple[float, str] | None:
    """Another arm whose answer is `TIMES` nearer, and how far it is; None without one."""
    others = ((distance(rows[answer.text], answer.row), arm) for arm, rows in first.items())
    near, arm = min(found for found in others if found[1] != answer.arm)
    return (near, arm) if near < answer.away / TIMES else None


def _noise(first: Mapping[str, Rows], alone: Iterable[_Again]) -> float:
    """How far an arm alone strays from its first answer, but for another arm's answers."""
    farthest = sorted((a for a in alone if a.away < math.inf), key=lambda a: a.away, reverse=True)
    return next((answer.away for answer in farthest if _other(first, answer) is None), 0.0)


def _hold(first: Mapping[str, Rows], arm: str, strange: Sequence[_Again]) -> bool:
    """Whether an arm has strange answers; EngineError if they are wrong."""
    wrong = {a.text: (a.away, *found) for a in strange if (found := _other(first, a))}
    # A single token is equal or not, and noise alone may turn it into another arm's.
    texts = {answer.text for answer in strange if len(answer.row) > 1}
    if wrong and (texts or len(wrong) > 1):
        _fail(_blame(arm, *max(wrong.values()), len(wrong)))
    if 2 * len(texts) >= len(TEXTS):
        who = "the base" if arm == BASELINE else f"adapter {arm!r}"
        _fail(f"{who} does not repeat its own answers to {len(texts)} of {len(TEXTS)} texts")
    return bool(texts)


def _blame(arm: str, own: float, near: float, other: str, texts: int) -> str:
    base = BASELINE in (arm, other)
    who = f"beside {other!r} the base" if arm == BASELINE else f"adapter {arm!r}"
    whom = "that adapter" if arm == BASELINE else "the base" if base else f"adapter {other!r}"
    whose = "the base's" if other == BASELINE else "an adapter's" if base else "another adapter's"
    return (
        f"{who} answers less like itself alone ({own:.1e} away) than like {whom} ({near:.1e} away) "
        f"in {texts} of {len(TEXTS)} texts: {'base' if arm == BASELINE else 'its'} requests are "
        f"served with {whose} weights"
    )


def _refuse_same(arms: Mapping[str, Rows]) -> None:
    """EngineError if two arms answer exactly alike in batches of one shape."""
    for one, other in itertools.combinations(sorted(arms, key=lambda arm: arm != BASELINE), 2):
        if any(distance(*both) > SMALLEST for both in zip(arms[one], arms[other], strict=True)):
            continue
        if one == BASELINE:
            changes = "changes nothing: the engine answers as with the bare base"
            _fail(f"adapter {other!r} {changes}")
        _fail(f"adapters {one!r} and {other!r} give the same answers: are they the same?")


def _unproven(alone: Mapping[str, Rows], unsteady: Sequence[str], limit: float) -> str | None:
    """One sentence that names the arms for which the engine's noise leaves a doubt."""

    def hidden(one: str, other: str) -> bool:
        half = math.ceil(len(alone[one]) / 2)
        pairs = zip(alone[one], alone[other], strict=True)
        apart = (True for rows in pairs if distance(*rows) > limit)
        return sum(itertools.islice(apart, half)) < half  # the rest is not looked at

    students = [arm for arm in alone if arm != BASELINE]
    alike = {arm for pair in itertools.combinations(students, 2) if hidden(*pair) for arm in pair}
    doubts = {
        "too weak to be told from the base": [arm for arm in students if hidden(BASELINE, arm)],
        "too similar to be told from each other": sorted(alike),
        "unlike itself alone in some texts": unsteady,
    }
    named = [f"{_names(arms)} {what}" for what, arms in doubts.items() if arms]
    if not named:
        return None
    return (
        f"canary: differences below {limit:.1e} nats may be the engine's noise, so some arms are "
        f"not proven to answer from their own weights: {'; '.join(named)}"
    )


def _names(arms: Sequence[str]) -> str:
    more = f" and {len(arms) - MOST_NAMED} more" if len(arms) > MOST_NAMED else ""
    return ", ".join(map(repr, arms[:MOST_NAMED])) + more


def note(unproven: str | None) -> dict[str, str]:
    """What an engine says in `about` of an arm that is not proven."""
    return {"canary_warning": unproven} if unproven else {}


def _fail(what: str) -> NoReturn:
    raise EngineError(f"canary: {what}; no score of this engine can be trusted")
