"""Which student ships: the leader, or an earlier checkpoint that cannot be told apart from it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from tests.depth import count
from vllm_eval.compare import gate
from vllm_eval.compare.ranking import rank
from vllm_eval.compare.selection import Origin, Selected, select
from vllm_eval.compare.summary import compare_arms
from vllm_eval.compare.verdict import word_on
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import Outcome

CASES = 25
Scores = dict[str, list[float | None]]


def even(mean: float, turn: int = 1) -> list[float | None]:
    """Scores about the mean; another `turn` has other cases good and bad."""
    return [mean + 0.02 * (turn * case % 5 - 2) for case in range(CASES)]


def uneven(mean: float) -> list[float | None]:
    """Scores that those of `even` are not told apart from, where the means are alike."""
    return even(mean, 3)


def checkpoint(step: int, training: str = "runs/exp1") -> Origin:
    return Origin(f"{training}/checkpoint-{step}", step, training)


def answers(arm: str, scores: list[float | None]) -> list[Outcome]:
    return [
        Outcome(arm, f"K{n}", None, 0, "format_error" if s is None else "success", None, s, 1, True)
        for n, s in enumerate(scores)
    ]


def selected(students: Scores, origins: dict[str, Origin], **thresholds: Any) -> Selected | None:
    outcomes = answers("baseline", even(0.8))
    for arm, scores in students.items():
        outcomes += answers(arm, scores)
    bounds = GateConfig(**thresholds)
    level = bounds.interval_level
    comparison = compare_arms(outcomes, ["baseline", *students], confidence=level)
    verdicts = gate.decide(comparison, list(students), CASES, bounds)
    return select(comparison, verdicts, rank(comparison, verdicts), origins)


def choose(students: Scores, origins: dict[str, Origin], **thresholds: Any) -> Selected:
    found = selected(students, origins, **thresholds)
    assert found is not None
    return found


STEPS = {f"checkpoint-{step}": checkpoint(step) for step in (100, 200, 300)}
CURVE: Scores = {
    "checkpoint-100": even(0.74),
    "checkpoint-200": uneven(0.895),
    "checkpoint-300": even(0.9),
}


def test_an_earlier_checkpoint_that_is_tied_with_the_leader_is_selected() -> None:
    found = choose(CURVE, STEPS)
    assert (found.arm, found.step, found.rank) == ("checkpoint-200", 200, 2)
    assert (found.path, found.training) == ("runs/exp1/checkpoint-200", "runs/exp1")
    assert found.tied_with == ("checkpoint-300",)
    assert found.why.startswith(
        "`checkpoint-200` is selected: it is tied with `checkpoint-300` (0.895 against 0.900, p = "
    )
    assert found.why.endswith("), and is the earlier one.")


def test_an_earlier_checkpoint_that_is_worse_case_by_case_is_not_selected() -> None:
    found = choose(CURVE | {"checkpoint-200": even(0.85)}, STEPS)
    assert (found.arm, found.rank, found.tied_with) == ("checkpoint-300", 1, ())
    assert "of the 3 students that pass it has the highest mean" in found.why


def test_a_tied_checkpoint_that_does_not_pass_is_not_selected() -> None:
    brittle: list[float | None] = [*uneven(0.995)[: CASES - 3], None, None, None]
    found = choose(CURVE | {"checkpoint-200": brittle}, STEPS)
    assert found.arm == "checkpoint-300"


def test_of_several_tied_with_the_leader_the_earliest_is_selected_and_all_are_named() -> None:
    students = {"checkpoint-100": even(0.898, 2), "checkpoint-200": even(0.9)}
    students |= {"checkpoint-300": uneven(0.902)}
    found = choose(students, STEPS)
    assert (found.arm, found.tied_with) == ("checkpoint-100", ("checkpoint-300", "checkpoint-200"))
    assert "the earliest one. Also tied with `checkpoint-300`: `checkpoint-200` (0.900" in found.why


def test_ties_do_not_add_up_to_a_checkpoint_that_is_far_below_the_leader() -> None:
    """Each is tied with the next one; the first is not tied with the last."""
    rising: Scores = {}
    for number, step in enumerate((100, 200, 300)):
        shift = [0.004 * number * (3 if case % 2 else -1) for case in range(CASES)]
        rising[f"checkpoint-{step}"] = [
            (score or 0) + by for score, by in zip(even(0.9), shift, strict=True)
        ]
    rising["checkpoint-100"] = even(0.88)
    found = choose(rising, STEPS)
    assert found.arm != "checkpoint-100"
    assert "checkpoint-100" not in found.tied_with


@pytest.mark.parametrize(
    "origins",
    [
        {},
        {name: Origin(origin.path) for name, origin in STEPS.items()},
        STEPS | {"checkpoint-200": checkpoint(200, "runs/exp2")},
        {name: Origin(origin.path, origin.step) for name, origin in STEPS.items()},
        STEPS | {"checkpoint-300": Origin("runs/exp1/best", None, "runs/exp1")},
    ],
    ids=["labels", "no steps", "another training run", "unknown training runs", "leader's unknown"],
)
def test_without_a_common_training_run_the_leader_stays_and_its_ties_are_named(
    origins: dict[str, Origin],
) -> None:
    found = choose(CURVE, origins)
    assert (found.arm, found.tied_with) == ("checkpoint-300", ("checkpoint-200",))
    assert "It cannot be told apart from `checkpoint-200` (0.895, p = " in found.why
    assert "earliest" not in found.why


def test_a_leader_that_is_earlier_than_all_it_is_tied_with_is_said_to_be() -> None:
    found = choose(CURVE | {"checkpoint-200": uneven(0.9), "checkpoint-300": even(0.895)}, STEPS)
    assert (found.arm, found.rank, found.tied_with) == ("checkpoint-200", 1, ("checkpoint-300",))
    assert found.why.endswith("), and is the earliest.")


def test_the_end_of_a_training_run_is_later_than_all_its_checkpoints() -> None:
    found = choose(CURVE, STEPS | {"checkpoint-300": Origin("runs/exp1", None, "runs/exp1")})
    assert (found.arm, found.tied_with) == ("checkpoint-200", ("checkpoint-300",))


def test_the_selection_does_not_depend_on_the_order_in_which_adapters_are_given() -> None:
    students = CURVE | {"a copy": CURVE["checkpoint-300"], "other": uneven(0.9)}
    origins = STEPS | {"a copy": checkpoint(300, "runs/exp2"), "other": Origin("other")}
    orders = list(permutations(students.items()))
    picked = orders[:: len(orders) // count(3, deep=60)]
    assert len({choose(dict(order), origins) for order in picked}) == 1


def test_no_student_that_fails_is_selected() -> None:
    assert selected({"checkpoint-100": even(0.5), "checkpoint-200": even(0.6)}, STEPS) is None


def test_a_student_that_is_undecided_is_not_selected() -> None:
    assert selected(CURVE, STEPS, certify=0.95) is None


def test_the_only_student_is_selected_without_a_caution() -> None:
    found = choose({"pupil": even(0.9)}, {})
    assert (found.path, found.caution, found.tied_with) == (None, "", ())
    assert found.why == "`pupil` is selected: it is the only student, and it passes."


def test_a_choice_among_several_says_that_its_score_is_of_the_same_cases() -> None:
    assert "expect a slightly lower one on new cases; `--certify`" in choose(CURVE, STEPS).caution
    confident = choose({"one": even(0.95), "two": even(0.5)}, {}, confidence=0.5, min_ratio=0.5)
    assert confident.caution.endswith("lower end is corrected for 2 students.")
    long = {name: (even(0.95) * 5)[:CASES] for name in ("one", "two")}
    bounds = {"min_valid_rate": 0.5, "min_baseline_mean": 0.2, "min_ratio": 0.3}
    assert choose(long, {}, certify=0.6, **bounds).caution == ""


def test_a_name_cannot_end_the_code_that_it_stands_in() -> None:
    assert "`a'b`" in choose({"a`b": even(0.9)}, {}).why


@pytest.mark.parametrize(
    ("scores", "of_all", "of_best"),
    [
        ([0.9, 0.9], "PASS", "PASS"),
        ([0.9, 0.3], "FAIL", "PASS"),
        ([0.3, 0.3], "FAIL", "FAIL"),
    ],
)
def test_the_word_on_the_best_is_pass_where_any_student_passes(
    scores: list[float], of_all: str, of_best: str
) -> None:
    rows = answers("baseline", even(0.8))
    names = [f"s{n}" for n in range(len(scores))]
    for name, score in zip(names, scores, strict=True):
        rows += answers(name, even(score))
    verdicts = gate.decide(compare_arms(rows, ["baseline", *names]), names, CASES, GateConfig())
    assert (word_on(verdicts, "all"), word_on(verdicts, "best")) == (of_all, of_best)


def test_the_best_is_undecided_where_none_passes_and_one_may() -> None:
    rows = answers("baseline", even(0.8)) + answers("bad", [0.0] * CASES) + answers("ok", even(0.9))
    comparison = compare_arms(rows, ["baseline", "bad", "ok"])
    verdicts = gate.decide(comparison, ["bad", "ok"], CASES, GateConfig(certify=0.95))
    assert {verdict.arm: verdict.word for verdict in verdicts} == {"bad": "FAIL", "ok": "UNDECIDED"}
    assert (word_on(verdicts, "all"), word_on(verdicts, "best")) == ("FAIL", "UNDECIDED")


def test_no_student_is_no_best_one() -> None:
    assert word_on((), "best") == "FAIL"
