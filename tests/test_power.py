"""What `check` says that the planned cases can show, and whether it is true.

The numbers are held against runs simulated here one by one, whose scores are drawn in another way
and graded by the rules of a single run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import vllm_eval
from tests.depth import count
from vllm_eval.compare.betting import trace
from vllm_eval.compare.claims import Table, make_claims
from vllm_eval.compare.intervals import make_interval
from vllm_eval.compare.power import (
    cases_for_valid_rate,
    cases_to_pass,
    lowest_certified,
    pass_chance,
)
from vllm_eval.config.settings import GateConfig
from vllm_eval.preflight.gate import check_gate

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run

CERTIFY = GateConfig(certify=0.95)


def line(run: Run) -> str:
    (found,) = (line for line in run.out.splitlines() if " gate: " in line)
    return found


@pytest.fixture
def planned(bench: Bench, answers: Answers) -> Bench:
    bench.dataset(34)
    bench.answers({"text": answers.text()})
    return bench


def test_check_says_how_often_the_default_gate_errs(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments())
    assert run.code == 0
    assert line(run).startswith("ok       gate: with 34 cases, a student whose true ratio is 0.88 ")
    assert "and one at 0.95 fails in 4 %" in line(run)
    assert "assuming valid answers of a typical spread and a base mean of 0.86" in line(run)
    assert "docs/statistics.md" in line(run)


def test_with_twenty_cases_it_says_what_users_used_to_find_out(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments("--max-samples", "20"))
    assert "is 0.88 passes in 30 % of such runs, and one at 0.95 fails in 9 %" in line(run)


def test_check_follows_the_bounds_of_the_gate(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments("--min-ratio", "0.8"))
    assert "true ratio is 0.78 passes" in line(run)
    assert "one at 0.85 fails" in line(run)


def test_check_warns_where_certify_can_hardly_be_reached(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments("--certify", "0.95"))
    assert run.code == 0
    assert line(run).startswith("warning  gate: with 34 cases, a student needs a true ratio of 1.0")
    assert "to be certified at 0.95 with a chance of 80 %" in line(run)
    number = cases_to_pass(CERTIFY, 1.0)
    assert f"; plan about {number} cases to certify one as good as the base" in line(run)


def test_check_says_when_even_valid_answers_are_too_few_to_show_it(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments("--certify", "0.95", "--max-samples", "20"))
    least = cases_for_valid_rate(CERTIFY, 0.95)
    assert "no student can be certified at 0.95: even if every answer is valid" in line(run)
    assert f"it takes {least} to show the valid rate" in line(run)


def test_certify_with_enough_cases_is_ok(bench: Bench, answers: Answers) -> None:
    bench.dataset(150)
    bench.answers({"text": answers.text()})
    found = line(bench.call("check", *bench.arguments("--certify", "0.95")))
    assert found.startswith("ok       gate: with 150 cases, a student needs a true ratio of 0.9")
    assert "one as good as the base is in over 99 % of such runs" in found


def test_the_finding_is_json_too(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments("--certify", "0.95", "--json"))
    (found,) = (row for row in json.loads(run.out) if row["where"] == "gate")
    assert found["level"] == "warning"
    assert found["todo"].startswith("plan about")


def test_python_gets_the_same_finding(planned: Bench) -> None:
    findings = vllm_eval.check(
        "pupil",
        engine="scripted",
        script=str(planned.script),
        dataset_path=str(planned.cases),
        profile="none",
        gate={"certify": 0.95},
    )
    (found,) = (finding for finding in findings if finding.where == "gate")
    run = planned.call("check", *planned.arguments("--certify", "0.95"))
    assert findings.passed
    assert found.line == line(run)


def test_a_run_begins_with_the_warning_and_not_with_what_is_in_order(planned: Bench) -> None:
    assert "plan about" in planned.run("--certify", "0.95").out
    assert "gate: with" not in planned.run().out


def test_a_student_graded_alone_is_told_its_mean(planned: Bench) -> None:
    alone = ("--against", "absolute", "--min-student-mean", "0.75")
    assert "true mean is 0.73 passes" in line(planned.call("check", *planned.arguments(*alone)))
    run = planned.call("check", *planned.arguments(*alone, "--certify", "0.95"))
    assert "a student needs a true mean of 0.8" in line(run)
    assert "base" not in line(run)


def test_more_students_take_more_cases(planned: Bench) -> None:
    run = planned.call("check", *planned.arguments("--adapter", "other", "--certify", "0.95"))
    assert "with 34 cases and 2 students, no student can be certified" in line(run)
    alone, together = cases_to_pass(CERTIFY, 1.0), cases_to_pass(CERTIFY, 1.0, 2)
    assert alone is not None
    assert together is not None
    assert alone < together


@pytest.mark.parametrize(
    ("gate", "cases", "students"),
    [
        (GateConfig(min_baseline_mean=0.9), 34, 1),
        (GateConfig(min_ratio=0), 34, 1),
        (GateConfig(min_ratio=1.5), 34, 1),
        (GateConfig(), 0, 1),
        (GateConfig(), 34, 0),
    ],
)
def test_nothing_is_said_where_typical_scores_say_nothing(
    gate: GateConfig, cases: int, students: int
) -> None:
    assert check_gate(gate, cases, students) == []


def test_rules_that_are_not_simulated_are_named() -> None:
    (found,) = check_gate(GateConfig(min_case_score=0.7, max_abs_difference=0.03), 34, 1)
    assert "without min_case_score and max_abs_difference" in found.what


def test_a_valid_rate_that_no_number_of_cases_shows_is_named() -> None:
    (found,) = check_gate(GateConfig(certify=0.95, min_valid_rate=1), 1000, 1)
    assert found.level == "warning"
    assert found.todo == "lower gate.min_valid_rate"


def test_very_many_cases_are_not_simulated_one_by_one() -> None:
    (found,) = check_gate(CERTIFY, 100_000, 1)
    assert found.level == "ok"
    assert "with 100,000 cases" in found.what
    assert "simulated for 1,000 cases" in found.what


def test_the_lowest_certified_ratio_has_that_chance_and_the_next_lower_has_not() -> None:
    lowest = lowest_certified(CERTIFY, 60)
    assert lowest is not None
    assert pass_chance(CERTIFY, lowest, 60) >= 0.8
    assert pass_chance(CERTIFY, lowest - 0.01, 60) < 0.8


@pytest.mark.parametrize("quality", [0.95, 1.0])
def test_so_many_cases_as_it_says_pass_with_that_chance(quality: float) -> None:
    number = cases_to_pass(CERTIFY, quality)
    assert number is not None
    assert simulated(CERTIFY, quality, number) == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize(
    ("options", "quality", "cases"),
    [
        ({}, 0.88, 20),
        ({}, 0.95, 20),
        ({"confidence": 0.95}, 1.0, 50),
        ({"certify": 0.95}, 1.0, 34),
        ({"certify": 0.95}, 1.05, 40),
        ({"certify": 0.9}, 0.95, 100),
        ({"against": "absolute", "min_student_mean": 0.75}, 0.77, 20),
        ({"against": "absolute", "min_student_mean": 0.75, "certify": 0.95}, 0.84, 40),
    ],
)
def test_the_chances_are_those_of_runs_graded_one_by_one(
    options: dict[str, Any], quality: float, cases: int
) -> None:
    gate = GateConfig(**options)
    expected = simulated(gate, quality, cases)
    assert pass_chance(gate, quality, cases) == pytest.approx(expected, abs=0.1)


def simulated(gate: GateConfig, quality: float, cases: int) -> float:
    """Share of runs that pass, over runs of beta-distributed scores graded one by one."""
    generator = np.random.default_rng(cases)
    mean = quality if gate.against == "absolute" else 0.86 * quality
    passed, runs = 0, count(300, deep=3000)
    for _ in range(runs):
        base, student = (beta(generator, one, cases) for one in (0.86, mean))
        passed += passes(gate, student, base)
    return passed / runs


def beta(generator: np.random.Generator, mean: float, cases: int) -> Any:
    """Scores whose standard deviation is 0.105 at a mean of 0.86, and less nearer to 1."""
    size = 0.86 * 0.14 / 0.105**2 - 1
    return generator.beta(mean * size, (1 - mean) * size, cases)


def passes(gate: GateConfig, student: Any, base: Any) -> bool:
    valid = np.ones(len(student))
    claims = make_claims(Table(student, valid), Table(base, valid), gate)
    for claim in (claim for found in claims.values() for claim in found):
        if claim.x.mean() < claim.bound:
            return False
        if (
            gate.certify
            and trace(claim, len(student), gate.certify)(len(student)).first_shown is None
        ):
            return False
    if gate.confidence:
        low = make_interval(student, base, "ratio", gate.confidence).low
        return low is not None and low >= gate.min_ratio
    return True
