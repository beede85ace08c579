"""What was recorded and is strange: it is said, never passed over, and no defect of ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import PRODUCT_OWNER
from vllm_eval.tasks.check import compile_contract

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run


@pytest.fixture(autouse=True)
def data(bench: Bench) -> Path:
    return bench.dataset(3)


def row(answers: Answers, name: str = "K1", **changes: object) -> dict[str, Any]:
    good = {"concept_id": name, "status": "success", "score": 1.0, "raw_response": answers.text()}
    return good | changes


def write(bench: Bench, *rows: dict[str, Any] | str, name: str = "student.jsonl") -> Path:
    return bench.write(bench.folder / name, rows)


def score(bench: Bench, *words: object) -> Run:
    return bench.call("score", *map(str, words), "--dataset-path", str(bench.cases))


UNUSABLE: list[object] = ["high", True, -0.1, 1.5, 10**400, 1e308, float("nan"), [1]]


@pytest.mark.parametrize("value", UNUSABLE, ids=lambda value: repr(value)[:10])
def test_a_recorded_score_that_is_no_number_from_0_to_1_is_not_reproduced(
    bench: Bench, answers: Answers, value: object
) -> None:
    rows = [row(answers, f"K{n}", score=value) for n in (1, 2, 3)]
    scored = score(bench, write(bench, *rows))
    assert scored.code == 1
    assert "3 recorded scores are not numbers from 0 to 1, so not reproduced" in scored.out
    assert f"K1: score {repr(value)[:20]}" in scored.out


def test_a_score_of_null_was_not_recorded(bench: Bench, answers: Answers) -> None:
    scored = score(bench, write(bench, row(answers, score=None)))
    assert (scored.code, "no score was recorded" in scored.out) == (0, True)


def test_a_number_of_too_many_digits_is_an_input_error(bench: Bench, answers: Answers) -> None:
    bad = json.dumps(row(answers, "K2")).replace("1.0", "1" + "0" * 5000)
    scored = score(bench, write(bench, row(answers), bad))
    assert scored.code == 2
    assert "student.jsonl, line 2: has a number with too many digits" in scored.err


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_sample_that_is_there_twice_is_refused_before_anything_is_graded(
    bench: Bench, answers: Answers, json_flag: list[str]
) -> None:
    rows = [row(answers, name, sample=0) for name in ("K1", "K2", "K1")]
    scored = score(bench, write(bench, *rows), *json_flag)
    assert (scored.code, scored.out) == (2, "")
    assert "line 3: a case and sample of student is there twice" in scored.err
    assert "first at line 1" in " ".join(scored.err.split())


@pytest.mark.parametrize("twice", ["baseline", "student"])
def test_a_repeated_case_without_a_sample_is_noted_and_blamed_on_its_own_arm(
    bench: Bench, answers: Answers, twice: str
) -> None:
    """The other arm lacks no answer."""
    other = ({"baseline", "student"} - {twice}).pop()
    rows = [row(answers, name) for name in ("K1", "K2", "K3")]
    repeated = write(bench, *rows, row(answers, "K2"), name=f"{twice}.jsonl")
    scored = score(bench, write(bench, *rows, name=f"{other}.jsonl"), repeated)
    assert (scored.code, "\nFAIL  student\n" in scored.out) == (1, True)
    assert "1 answers repeat a concept_id without a `sample`" in scored.out
    gap = f"{twice}.jsonl: 1 answer repeats a case of {twice} without a `sample`, and another arm"
    assert f"{gap} has fewer (first line 4, concept_id 'K2')" in scored.out
    assert "no answer to grade" not in scored.out
    assert f"a case of {other}" not in scored.out


def test_a_repeated_case_is_a_further_sample_where_any_arm_says_so(
    bench: Bench, answers: Answers
) -> None:
    """The third arm lacks it, and is the one that is blamed."""
    said = write(bench, *(row(answers, sample=n) for n in (0, 1)), name="baseline.jsonl")
    files = [write(bench, row(answers), row(answers), name="one.jsonl")]
    files.append(write(bench, row(answers), name="two.jsonl"))
    scored = score(bench, said, *files)
    assert "another arm has fewer" not in scored.out
    assert scored.out.count("1 of 2 have no answer to grade") == 1
    assert "PASS  one" in scored.out
    assert "FAIL  two" in scored.out


@pytest.mark.parametrize("word", ["ok", "passed", 1])
def test_an_unknown_status_is_named_and_not_compared(
    bench: Bench, answers: Answers, word: object
) -> None:
    scored = score(bench, write(bench, row(answers, status=word), row(answers, "K2")))
    assert scored.code == 0
    assert f"unknown status {word!r} (1), not compared" in scored.out


def test_a_score_beside_an_unknown_status_is_compared(bench: Bench, answers: Answers) -> None:
    scored = score(bench, write(bench, row(answers, status="ok", score=0.5)))
    assert scored.code == 1
    assert "1 of 1 recorded scores differ" in scored.out


def test_an_error_that_is_a_word_of_the_contract_is_the_recorded_reason(
    bench: Bench, answers: Answers
) -> None:
    bad: dict[str, Any] = {"status": "format_error", "score": 0, "raw_response": answers.bad()}
    rows = [row(answers, **bad, error="missing_yaml_blocks"), row(answers, "K2", **bad, error="x")]
    scored = score(bench, write(bench, *rows))
    assert "1 missing_yaml_blocks -> review_missing_narrative" in scored.out
    assert scored.out.count("-> review_missing_narrative") == 2  # as a count, and as a change


def test_every_reason_of_the_known_answers_is_a_word_of_the_contract(shared_data: Path) -> None:
    known = compile_contract(PRODUCT_OWNER).reasons

    lines = (shared_data / "po_known_answers.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["reason"] for line in lines} - {None} <= known.keys()


def test_attempts_given_as_a_list_count_by_its_length(bench: Bench, answers: Answers) -> None:
    rows = [row(answers, attempts=[{}, {}]), row(answers, "K2", attempts=[{}])]
    files = [write(bench, *rows, name=name) for name in ("a.jsonl", "b.jsonl")]
    run = bench.call("compare", *map(str, files), "--json")
    arm = json.loads(run.out)["arms"][0]["comparison"]["arms"]["a (A)"]
    assert (arm["attempts"], arm["first_valid"]) == (3, 1)


def test_an_incomplete_last_line_is_noted(bench: Bench, answers: Answers) -> None:
    path = write(bench, row(answers))
    path.write_text(path.read_text("utf-8") + '{"concept_id": "K2", "ra', "utf-8")
    scored = score(bench, path)
    assert (scored.code, "line 2: is truncated and was skipped" in scored.out) == (0, True)


def test_json_says_notes_and_progress_on_standard_error(bench: Bench, answers: Answers) -> None:
    scored = score(bench, write(bench, row(answers, status="ok")), "--json")
    assert [json.loads(line)["recorded_status"] for line in scored.out.splitlines()] == ["ok"]
    assert "note: " in scored.err
    assert "unknown status 'ok'" in scored.err
    assert scored.err.endswith("  1/1 answers graded\n")


def test_a_data_set_may_begin_with_a_byte_order_mark(bench: Bench, answers: Answers) -> None:
    bench.cases.write_bytes(b"\xef\xbb\xbf" + bench.cases.read_bytes())
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert run.code == 0
    scored = bench.call("score", str(run.folder))
    assert scored.code == 0
    assert "other content" not in scored.out


# The same records, held against each other as they are.


def compared(bench: Bench, one: Path, two: Path) -> dict[str, Any]:
    run = bench.call("compare", str(one), str(two), "--json")
    assert run.code == 0
    loaded: dict[str, Any] = json.loads(run.out)
    return loaded


def test_a_success_without_a_score_is_valid_and_in_no_pair_of_scores(
    bench: Bench, answers: Answers
) -> None:
    rows = [row(answers), row(answers, "K2")]
    one = write(bench, *rows, name="a.jsonl")
    two = write(bench, rows[0], row(answers, "K2", score=None), name="b.jsonl")
    found = compared(bench, one, two)
    comparison = found["arms"][0]["comparison"]
    assert comparison["arms"]["b (B)"]["valid_rate"] == 1
    assert comparison["arms"]["b (B)"]["mean_all"] == 1
    student = comparison["students"]["b (B)"]
    assert (student["pairs"], student["lost"], student["ratio_all"]["value"]) == (1, 0, 1)
    assert any("1 valid answers have no usable score" in f for f in found["flags"])


def test_a_format_error_without_its_text_stays_one(bench: Bench) -> None:
    good = {"concept_id": "K1", "status": "success", "score": 1}
    one = write(bench, good, name="a.jsonl")
    two = write(bench, {"concept_id": "K1", "status": "format_error"}, name="b.jsonl")
    comparison = compared(bench, one, two)["arms"][0]["comparison"]
    assert comparison["arms"]["b (B)"]["errors"] == 0
    assert comparison["students"]["b (B)"]["lost"] == 1


@pytest.mark.parametrize("value", UNUSABLE, ids=lambda value: repr(value)[:10])
def test_an_unusable_score_is_flagged(bench: Bench, answers: Answers, value: object) -> None:
    one = write(bench, row(answers), name="a.jsonl")
    two = write(bench, row(answers, score=value), name="b.jsonl")
    flags = compared(bench, one, two)["flags"]
    assert any("is not a number from 0 to 1, so it is not compared" in flag for flag in flags)


def test_an_unknown_status_cannot_be_compared_as_recorded(bench: Bench, answers: Answers) -> None:
    one = write(bench, row(answers), name="a.jsonl")
    two = write(bench, row(answers, status="ok"), name="b.jsonl")
    run = bench.call("compare", str(one), str(two))
    assert run.code == 2
    assert "line 1: has the unknown status 'ok'; grade it with `score`" in run.err
