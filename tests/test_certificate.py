"""The evidence of several runs taken together: averaged where they share cases, else multiplied."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REQUIREMENTS, Answers, Bench, Run
from tests.depth import count
from tests.report_runs import interrupt
from vllm_eval.compare.betting import Evidence, ratio_claim, trace
from vllm_eval.compare.certificate import Certificate, PastRun, certify
from vllm_eval.compare.verdict import Kind, Rule
from vllm_eval.errors import InputError
from vllm_eval.rescore.certify import certify_runs


def rule(
    e_shown: float,
    e_refuted: float = 1.0,
    *,
    value: float | None = 0.95,
    kind: Kind = "ratio",
    cases: int = 10,
) -> Rule:
    evidence = Evidence(0.0, 0.0, cases, 1.0, 1.0, e_shown, e_refuted, None, None)
    margin = None if value is None else value - 0.9
    holds = margin is not None and margin >= 0
    return Rule(kind, "s", "ratio", value, 0.9, margin, holds, "", evidence=evidence)


def past(name: str, cases: str, *rules: Rule) -> PastRun:
    """A run on the cases of one letter each."""
    return PastRun(name, frozenset(cases), rules)


def together(*runs: PastRun, level: float = 0.95) -> Certificate:
    (found,) = certify({"s": runs}, level)
    return found


def wealth(found: Certificate) -> tuple[float, float]:
    evidence = found.verdict.rules[0].evidence
    assert evidence is not None
    return evidence.e_shown, evidence.e_refuted


def test_e_values_of_cases_that_no_two_runs_share_are_multiplied() -> None:
    found = together(past("a", "abc", rule(4.0, 0.5)), past("b", "de", rule(6.0, 0.25)))
    assert wealth(found) == pytest.approx((24.0, 0.125))
    assert found.sets == (("a",), ("b",))
    assert (found.verdict.word, found.cases) == ("PASS", 5)
    assert found.verdict.p == pytest.approx(1 / 24)


def test_e_values_of_the_same_cases_are_averaged() -> None:
    found = together(past("a", "abc", rule(40.0, 0.5)), past("b", "abc", rule(2.0, 1.5)))
    assert wealth(found) == pytest.approx((21.0, 1.0))
    assert found.sets == (("a", "b"),)
    assert (found.verdict.word, found.cases) == ("PASS", 3)


def test_looking_ten_times_at_the_same_cases_brings_no_more_than_one_look() -> None:
    looks = [past(str(n), "abc", rule(4.0)) for n in range(10)]
    assert wealth(together(*looks))[0] == pytest.approx(4.0)


def test_runs_that_share_a_case_over_a_third_are_averaged_with_it() -> None:
    first, second = past("a", "ab", rule(4.0)), past("b", "cd", rule(8.0))
    bridge, apart = past("c", "bc", rule(3.0)), past("d", "xy", rule(2.0))
    found = together(first, second, bridge, apart)
    assert wealth(found)[0] == pytest.approx((4 + 8 + 3) / 3 * 2)
    assert sorted(map(sorted, found.sets)) == [["a", "b", "c"], ["d"]]


def test_every_rule_must_be_shown_to_pass() -> None:
    rates = [rule(e, kind="valid_rate") for e in (3.0, 5.0)]
    found = together(past("a", "ab", rule(10.0), rates[0]), past("b", "cd", rule(9.0), rates[1]))
    assert [r.state for r in found.verdict.rules] == ["shown", "open"]
    assert found.verdict.word == "UNDECIDED"


def test_one_refuted_rule_is_enough_to_fail() -> None:
    runs = [past(name, name, rule(50.0), rule(0.1, 5.0, kind="valid_rate")) for name in "ab"]
    assert together(*runs).verdict.word == "FAIL"


def test_a_rule_that_is_both_shown_and_refuted_is_refuted() -> None:
    assert together(
        past("a", "a", rule(90.0, 1.0)), past("b", "a", rule(1.0, 90.0))
    ).verdict.word == ("FAIL")


def test_a_ratio_that_does_not_hold_on_average_does_not_pass() -> None:
    """The evidence counts failures as 0 in both arms; the gate's own ratio is a rule beside it."""
    runs = [past(name, name, rule(90.0, value=0.88)) for name in "ab"]
    assert together(*runs).verdict.word == "UNDECIDED"
    one_higher = [runs[0], past("b", "b", rule(90.0, value=0.96))]
    assert together(*one_higher).verdict.word == "PASS"
    few_and_many = [
        past(name, name, rule(90.0, value=value, cases=cases))
        for name, value, cases in (("a", 0.85, 10), ("b", 0.92, 90))
    ]
    assert together(*few_and_many).verdict.word == "PASS"


