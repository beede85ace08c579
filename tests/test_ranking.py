"""The students side by side: by verdict, then by mean with failures as 0; a tie is called a tie."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_eval.compare import gate
from vllm_eval.compare.ranking import Ranked, rank
from vllm_eval.compare.summary import compare_arms
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import Outcome


def answers(arm: str, *scores: float | None) -> list[Outcome]:
    """An answer to each case; None for one that broke the contract."""
    return [
        Outcome(
            arm, f"K{n}", None, 0, "success" if s is not None else "format_error", None, s, 1, True
        )
        for n, s in enumerate(scores)
    ]


def ranked(cases: int, *arms: list[Outcome], **thresholds: Any) -> tuple[Ranked, ...]:
    base = answers("baseline", *[0.8] * cases)
    names = [arm[0].arm for arm in arms]
    outcomes = [*base, *(outcome for arm in arms for outcome in arm)]
    comparison = compare_arms(outcomes, ["baseline", *names])
    return rank(comparison, gate.decide(comparison, names, cases, GateConfig(**thresholds)))


def test_a_student_that_fails_most_of_its_cases_is_not_first_for_the_few_it_masters() -> None:
    brittle = answers("brittle", *[1.0] * 6, *[None] * 8)
    steady = answers("steady", *[0.78] * 14)
    assert [r.arm for r in ranked(14, brittle, steady)] == ["steady", "brittle"]


def test_the_verdict_comes_before_the_mean() -> None:
    # The brilliant one scores more in all, and fails more than one in ten.
    brilliant = answers("brilliant", *[1.0] * 17, *[None] * 3)
    modest = answers("modest", *[0.75] * 20)
    first, second = found = ranked(20, brilliant, modest)
    assert [(r.arm, r.word) for r in found] == [("modest", "PASS"), ("brilliant", "FAIL")]
    assert first.p_next is not None
    assert (first.p_next > 0.05, first.tied, second.tied) == (True, False, False)


def test_of_one_verdict_the_higher_mean_with_failures_as_zero_comes_first() -> None:
    often = answers("often", *[0.85] * 18, *[None] * 2)
    always = answers("always", *[0.8] * 20)
    found = ranked(20, often, always)
    assert [(r.rank, r.arm) for r in found] == [(1, "always"), (2, "often")]
    assert found[0].mean_all.value == pytest.approx(0.8)


def test_students_that_cannot_be_told_apart_are_tied() -> None:
    one = answers("one", *[0.80, 0.85] * 10)
    two = answers("two", *[0.81, 0.83] * 10)
    first, second = ranked(20, one, two)
    assert (first.rank, second.rank, first.tied, second.tied) == (1, 2, True, False)
    assert first.p_next is not None
    assert first.p_next > 0.05


def test_students_that_are_equal_come_in_the_order_of_their_names_with_9_before_10() -> None:
    names = ["run-2/step-9", "run-2/step-10", "run-2/step-90", "run-10/step-1", "step"]
    for order in (names, names[::-1]):
        found = ranked(5, *(answers(name, *[0.8] * 5) for name in order))
        assert [r.arm for r in found] == names


def test_a_student_that_is_better_case_by_case_is_not_tied() -> None:
    one = answers("one", *[0.9] * 20)
    two = answers("two", *[0.8] * 20)
    first, second = ranked(20, two, one)
    assert (first.arm, first.rank, first.tied, second.rank) == ("one", 1, False, 2)
    assert first.ahead is not None
    assert first.ahead.value == pytest.approx(0.1)


def test_a_lead_by_a_few_cases_is_a_tie_even_if_most_cases_say_otherwise() -> None:
    steady = answers("steady", *[0.79] * 28, 1.0, 1.0)
    lucky = answers("lucky", *[0.80] * 28, 0.5, 0.5)
    first, _ = ranked(30, steady, lucky)
    assert (first.arm, first.tied) == ("steady", True)


def test_the_ends_of_a_row_of_ties_do_not_share_a_rank() -> None:
    rows = [[0.80 - 0.01 * n + 0.02 * (case % 3) for case in range(12)] for n in range(4)]
    found = ranked(12, *(answers(f"s{n}", *row) for n, row in enumerate(rows)))
    assert [r.rank for r in found] == [1, 2, 3, 4]


def test_the_last_student_is_compared_with_none() -> None:
    (only,) = ranked(5, answers("only", *[0.8] * 5))
    assert (only.rank, only.ahead, only.p_next, only.tied) == (1, None, None, False)


def test_the_tests_against_the_next_are_corrected_for_their_number() -> None:
    arms = [answers(name, *[0.9 - 0.1 * n] * 6) for n, name in enumerate("abc")]
    # Six cases all on one side: 2 / 2**6 each, twice that for the smallest of two.
    assert [r.p_next for r in ranked(6, *arms)] == [pytest.approx(4 / 2**6)] * 2 + [None]


def test_the_tests_against_the_baseline_are_corrected_for_the_number_of_students() -> None:
    better = answers("better", *(0.9 - n / 100 for n in range(8)))
    same = answers("same", *[0.8] * 8)
    found = {r.arm: r for r in ranked(8, better, same)}
    assert found["better"].p == pytest.approx(2 / 2**7, rel=1)
    assert found["better"].p_corrected == pytest.approx(2 * found["better"].p)
    assert (found["same"].p, found["same"].p_corrected) == (1.0, 1.0)


def test_a_student_without_any_answer_comes_last() -> None:
    silent = answers("silent", *[None] * 5)
    assert [r.arm for r in ranked(5, silent, answers("poor", *[0.1] * 5))] == ["poor", "silent"]
