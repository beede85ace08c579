"""The canary's grade, on a scripted engine: noise is forgiven, a mix-up is not.

Covered: what is asked, each kind of mix-up with and without half-precision noise, false alarms,
weak adapters. Not covered: real engines (test_engine_arms.py, test_transformers_engine.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.depth import count
from vllm_eval.engines import canary
from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Logits = NDArray[np.float64]
    Serves = Callable[[str, int], str]
    """Whose weights a row of a mixed batch gets: by its arm and text."""

TEXTS = len(canary.TEXTS)
WORDS = 60
STEP = 1 / 16
"""Between neighbouring logits from 8 to 16 in bfloat16."""


def draw(seed: int) -> Logits:
    """Texts x words."""
    return np.random.default_rng(seed).normal(0, 2, (TEXTS, WORDS))


def moved(logits: Logits, by: float, seed: int) -> Logits:
    """The same logits, each moved by so many nats."""
    return logits + np.random.default_rng(seed).normal(0, by, logits.shape)


def likeliest(logits: Logits) -> canary.Rows:
    chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    top = np.argsort(-chances)[:, : canary.TOP_TOKENS]
    return [
        dict(zip(tokens.tolist(), row[tokens].tolist(), strict=True))
        for tokens, row in zip(top, chances, strict=True)
    ]


@dataclass
class Engine:
    """Answers from the arms' logits; alone always as it should, in mixed batches as scripted."""

    arms: dict[str, Logits]
    noise: float = 0.0
    step: float = 0.0
    """Logits are rounded to its multiples."""
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def prove(self, serves: Serves = lambda arm, text: arm) -> str | None:
        asked = canary.batches(list(self.arms))
        return canary.prove(asked, [self._answer(batch, serves) for batch in asked])

    def _answer(self, batch: Sequence[str], serves: Serves) -> list[canary.Rows]:
        mixed = len({*batch}) > 1
        found = []
        for arm in batch:
            served = [serves(arm, text) if mixed else arm for text in range(TEXTS)]
            logits = np.array([self.arms[name][text] for text, name in enumerate(served)])
            logits += self.chance.normal(0, self.noise, logits.shape)
            if self.step:
                logits = np.round(logits / self.step) * self.step
            found.append(likeliest(logits))
        return found


BASE = draw(1)
STUDENT = moved(BASE, 0.3, seed=2)
OTHER = moved(BASE, 0.3, seed=7)
NOISES = [(0.0, 0.0), (0.02, 0.0), (0.02, STEP)]
"""None, single tokens at random, and rounding to bfloat16 after that."""


@pytest.fixture(params=NOISES, ids=["exact", "noisy", "bfloat16"])
def engine(request: pytest.FixtureRequest) -> Engine:
    noise, step = request.param
    return Engine({BASELINE: BASE, "a": STUDENT, "b": OTHER}, noise, step)


def test_an_honest_engine_passes(engine: Engine) -> None:
    assert engine.prove() is None


def test_fewer_than_one_start_in_a_thousand_fails_or_warns_for_noise_alone() -> None:
    """The noise of half precision; 20,000 starts of either kind were tried once: none failed."""
    for noise, step in NOISES[1:]:
        chance = np.random.default_rng(5)
        starts = [
            Engine({BASELINE: BASE, "a": STUDENT}, noise, step, chance).prove()
            for _ in range(count(500, deep=10_000))
        ]
        assert not any(starts)


def test_an_adapter_hidden_by_noise_never_fails_a_start() -> None:
    chance = np.random.default_rng(6)
    for seed in range(count(200, deep=500)):
        weak = moved(BASE, 0.03, seed)
        assert Engine({BASELINE: BASE, "a": weak}, 0.02, STEP, chance).prove() is not None


def test_two_neighbouring_checkpoints_are_two_adapters() -> None:
    arms = {BASELINE: BASE, "a": STUDENT, "b": moved(STUDENT, 0.02, seed=5), "c": OTHER}
    assert Engine(arms).prove() is None
    said = Engine(arms, noise=0.02).prove()
    assert said is not None
    assert "'a', 'b' too similar to be told from each other" in said
    assert "'c'" not in said