def test_an_answer_that_is_missing_in_one_run_fails() -> None:
    whole = replace(rule(1.0, kind="answered", value=1.0), threshold=1.0, margin=0.0, evidence=None)
    gap = replace(whole, value=0.9, margin=-0.1, passed=False, reason="1 of 10 have no answer")
    runs = [past("a", "a", rule(90.0), whole), past("b", "b", rule(90.0), gap)]
    assert together(*runs).verdict.word == "FAIL"
    assert together(past("a", "a", rule(90.0), whole)).verdict.word == "PASS"


def test_a_run_that_does_not_know_a_score_says_nothing() -> None:
    unknown = replace(rule(1.0), evidence=None)
    found = together(past("a", "a", unknown), past("b", "b", rule(30.0)))
    assert wealth(found)[0] == pytest.approx(30.0)


def test_beyond_any_doubt_stays_a_number() -> None:
    found = together(*(past(str(n), str(n), rule(math.exp(700), 0.0)) for n in range(9)))
    assert wealth(found) == (math.exp(700), 0.0)
    assert found.verdict.word == "PASS"


def test_several_students_are_corrected() -> None:
    runs = {name: [past("a", "a", rule(25.0))] for name in ("s", "t")}
    assert {one.verdict.word for one in certify(runs, 0.95)} == {"UNDECIDED"}
    assert certify({"s": runs["s"]}, 0.95)[0].verdict.word == "PASS"


def test_a_student_on_the_threshold_is_seldom_certified() -> None:
    """Two looks at one set of cases, and one at another: the level holds for all three together."""
    random, draws, passed = np.random.default_rng(7), count(1_000, deep=5_000), 0
    for _ in range(draws):
        runs = []
        for name, cases, looks in (("a", 40, 2), ("b", 30, 1)):
            ease = random.uniform(0.6, 0.8, cases)  # which both looks have in common
            luck = random.normal(0, 0.08, cases)
            for look in range(looks):
                base = ease + random.normal(0, 0.02, cases)
                student = 0.9 * ease + luck + random.normal(0, 0.02, cases)
                evidence = trace(ratio_claim(student, base, 0.9), cases, 0.95)(cases)
                runs.append(past(f"{name}{look}", name, replace(rule(1.0), evidence=evidence)))
        passed += together(*runs).verdict.word == "PASS"
    assert passed / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def draw(bench: Bench, first: int, last: int) -> None:
    """The data set: cases K`first` to K`last`, whose texts differ."""
    row: dict[str, object] = {"requirements_yaml": REQUIREMENTS}
    rows = [
        row | {"concept_id": f"K{n}", "concept": f"Library {n}"} for n in range(first, last + 1)
    ]
    bench.write(bench.cases, rows)


@pytest.fixture
def run(bench: Bench, answers: Answers) -> Callable[..., Path]:
    """One run more on cases K`first` to K`last`, all answered well; its folder."""
    bench.answers({"text": answers.text()})

    def call(first: int, last: int, *more: str) -> Path:
        before = set(bench.output_dir.glob("*/"))
        draw(bench, first, last)
        bench.run(*more)
        (folder,) = set(bench.output_dir.glob("*/")) - before
        return folder

    return call


def certified(bench: Bench, *folders: Path) -> Run:
    where = ("--output-dir", str(bench.output_dir))
    return bench.call("report", *map(str, folders), *where, "--certify", "0.95")


def certificates(*folders: Path, level: float = 0.95) -> tuple[Certificate, ...]:
    return certify_runs([str(folder) for folder in folders], "results", level)


def test_runs_on_other_cases_certify_together_what_none_does_alone(
    bench: Bench, run: Callable[..., Path]
) -> None:
    folders = [run(first, first + 19) for first in (1, 21, 41)]
    (alone,) = certificates(folders[0])
    assert alone.verdict.word == "UNDECIDED"
    assert f"Left out: {folders[1].name}, {folders[2].name}" in alone.verdict.notes[-1]
    done = certified(bench, *folders)
    assert (done.code, "PASS  pupil at 0.95, over 3 runs and 60 cases" in done.out) == (0, True)
    assert "multiplied, because they share no case: all 3 of these" in done.out
    assert "Left out" not in done.out


