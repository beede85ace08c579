"""A base that lacks what the student learned: why it cannot be compared with, and what to do.

The rules themselves are in `test_gate.py` and `test_certify.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import vllm_eval
from vllm_eval.errors import InputError

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run

ALONE = ("--against", "absolute", "--min-student-mean", "0.75")
WEAK = ("--min-baseline-valid-rate", "0.4", "--min-baseline-mean", "0.3")


@pytest.fixture
def learned(bench: Bench, answers: Answers) -> Bench:
    """Twelve cases; the base never keeps the contract, and the student always does."""
    bench.dataset(12)
    bench.answers(
        {"arm": "baseline", "text": "A tool library, how nice."},
        {"arm": "pupil", "text": answers.text()},
    )
    return bench


@pytest.fixture
def half(bench: Bench, answers: Answers) -> Bench:
    """The base keeps the contract in six of the twelve cases."""
    bench.dataset(12)
    lost = ({"arm": "baseline", "concept_id": f"K{n}", "text": "none"} for n in range(1, 7))
    bench.answers({"text": answers.text()}, *lost)
    return bench


def verdict(run: Run) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = json.loads((run.folder / "comparison.json").read_text("utf-8"))["verdicts"]
    return found


def test_a_base_without_a_valid_answer_fails_every_student_and_says_why(learned: Bench) -> None:
    run = learned.run()
    (note,) = verdict(run)["notes"]
    assert (run.code, verdict(run)["verdict"]) == (1, "FAIL")
    assert "No student can pass against this baseline" in note
    assert "valid rate of baseline: 0 is below 0.9" in note
    assert "mean of pupil / mean of baseline: the baseline has no mean to compare with" in note


@pytest.mark.parametrize("certify", [(), ("--certify", "0.95")])
def test_lower_bounds_are_not_advised_where_there_is_nothing_to_compare_with(
    learned: Bench, certify: tuple[str, ...]
) -> None:
    run = learned.run("--min-baseline-valid-rate", "0", "--min-baseline-mean", "0", *certify)
    (note,) = verdict(run)["notes"]
    assert run.code == 1
    assert "the baseline has no mean to compare with" in note
    assert "grade the student alone" in note
    assert "lower" not in note


def test_lower_bounds_are_advised_for_a_base_that_is_only_weak(half: Bench) -> None:
    run = half.run()
    (note,) = verdict(run)["notes"]
    assert run.code == 1
    assert "valid rate of baseline: 0.5 is below 0.9" in note
    assert "lower `gate.min_baseline_valid_rate` and `gate.min_baseline_mean`" in note


def test_with_lower_bounds_a_weak_base_is_compared_with(half: Bench) -> None:
    run = half.run(*WEAK)
    assert (run.code, verdict(run)["notes"]) == (0, [])


def test_the_students_valid_rate_is_not_lowered_with_the_bases(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(12)
    lost = ({"concept_id": f"K{n}", "text": "none"} for n in range(1, 7))
    bench.answers({"text": answers.text()}, *lost)
    run = bench.run(*WEAK)
    failed = [rule["name"] for rule in verdict(run)["rules"] if not rule["passed"]]
    assert (run.code, failed) == (1, ["valid rate of pupil"])


def test_a_student_that_learned_the_format_passes_by_itself(learned: Bench) -> None:
    run = learned.run(*ALONE)
    assert (run.code, verdict(run)["notes"]) == (0, [])
    assert {rule["arm"] for rule in verdict(run)["rules"]} == {"pupil"}


def test_a_student_below_its_own_bound_fails_by_itself(learned: Bench, answers: Answers) -> None:
    poor = answers.review(narrative="short", summary=["x"], recommended_actions=["a", "b"])
    learned.answers({"arm": "pupil", "text": answers.text(review=poor)}, {"text": "none"})
    run = learned.run("--against", "absolute", "--min-student-mean", "0.99")
    failed = [rule["name"] for rule in verdict(run)["rules"] if not rule["passed"]]
    assert (run.code, failed) == (1, ["mean of pupil"])


def test_keys_that_belong_together_may_come_one_by_one(learned: Bench) -> None:
    file = learned.folder / "alone.yaml"
    file.write_text("gate: {against: absolute}\n")
    keys = ("-c", "gate.against=absolute", "-c", "gate.min_student_mean=0.75")
    assert learned.call("check", *learned.arguments(*keys)).code == 0
    bound = ("--config", str(file), "--min-student-mean", "0.75")
    assert learned.call("check", *learned.arguments(*bound)).code == 0


def test_absolute_without_a_bound_is_refused_in_plain_words(learned: Bench) -> None:
    run = learned.run("--against", "absolute")
    assert run.code == 2
    assert run.err == (
        "error: configuration: gate: against: absolute needs min_student_mean: there is no other "
        "rule on scores\n"
    )


def test_stored_answers_are_graded_alone_too(learned: Bench) -> None:
    folder = str(learned.run().folder)
    assert learned.call("score", folder).code == 1
    assert learned.call("score", folder, *ALONE).code == 0
    found = vllm_eval.score(folder, gate={"against": "absolute", "min_student_mean": 0.75})
    assert found.passed


def test_a_run_of_its_own_bound_is_scored_by_it(learned: Bench) -> None:
    folder = str(learned.run(*ALONE).folder)
    assert learned.call("score", folder).code == 0
    assert learned.call("score", folder, "--min-student-mean", "1").code == 0


def test_stored_and_given_rules_that_do_not_fit_are_an_input_error(learned: Bench) -> None:
    folder = str(learned.run("--confidence", "0.9").folder)
    run = learned.call("score", folder, *ALONE)
    assert run.code == 2
    assert "confidence compares with the baseline" in run.err
    with pytest.raises(InputError, match="certify tests the ratio already"):
        vllm_eval.score(folder, gate={"certify": 0.95})


def test_a_run_stored_before_these_keys_existed_still_loads(half: Bench) -> None:
    folder = half.run().folder
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text("utf-8"))
    for key in ("min_baseline_valid_rate", "against", "min_ratio_all", "certify"):
        del config["gate"][key]
    file.write_text(yaml.safe_dump(config), "utf-8")
    (folder / "comparison.json").unlink()
    assert half.call("diagnose", str(folder)).code == 0
    assert half.call("score", str(folder)).code == 1
    assert half.call("check", "--config", str(file)).code == 0


def test_a_base_that_never_answered_does_not_matter_to_a_student_graded_alone(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(12)
    bench.answers({"text": answers.text()}, {"arm": "baseline", "error": "out of memory"})
    run = bench.run(*ALONE)
    assert (run.code, run.result("comparison")["word"]) == (0, "PASS")
    assert (run.folder / "evidence.json").is_file()
    assert bench.call("score", str(run.folder)).code == 0
