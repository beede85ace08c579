"""What the bare base answers to the canary's texts, so that another start can be held against it.

A run that takes the baseline's answers of an earlier one asks its own base nothing but these texts.
They prove that it is the base which gave those answers: a fingerprint of the files says nothing of
what an engine made of them.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from annotated_types import Ge, Le, Len
from pydantic import TypeAdapter, ValidationError

from vllm_eval.engines import canary
from vllm_eval.records import BASELINE

MOST_NOISE = 0.3
"""Nats. Beyond it `canary.TIMES` the noise is about 1 nat, which hides an adapter."""
_Row = Annotated[dict[int, float], Len(1, 10 * canary.TOP_TOKENS)]
_Texts = len(canary.TEXTS)


@dataclass(frozen=True, slots=True)
class BaseAnswers:
    """The base's answers at one start of an engine."""

    by: Annotated[str, Len(1, 100)]
    """What is compared, in words."""
    texts: str
    """Hash of the texts that were asked."""
    noise: Annotated[float, Ge(0), Le(MOST_NOISE)]
    """Nats; how far an answer to the same text strayed in the same start."""
    rows: Annotated[tuple[_Row | None, ...], Len(_Texts, _Texts)]
    """For each text the log probabilities of the likeliest next tokens; None where the base did
    not repeat itself at all."""


@dataclass(frozen=True, slots=True)
class Proof:
    """How far the bases of two starts are apart."""

    by: str
    """What was compared, in words."""
    away: float
    """Nats; the most in any text."""
    limit: float
    """Nats; what noise may explain."""


def own_answers(
    asked: Sequence[Sequence[str]], answers: Sequence[Sequence[canary.Rows]], by: str
) -> BaseAnswers | None:
    """The base's own answers among those to the `canary.batches`.

    None where they prove nothing, because of their noise.
    """
    alone = [
        rows
        for batch, given in zip(asked, answers, strict=True)
        if set(batch) == {BASELINE}
        for rows in given
    ]
    first, away = alone[0], [0.0] * _Texts
    for again in alone[1:]:
        pairs = zip(away, first, again, strict=True)
        away = [max(most, canary.distance(row, other)) for most, row, other in pairs]
    steady = [far for far in away if far < math.inf]
    noise = max(steady, default=math.inf)
    if 2 * len(steady) < _Texts or noise > MOST_NOISE:
        return None
    rows = (dict(row) if far < math.inf else None for row, far in zip(first, away, strict=True))
    return BaseAnswers(by, _hash_texts(), noise, tuple(rows))


def to_json(base: BaseAnswers) -> dict[str, Any]:
    """For the manifest."""
    return dict(orjson.loads(orjson.dumps(base, option=orjson.OPT_NON_STR_KEYS)))


def from_json(data: object) -> BaseAnswers | None:
    """What a manifest says; None where it cannot be used."""
    try:
        found = _reader().validate_json(orjson.dumps(data), strict=True)
    except (ValidationError, orjson.JSONEncodeError):
        return None
    steady = [row for row in found.rows if row is not None]
    finite = all(math.isfinite(p) for row in steady for p in row.values())
    return found if finite and 2 * len(steady) >= _Texts else None


def prove_same(before: BaseAnswers, now: BaseAnswers) -> Proof | None:
    """How far two starts are apart; None where they cannot be compared.

    They are of one base if they are not farther apart than noise may explain: `canary.TIMES` what
    was measured in either start, and at least `canary.NEGLIGIBLE`.
    """
    pairs = [(a, b) for a, b in zip(before.rows, now.rows, strict=True) if a and b]
    if (before.by, before.texts) != (now.by, now.texts) or 2 * len(pairs) < _Texts:
        return None
    limit = max(canary.NEGLIGIBLE, canary.TIMES * max(before.noise, now.noise))
    return Proof(now.by, max(canary.distance(*pair) for pair in pairs), limit)


def number_of(text: str) -> int:
    """A number for a token that is given as text: the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return -1 - int.from_bytes(digest)


def _hash_texts() -> str:
    return hashlib.sha256("\0".join(canary.TEXTS).encode()).hexdigest()[:16]


@functools.cache
def _reader() -> TypeAdapter[BaseAnswers]:
    return TypeAdapter(BaseAnswers)


def probabilities(most: int) -> str:
    """What is compared where an engine gives log probabilities."""
    return f"log probabilities of {most} tokens"