def test_a_base_served_with_an_adapter_is_found_also_under_noise(engine: Engine) -> None:
    with pytest.raises(EngineError, match="base requests are served with an adapter's weights"):
        engine.prove(lambda arm, text: "a" if arm == BASELINE else arm)


def test_a_base_served_with_the_second_adapter_is_found(engine: Engine) -> None:
    with pytest.raises(EngineError, match="beside 'b'"):
        engine.prove(lambda arm, text: "b" if arm == BASELINE else arm)


@pytest.mark.parametrize("text", range(TEXTS))
def test_a_base_served_with_an_adapter_for_one_of_eight_texts_is_found(
    engine: Engine, text: int
) -> None:
    with pytest.raises(EngineError, match=r"beside 'a' the base .* in 1 of 8 texts"):
        engine.prove(lambda arm, row: "a" if (arm, row) == (BASELINE, text) else arm)


@pytest.mark.parametrize("text", range(TEXTS))
def test_an_adapter_served_with_the_base_for_one_of_eight_texts_is_found(
    engine: Engine, text: int
) -> None:
    with pytest.raises(EngineError, match=r"'b' .* 1 of 8 texts: .* the base's weights"):
        engine.prove(lambda arm, row: BASELINE if (arm, row) == ("b", text) else arm)


def test_half_of_an_adapters_rows_from_the_base_are_found(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"'a' .* in 4 of 8 texts: .* the base's weights"):
        engine.prove(lambda arm, text: BASELINE if arm == "a" and text % 2 else arm)


def test_two_swapped_adapters_are_found(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"'a' .* than like adapter 'b' .* 8 of 8 texts"):
        engine.prove(lambda arm, text: {"a": "b", "b": "a"}.get(arm, arm))


def test_a_mix_up_in_one_of_two_mixed_batches_is_found(engine: Engine) -> None:
    asked = []

    def serves(arm: str, text: int) -> str:
        asked.append(arm)
        return "b" if arm == "a" and len(asked) > 3 * TEXTS else arm

    with pytest.raises(EngineError, match="another adapter's weights"):
        engine.prove(serves)


def test_a_base_that_once_answers_alone_as_an_adapter_is_found_and_not_taken_for_noise(
    engine: Engine,
) -> None:
    asked = canary.batches([BASELINE, "a", "b"])
    answers = [engine._answer(batch, lambda arm, text: arm) for batch in asked]
    answers[1] = engine._answer(["a"] * 3, lambda arm, text: arm)
    with pytest.raises(EngineError, match=r"beside 'a' the base .* in 8 of 8 texts"):
        canary.prove(asked, answers)


def test_an_adapter_that_first_answers_alone_as_the_base_is_an_error(engine: Engine) -> None:
    asked = canary.batches([BASELINE, "a", "b"])
    answers = [engine._answer(batch, lambda arm, text: arm) for batch in asked]
    assert asked[2] == ["a"]
    answers[2] = answers[0]
    with pytest.raises(EngineError, match="adapter 'a' changes nothing"):
        canary.prove(asked, answers)


def test_an_adapter_at_half_its_strength_beside_others_is_found(engine: Engine) -> None:
    engine.arms["b"] = moved(BASE, 0.6, seed=7)
    asked = canary.batches([BASELINE, "a", "b"])
    answers = [engine._answer(batch, lambda arm, text: arm) for batch in asked]
    for place, arm in enumerate(asked[-1]):
        if arm == "b":
            answers[-1][place] = likeliest((BASE + engine.arms["b"]) / 2)
    with pytest.raises(EngineError, match=r"adapter 'b' does not repeat its own answers to . of 8"):
        canary.prove(asked, answers)


def test_one_answer_that_is_nobodys_is_a_warning_that_names_the_arm(engine: Engine) -> None:
    engine.arms["nobody"] = draw(9)
    asked = canary.batches([BASELINE, "a", "b"])
    answers = [engine._answer(batch, lambda arm, text: arm) for batch in asked]
    answers[-1][0] = [likeliest(engine.arms["nobody"])[0], *answers[-1][0][1:]]
    assert asked[-1][0] == "b"
    said = canary.prove(asked, answers)
    assert said is not None
    assert "'b' unlike itself alone in some texts" in said
    assert "'a'" not in said


