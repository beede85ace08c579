"""Medians, ratios, turns and the roofline's arithmetic, each against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_eval.bench.contestants import read_lengths
from vllm_eval.bench.figures import rotated, spread, tabulate, unequal
from vllm_eval.bench.roofline import Speed, TokenCosts, find_limit
from vllm_eval.bench.trial import Trial, Work
from vllm_eval.errors import ConfigError
from vllm_eval.records import Request

TRIAL = Trial(
    seconds=2.0,
    cpu_s=1.5,
    grading_s=0.01,
    requests=4,
    retries=0,
    prompt_tokens=400,
    cached_tokens=0,
    output_tokens=200,
)
SPEED = Speed("cpu", "float32", 1, bytes_per_s=1000.0, flops_per_s=1e6)


def ask(case: str, attempt: int = 1, arm: str = "baseline") -> Request:
    return Request(f"{case}/{arm}/{attempt}", arm, case, 0, attempt, "prompt", seed=1)


def test_a_spread_is_the_median_the_least_and_the_greatest() -> None:
    found = spread([5.0, 1.0, 2.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 5.0)


def test_ratios_are_taken_within_a_repeat_not_between_medians() -> None:
    """A machine that slows down between the repeats leaves them as they are."""
    base = [replace(TRIAL, seconds=s) for s in (1.0, 10.0, 100.0)]
    twice = [replace(TRIAL, seconds=s) for s in (2.0, 20.0, 300.0)]
    _, row = tabulate({"mixed": base, "arms": twice}, "mixed")
    assert (row.ratio.median, row.ratio.low, row.ratio.high) == (2.0, 2.0, 3.0)
    assert row.cpu_ratio.median == 1.0
    assert row.seconds.median == 20.0
    assert row.output_tokens_per_s.median == pytest.approx(200 / 20)


def test_the_grading_share_is_of_each_trial_s_own_time() -> None:
    (row,) = tabulate({"mixed": [TRIAL]}, "mixed")
    assert row.grading_share == pytest.approx(0.005)


def test_every_contestant_is_first_in_turn() -> None:
    assert [rotated("ABC", repeat) for repeat in range(4)] == [
        ["A", "B", "C"],
        ["B", "C", "A"],
        ["C", "A", "B"],
        ["A", "B", "C"],
    ]


@pytest.mark.parametrize("field", ["requests", "prompt_tokens", "output_tokens"])
def test_other_work_is_named_with_its_contestant(field: str) -> None:
    other = replace(TRIAL, **{field: 1})
    why = unequal({"mixed": [TRIAL, TRIAL], "arms": [TRIAL, other]})
    assert why is not None
    assert why.startswith("arms did")


def test_equal_work_in_other_times_is_equal() -> None:
    other = replace(TRIAL, seconds=9.0, cached_tokens=7)
    assert unequal({"mixed": [TRIAL], "arms": [other]}) is None


def test_a_step_bound_by_memory_takes_its_bytes_over_the_bandwidth() -> None:
    """1,000 of weights, 100 of adapters, 4 sequences x 125 tokens of context x 2 bytes of cache."""
    costs = TokenCosts(1000, 100, 2, flops=0, output_flops=0, context_flops=0)
    limit = find_limit(costs, SPEED, TRIAL, 8, 2, together=True)
    assert limit.batch == 4
    assert limit.step_bytes == 1000 + 100 + 4 * 125 * 2
    assert limit.step_s == pytest.approx(2.1)
    assert limit.bound == "memory"
    assert limit.tokens_per_s == pytest.approx(4 / 2.1)


def test_a_step_bound_by_arithmetic_takes_its_operations_over_the_roof() -> None:
    costs = TokenCosts(1, 0, 0, flops=300_000, output_flops=200_000, context_flops=4_000)
    limit = find_limit(costs, SPEED, TRIAL, 2, 2, together=True)
    assert limit.step_flops == 2 * (300_000 + 200_000 + 125 * 4_000)
    assert limit.step_s == pytest.approx(2.0)
    assert limit.bound == "arithmetic"


def test_no_more_sequences_run_at_a_time_than_there_are_first_attempts() -> None:
    costs = TokenCosts(1, 0, 0, flops=1, output_flops=1, context_flops=1)
    trial = replace(TRIAL, retries=2)
    assert find_limit(costs, SPEED, trial, 8, 2, together=True).batch == 2
    assert find_limit(costs, SPEED, trial, 8, 2, together=False).batch == 1


def test_cached_prompt_tokens_are_not_computed_again() -> None:
    costs = TokenCosts(1, 0, 0, flops=1_000, output_flops=0, context_flops=0)
    whole = find_limit(costs, SPEED, TRIAL, 4, 2, together=True)
    half = find_limit(costs, SPEED, replace(TRIAL, cached_tokens=200), 4, 2, together=True)
    assert whole.prefill_s == pytest.approx(0.4)
    assert half.prefill_s == pytest.approx(0.2)


def test_of_a_prompt_only_the_last_token_goes_through_the_output_embedding() -> None:
    """400 prompt tokens through the layers, 4 prompts' ends through 50 times as much."""
    costs = TokenCosts(1, 0, 0, flops=1_000, output_flops=50_000, context_flops=0)
    limit = find_limit(costs, SPEED, TRIAL, 4, 2, together=True)
    assert limit.prefill_s == pytest.approx(0.4 + 4 * 0.05)


