"""Error rates and power of the gate on students whose true ratio is known.

Short runs of `scripts/simulate_gate`, whose figures stand in docs/statistics.md. How the order in
which answers finish cannot bias a run until settled is shown on the real loop elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from scripts.outcome_models import MODELS, Model, Scores, arms_of, deal, true_mean
from scripts.simulate_gate import (
    CAP,
    CERTIFY,
    CONFIDENT,
    COUNTS,
    LEVEL,
    NAMED,
    PLAIN,
    SETUPS,
    STUDENT,
    Setting,
    certify,
    keeps_rules,
    simulate,
    together,
)
from scripts.simulate_selection import choose, look, passing
from scripts.simulate_selection import together as several
from tests.depth import count
from vllm_eval.compare import gate
from vllm_eval.compare.intervals import make_interval
from vllm_eval.compare.summary import compare_arms
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE, Outcome

ERROR = 1 - LEVEL


def at_most(share: float, runs: int) -> float:
    """The highest share that chance plausibly makes of a true one."""
    return share + 3 * math.sqrt(share * (1 - share) / runs)


def outcomes(arm: str, scores: Scores, run: int, cases: int) -> list[Outcome]:
    valid = scores.share[run] == 1
    return [
        Outcome(
            arm=arm,
            concept_id=f"C{case}",
            tier=None,
            sample=0,
            status="success" if valid[case] else "format_error",
            reason=None if valid[case] else "missing_yaml_blocks",
            score=float(scores.score[run, case]) if valid[case] else None,
            attempts=1,
            first_valid=bool(valid[case]),
        )
        for case in range(cases)
    ]


def word(base: Scores, student: Scores, run: int, cases: int, config: GateConfig = CERTIFY) -> str:
    """The gate's own word on the first cases of one run."""
    rows = [
        *outcomes(BASELINE, base, run, cases),
        *outcomes(STUDENT, student, run, cases),
    ]
    drawn = [f"C{case}" for case in range(cases)]
    comparison = compare_arms(rows, (BASELINE, STUDENT), confidence=LEVEL, drawn=drawn)
    planned = base.share.shape[1]
    (verdict,) = gate.decide(comparison, [STUDENT], cases, config, planned=planned)
    return verdict.word


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("ratio", [0.8, 0.9, 0.95, 1.05])
def test_the_true_ratio_of_a_model_is_the_one_asked_for(model: Model, ratio: float) -> None:
    base, student = arms_of(model, ratio)
    assert true_mean(base) == pytest.approx(model.base_mean, abs=1e-4)
    assert true_mean(student) / true_mean(base) == pytest.approx(ratio, abs=1e-4)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize(("samples", "retries"), SETUPS)
def test_a_big_sample_has_the_true_ratio(model: Model, samples: int, retries: int | None) -> None:
    random, cases = np.random.default_rng(0), count(200_000, deep=4_000_000)
    base, student = deal(arms_of(model, 0.9, retries), 1, cases, samples, random)
    assert student.score_all.mean() / base.score_all.mean() == pytest.approx(
        0.9, abs=1.5 / cases**0.5
    )


def test_noise_is_as_large_as_stated() -> None:
    base, student = next(simulate(Setting(NAMED["noise"], 1.0, 1000), 500))
    assert (student.score - base.score).std() == pytest.approx(0.145, abs=2e-3)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize(("samples", "retries"), SETUPS)
@pytest.mark.parametrize("cases", COUNTS)
def test_a_student_at_the_bound_is_certified_no_more_often_than_stated(
    model: Model, samples: int, retries: int | None, cases: int
) -> None:
    runs = count(200, deep=5000)
    found = together(Setting(model, 0.9, cases, samples, retries), runs)
    assert found.ratio_shown.mean() <= at_most(ERROR, runs)
    assert found.passed.mean() <= at_most(ERROR, runs)


@pytest.mark.parametrize(
    ("name", "ratio", "cases", "least"),
    [
        ("noise", 1.0, 34, 0.30),
        ("noise", 1.0, 50, 0.70),
        ("noise", 1.0, 100, 0.95),
        ("rare zeros", 0.95, 200, 0.60),
    ],
)
def test_a_good_student_is_certified_as_often_as_promised(
    name: str, ratio: float, cases: int, least: float
) -> None:
    runs = count(1000, deep=5000)
    found = together(Setting(NAMED[name], ratio, cases), runs)
    assert found.passed.mean() > 2 * least - at_most(least, runs)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("retries", [None, 2])