def test_an_adapter_that_changes_nothing_is_an_error() -> None:
    with pytest.raises(EngineError, match="adapter 'a' changes nothing"):
        Engine({BASELINE: BASE, "a": BASE}).prove()


def test_two_adapters_that_answer_alike_are_an_error() -> None:
    with pytest.raises(EngineError, match="are they the same"):
        Engine({BASELINE: BASE, "a": STUDENT, "b": STUDENT}).prove()


def test_an_adapter_too_weak_to_be_told_from_noise_is_a_warning_that_names_it() -> None:
    arms = {BASELINE: BASE, "strong": STUDENT, "weak": moved(BASE, 0.03, seed=8)}
    assert Engine(arms).prove() is None
    said = Engine(arms, noise=0.02).prove()
    assert said is not None
    assert "'weak' too weak to be told from the base" in said
    assert "strong" not in said


def test_probabilities_that_are_no_numbers_are_an_error() -> None:
    broken = STUDENT.copy()
    broken[3] = np.nan
    with pytest.raises(EngineError, match="'a' answers with probabilities that are not numbers"):
        Engine({BASELINE: BASE, "a": broken}).prove()


def test_thirty_two_adapters_cost_five_answers_each_and_little_time() -> None:
    arms = {BASELINE: BASE} | {f"a{n}": moved(BASE, 0.3, seed=n) for n in range(100, 132)}
    assert sum(map(len, canary.batches(list(arms)))) <= 5 * len(arms) + len(arms)
    begin = time.process_time()
    assert Engine(arms, noise=0.02).prove() is None
    assert time.process_time() - begin < 5


def test_a_hundred_adapters_are_told_apart_in_a_second_and_a_warning_names_a_few() -> None:
    arms = {BASELINE: BASE} | {f"a{n}": moved(BASE, 0.03, seed=n) for n in range(100, 200)}
    engine = Engine(arms, noise=0.02)
    asked = canary.batches(list(arms))
    answers = [engine._answer(batch, lambda arm, text: arm) for batch in asked]
    begin = time.process_time()
    said = canary.prove(asked, answers)
    assert time.process_time() - begin < 5
    assert said is not None
    assert "'a107' and 92 more too weak to be told from the base" in said


def text_rows(*said: str) -> canary.Rows:
    """Of a server that gives no log probabilities: the answer as one token."""
    return [{hash(text): 0.0} for text in said]


def test_of_answers_without_probabilities_only_whose_they_are_is_told() -> None:
    """Noise changes a text now and then; but not twice into that of another arm."""
    base, student = [f"base {n}" for n in range(TEXTS)], [f"student {n}" for n in range(TEXTS)]
    asked = canary.batches([BASELINE, "a"])
    own = {BASELINE: text_rows(*base), "a": text_rows(*student)}

    def answers(mixed: Sequence[str]) -> list[list[canary.Rows]]:
        rows = own | {BASELINE: text_rows(*mixed)}
        return [[(rows if len({*b}) > 1 else own)[arm] for arm in b] for b in asked]

    assert canary.prove(asked, answers(["noise", "noise", student[2], *base[3:]])) is None
    with pytest.raises(EngineError, match="in 2 of 8 texts: base requests are served"):
        canary.prove(asked, answers([student[0], *base[1:-1], student[-1]]))


def test_the_distance_is_in_nats_but_for_a_common_shift() -> None:
    assert canary.distance({1: -1.0, 2: -2.0}, {1: -1.5, 2: -2.5}) == pytest.approx(0.0)
    assert canary.distance({1: -1.0, 2: -2.0}, {1: -1.2, 2: -1.8}) == pytest.approx(0.2)


def test_a_token_that_one_list_lacks_counts_with_the_difference_that_is_certain() -> None:
    one, other = {1: -1.0, 2: -2.0, 3: -2.5}, {1: -1.0, 2: -2.0, 4: -2.5}
    assert canary.distance(one, other) == 0.0
    assert canary.distance({1: -1.0, 2: -2.0}, {1: -1.0, 3: -3.0}) == pytest.approx(1 / 3**0.5)


def test_distributions_without_a_common_token_are_as_far_apart_as_can_be() -> None:
    assert canary.distance({1: 0.0}, {2: 0.0}) == float("inf")