def test_an_answer_s_first_token_comes_with_its_prompt_and_takes_no_step() -> None:
    costs = TokenCosts(1000, 0, 0, flops=0, output_flops=0, context_flops=0)
    limit = find_limit(costs, SPEED, TRIAL, 4, 2, together=True)
    assert limit.step_s == pytest.approx(1)
    assert limit.least_s == pytest.approx(limit.prefill_s + (200 - 4) / 4)


@pytest.mark.parametrize(
    ("batch", "arms", "together", "adapters"),
    [
        (4, 2, True, 100),  # both arms in every step
        (4, 2, False, 50),  # the student's steps read it, the baseline's do not
        (1, 2, True, 50),  # one sequence is of one arm
        (2, 4, True, 50),
        (2, 4, False, 25),
    ],
)
def test_a_step_reads_the_adapters_of_the_arms_in_it(
    batch: int, arms: int, together: bool, adapters: float
) -> None:
    costs = TokenCosts(1000, 100, 0, flops=0, output_flops=0, context_flops=0)
    limit = find_limit(costs, SPEED, TRIAL, batch, arms, together=together)
    assert limit.step_bytes == 1000 + adapters


def test_forced_lengths_lie_in_their_range_and_fill_it() -> None:
    work = Work(500, 1200)
    lengths = [work.length(ask(f"K{n}")) for n in range(2000)]
    assert min(lengths) < 510
    assert max(lengths) > 1190
    assert all(500 <= length <= 1200 for length in lengths)
    assert sum(lengths) / 2000 == pytest.approx(850, abs=20)


def test_a_length_and_a_verdict_belong_to_the_request_alone() -> None:
    work = Work(1, 10**6, fail_rate=0.5)
    one, again = ask("K1"), replace(ask("K1"), id="other", seed=9, prompt="other words")
    assert work.length(one) == work.length(again)
    assert work.fails(one) == work.fails(again)
    others = [ask("K2"), ask("K1", attempt=2), ask("K1", arm="pupil")]
    assert len({work.length(request) for request in (one, *others)}) == 4


def test_another_seed_draws_other_lengths_and_failures() -> None:
    one, other = Work(1, 10**6, 0.5, seed=1), Work(1, 10**6, 0.5, seed=2)
    asked = [ask(f"K{n}") for n in range(40)]
    assert [one.length(request) for request in asked] != [other.length(r) for r in asked]
    assert [one.fails(request) for request in asked] != [other.fails(r) for r in asked]


def test_as_many_attempts_fail_as_asked_for() -> None:
    work = Work(1, 1, fail_rate=0.3)
    failed = sum(work.fails(ask(f"K{n}")) for n in range(4000))
    assert failed / 4000 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(("text", "lengths"), [("64", (64, 64)), ("500-1200", (500, 1200))])
def test_an_output_length_is_one_number_or_two(text: str, lengths: tuple[int, int]) -> None:
    assert read_lengths(text) == lengths


@pytest.mark.parametrize("text", ["", "0", "9-3", "many", "5-", "-5"])
def test_an_impossible_output_length_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--output-len"):
        read_lengths(text)