def test_runs_on_the_same_cases_do_not(bench: Bench, run: Callable[..., Path]) -> None:
    folders = [run(1, 20) for _ in range(2)]
    done = certified(bench, *folders)
    assert done.code == 4
    assert "UNDECIDED  pupil at 0.95, over 2 runs and 20 cases" in done.out
    names = ", ".join(folder.name for folder in folders)
    assert f"{names}: averaged, because they share cases" in done.out


def test_a_student_that_is_far_worse_fails(
    bench: Bench, answers: Answers, run: Callable[..., Path]
) -> None:
    bench.answers({"text": answers.text()}, {"arm": "pupil", "text": answers.bad()})
    assert [one.verdict.word for one in certificates(run(1, 20), run(21, 40))] == ["FAIL"]


def test_a_run_never_takes_the_history_into_its_verdict(run: Callable[..., Path]) -> None:
    folders = [run(first, first + 21, "--certify", "0.95") for first in (1, 23)]
    words = [json.loads((f / "comparison.json").read_text())["verdicts"] for f in folders]
    assert [verdict["word"] for (verdict,) in words] == ["UNDECIDED"] * 2
    assert [one.verdict.word for one in certificates(*folders)] == ["PASS"]


def test_a_run_given_twice_and_a_copy_of_it_are_one(bench: Bench, run: Callable[..., Path]) -> None:
    folder = run(1, 20)
    copy = shutil.copytree(folder, bench.folder / "copy")
    (found,) = certificates(folder, folder, copy)
    assert (found.sets, found.cases) == (((folder.name,),), 20)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (("--temperature", "0.7"), "temperature was 0.2, is 0.7"),
        (("--min-ratio", "0.8"), "the gates differ: ratio was 0.9, is 0.8"),
        (("--min-student-mean", "0.5"), "the gates differ: student_mean was None, is 0.5"),
    ],
)
def test_runs_that_are_evidence_of_something_else_are_refused(
    run: Callable[..., Path], option: tuple[str, str], why: str
) -> None:
    first, second = run(1, 20), run(21, 40, *option)
    with pytest.raises(InputError, match=why) as refused:
        certificates(first, second)
    assert f"{second}: cannot be taken together with {first} for pupil" in str(refused.value)


def test_another_level_or_seed_is_no_other_evidence(run: Callable[..., Path]) -> None:
    """The bets differ, but what is bet on does not."""
    first, second = run(1, 20), run(21, 40, "--certify", "0.99", "--seed", "7")
    (found,) = certificates(first, second)
    assert found.cases == 40


def test_students_with_other_answers_are_told_apart(
    bench: Bench, answers: Answers, run: Callable[..., Path]
) -> None:
    first = run(1, 20)
    bench.answers({"text": answers.text() + "\n"})
    second = run(21, 40)
    found = certificates(first, second)
    assert [one.verdict.arm for one in found] == [f"pupil of {f.name}" for f in (first, second)]
    assert [one.cases for one in found] == [20, 20]


def test_other_data_sets_are_said(run: Callable[..., Path]) -> None:
    (found,) = certificates(run(1, 20), run(21, 40))
    assert found.verdict.notes[0].startswith("The runs use different data sets.")


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0, math.nan])
def test_a_level_that_is_none_is_refused(run: Callable[..., Path], level: float) -> None:
    with pytest.raises(InputError, match="--certify"):
        certificates(run(1, 2), level=level)


@pytest.mark.parametrize("emptied", ["students", "cases"])
def test_evidence_of_nothing_is_refused(run: Callable[..., Path], emptied: str) -> None:
    folder = run(1, 20)
    found = json.loads((folder / "evidence.json").read_text())
    (folder / "evidence.json").write_text(json.dumps(found | {emptied: []}))
    with pytest.raises(InputError, match=rf"evidence\.json: cannot be used: {emptied}"):
        certificates(folder)


def test_a_run_that_did_not_finish_is_no_evidence(run: Callable[..., Path]) -> None:
    folder = interrupt(run(1, 20), 5)
    with pytest.raises(InputError, match="did not finish"):
        certificates(folder)


def test_a_run_without_evidence_is_refused(run: Callable[..., Path]) -> None:
    folder = run(1, 2)
    path = folder / "evidence.json"
    found: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"cases": 3}))
    with pytest.raises(InputError, match="cases"):
        certificates(folder)
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        certificates(folder)


def test_the_same_texts_under_several_ids_are_one_case(bench: Bench, answers: Answers) -> None:
    bench.dataset(20)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    told = bench.call("report", str(folder), "--certify", "0.95")
    assert "over 1 run and 1 case, p" in told.out
