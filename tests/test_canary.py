"""The canary's grade, on distributions made here: noise is forgiven, a mix-up is not."""

from __future__ import annotations

import math
import random

import pytest

from vllm_eval.engines import canary
from vllm_eval.errors import EngineError

TEXTS = len(canary.TEXTS)
Rows = list[dict[int, float]]


def draw(seed: int) -> Rows:
    """One distribution over twenty tokens for each text."""
    chance = random.Random(seed)
    return [normal({t: chance.gauss(0, 2) for t in range(20)}) for _ in range(TEXTS)]


def moved(rows: Rows, by: float, seed: int) -> Rows:
    """The same rows with noise of so many nats on each token."""
    chance = random.Random(seed)
    return [normal({t: p + chance.gauss(0, by) for t, p in row.items()}) for row in rows]


def normal(row: dict[int, float]) -> dict[int, float]:
    whole = math.log(sum(math.exp(p) for p in row.values()))
    return {token: p - whole for token, p in row.items()}


BASE = draw(1)
STUDENT = moved(BASE, 0.3, seed=2)


def test_an_honest_engine_passes() -> None:
    canary.prove(BASE, {"baseline": BASE, "a": STUDENT})


def test_half_precision_noise_on_the_base_is_forgiven() -> None:
    canary.prove(BASE, {"baseline": moved(BASE, 0.02, seed=3), "a": moved(STUDENT, 0.02, seed=4)})


def test_two_neighbouring_checkpoints_are_two_adapters() -> None:
    noisy = moved(BASE, 0.02, seed=3)
    canary.prove(BASE, {"baseline": noisy, "a": STUDENT, "b": moved(STUDENT, 0.02, seed=5)})


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_base_served_with_an_adapter_is_found_also_under_noise(noise: float) -> None:
    with pytest.raises(EngineError, match="base requests are served with an adapter's weights"):
        canary.prove(BASE, {"baseline": moved(STUDENT, noise, seed=6), "a": STUDENT})


def test_a_base_served_with_the_second_adapter_is_found() -> None:
    other = moved(BASE, 0.3, seed=7)
    with pytest.raises(EngineError, match="beside 'b'"):
        canary.prove(BASE, {"baseline": other, "a": STUDENT, "b": other})


def test_an_adapter_that_changes_nothing_is_an_error() -> None:
    with pytest.raises(EngineError, match="adapter 'a' changes nothing"):
        canary.prove(BASE, {"baseline": BASE, "a": BASE})


def test_two_adapters_that_answer_alike_are_an_error() -> None:
    with pytest.raises(EngineError, match="are they the same"):
        canary.prove(BASE, {"baseline": BASE, "a": STUDENT, "b": STUDENT})


def test_the_distance_is_the_total_variation() -> None:
    one, other = {1: math.log(0.5), 2: math.log(0.5)}, {1: math.log(0.9), 2: math.log(0.1)}
    assert canary.distance(one, other) == pytest.approx(0.4)


def test_distributions_without_a_common_token_are_as_far_apart_as_can_be() -> None:
    assert canary.distance({1: 0.0}, {2: 0.0}) == 1.0
