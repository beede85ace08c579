"""Two starts of an engine are held against each other by what their bases answer the canary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.depth import count
from vllm_eval.engines import canary
from vllm_eval.engines.base_canary import (
    BaseAnswers,
    from_json,
    number_of,
    own_answers,
    prove_same,
    to_json,
)
from vllm_eval.records import BASELINE


def test_a_token_given_as_text_has_the_same_number_in_every_process() -> None:
    code = "from vllm_eval.engines.base_canary import number_of; print(number_of('a'))"
    found = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}
        )
        for s in "12"
    }
    assert found == {f"{number_of('a')}\n".encode()}


ASKED = canary.batches([BASELINE, "pupil"])


def start(logits: Any, noise: float, chance: np.random.Generator) -> BaseAnswers | None:
    """What is kept of a start whose every answer strays by the noise."""

    def rows(arm: str) -> canary.Rows:
        own = logits + (0.3 if arm != BASELINE else 0.0)
        strayed = own + chance.normal(0, noise, own.shape)
        found = strayed - np.log(np.exp(strayed).sum(axis=1, keepdims=True))
        top = np.argsort(-found)[:, : canary.TOP_TOKENS]
        return [
            dict(zip(t.tolist(), r[t].tolist(), strict=True))
            for t, r in zip(top, found, strict=True)
        ]

    return own_answers(ASKED, [[rows(arm) for arm in batch] for batch in ASKED], "test")


def drawn(seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 3, (len(canary.TEXTS), 500))


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
def test_a_base_is_the_same_in_every_start(noise: float) -> None:
    chance, logits = np.random.default_rng(1), drawn(2)
    for _ in range(count(100, deep=2_000)):
        one, two = start(logits, noise, chance), start(logits, noise, chance)
        assert one
        assert two
        proof = prove_same(one, two)
        assert proof
        assert proof.away <= proof.limit


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
def test_another_base_is_told_apart(noise: float) -> None:
    """One that is 0.3 nats away on every token, as an adapter is."""
    chance, logits = np.random.default_rng(1), drawn(2)
    for seed in range(count(100, deep=2_000)):
        moved = logits + np.random.default_rng(seed).normal(0, 0.3, logits.shape)
        one, two = start(logits, noise, chance), start(moved, noise, chance)
        assert one
        assert two
        proof = prove_same(one, two)
        assert proof
        assert proof.away > proof.limit


def test_what_is_kept_survives_the_manifest() -> None:
    kept = start(drawn(2), 0.02, np.random.default_rng(1))
    assert kept
    assert from_json(json.loads(json.dumps(to_json(kept)))) == kept


@pytest.mark.parametrize(
    "change",
    [{"noise": 5.0}, {"noise": -1.0}, {"rows": []}, {"rows": [None] * 8}, {"texts": 3}, {"by": ""}],
)
def test_what_is_no_record_of_a_canary_is_none(change: dict[str, Any]) -> None:
    kept = start(drawn(2), 0.02, np.random.default_rng(1))
    assert kept
    assert from_json(to_json(kept) | change) is None


def test_an_engine_too_noisy_for_a_proof_keeps_none() -> None:
    assert start(drawn(2), 1.0, np.random.default_rng(1)) is None


def test_bases_that_were_asked_otherwise_cannot_be_compared() -> None:
    chance = np.random.default_rng(1)
    one, two = start(drawn(2), 0.0, chance), start(drawn(2), 0.0, chance)
    assert one
    assert two
    assert prove_same(one, replace(two, texts="others")) is None
    assert prove_same(one, replace(two, by="texts")) is None