def test_stopping_as_soon_as_settled_certifies_no_bad_student_more_often(
    model: Model, retries: int | None
) -> None:
    runs = count(200, deep=5000)
    found = together(Setting(model, 0.9, CAP, 1, retries), runs, settle=True)
    assert found.passed.mean() <= at_most(ERROR, runs)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_student_as_good_as_its_base_is_settled_within_80_cases_on_average(model: Model) -> None:
    found = together(Setting(model, 1.0, CAP), count(200, deep=5000), settle=True)
    assert found.cases.mean() < 80
    assert found.passed.mean() > 0.95


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("cases", COUNTS)
def test_the_lower_end_of_an_interval_covers_as_often_as_stated(model: Model, cases: int) -> None:
    """The side that passes: below the true ratio at least 97.5 % of the time at 0.95."""
    runs, missed = count(200, deep=5000), 0
    for base, student in simulate(Setting(model, 0.9, cases), runs):
        for one, other in zip(student.score_all, base.score_all, strict=True):
            low = make_interval(one, other, "ratio", LEVEL).low
            missed += low is not None and low > 0.9
    assert missed / runs <= at_most(ERROR / 2, runs)


@pytest.mark.parametrize(
    ("name", "ratio", "cases"),
    [("noise", 0.8, 60), ("noise", 1.0, 45), ("rare failures", 0.95, 60)],
)
def test_many_runs_at_a_time_are_decided_as_the_gate_decides_each(
    name: str, ratio: float, cases: int
) -> None:
    runs = count(2, deep=60)
    for base, student in simulate(Setting(NAMED[name], ratio, cases, retries=1), runs):
        found = certify(base, student)
        for run in range(runs):
            passed, failed = found.passed[run], found.failed[run]
            expected = "PASS" if passed else "FAIL" if failed else "UNDECIDED"
            assert word(base, student, run, cases) == expected
            for config in (PLAIN, CONFIDENT):
                expected = "PASS" if keeps_rules(base, student, run, cases, config) else "FAIL"
                assert word(base, student, run, cases, config) == expected


def test_a_run_is_settled_at_the_first_case_that_decides() -> None:
    base, student = next(simulate(Setting(NAMED["noise"], 1.0, 120), 3))
    found = certify(base, student, settle=True)
    for run, cases in enumerate(found.cases):
        assert 30 < cases < 120
        assert word(base, student, run, cases) == "PASS"
        assert word(base, student, run, cases - 1) == "UNDECIDED"


@pytest.mark.parametrize("students", [2, 8])
def test_no_more_often_than_stated_is_any_of_several_students_at_the_bound_certified(
    students: int,
) -> None:
    runs = count(200, deep=5000)
    dealt = several(NAMED["ceiling"], (0.9,) * students, 200, runs)
    passed = [passing(arms, look(arms), CERTIFY, students).any(axis=1) for arms in dealt]
    assert np.concatenate(passed).mean() <= at_most(ERROR, runs)


@pytest.mark.parametrize("config", [PLAIN, CONFIDENT, CERTIFY], ids=["plain", "conf", "cert"])
def test_several_students_are_decided_as_the_gate_decides_them(config: GateConfig) -> None:
    runs, cases, names = count(2, deep=30), 60, ["s0", "s1", "s2"]
    for base, *others in several(NAMED["noise"], (0.95, 1.0, 1.1), cases, runs):
        arms = [base, *others]
        found = passing(arms, look(arms), config, 3)
        for run in range(runs):
            rows = outcomes(BASELINE, base, run, cases)
            for name, scores in zip(names, others, strict=True):
                rows += outcomes(name, scores, run, cases)
            drawn = [f"C{case}" for case in range(cases)]
            comparison = compare_arms(rows, (BASELINE, *names), confidence=LEVEL, drawn=drawn)
            verdicts = gate.decide(comparison, names, cases, config, planned=cases)
            assert [verdict.passed for verdict in verdicts] == found[run].tolist()


def test_of_equal_checkpoints_the_earliest_is_selected_in_nearly_all_runs() -> None:
    runs, first = count(20, deep=400), 0
    for arms in several(NAMED["noise"], (1.0,) * 4, 50, runs):
        first += sum(choose(arms, run)[1] == 0 for run in range(len(arms[0].share)))
    assert first / runs >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / runs)
