"""`compare`: two runs of different days, paired by case; what is refused and what is flagged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.tasks import open_task
from vllm_eval.tasks.parse import loader

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run


@pytest.fixture
def first(bench: Bench, answers: Answers) -> Path:
    """Four cases, all valid in both arms."""
    bench.dataset(4)
    bench.answers({"text": answers.text()})
    return bench.run("--tag", "a").folder


def again(bench: Bench, *words: str) -> Path:
    """One more run over the same data set."""
    before = set(bench.output_dir.iterdir())
    bench.run("--tag", "b", *words)
    (folder,) = set(bench.output_dir.iterdir()) - before
    return folder


def worse(bench: Bench, answers: Answers) -> None:
    """The student leaves out a key of each VISION, and breaks the contract on K4."""
    vision = answers.vision()
    del vision["success_metrics"]
    bench.answers(
        {"text": answers.text()},
        {"arm": "pupil", "text": answers.text(vision=vision)},
        {"arm": "pupil", "concept_id": "K4", "text": answers.bad()},
    )


def compare(bench: Bench, a: Path, b: Path) -> Run:
    return bench.call("compare", str(a), str(b))


def found(bench: Bench, a: Path, b: Path) -> dict[str, Any]:
    run = bench.call("compare", str(a), str(b), "--json")
    assert run.code == 0
    loaded: dict[str, Any] = json.loads(run.out)
    return loaded


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    loaded = json.loads(path.read_text("utf-8"))
    loaded["identity"] |= changes
    path.write_text(json.dumps(loaded), "utf-8")


def test_two_like_runs_do_not_differ(first: Path, bench: Bench) -> None:
    result = found(bench, first, again(bench))
    assert result["flags"] == []
    for arm in result["arms"]:
        paired = arm["comparison"]["students"][f"{arm['b']} (B)"]
        assert (paired["difference"]["value"], paired["ties"]) == (0, 4)


def test_each_arm_is_paired_with_its_namesake(first: Path, bench: Bench) -> None:
    arms = found(bench, first, again(bench))["arms"]
    assert [(arm["a"], arm["b"]) for arm in arms] == [("baseline", "baseline"), ("pupil", "pupil")]


def test_the_difference_is_taken_over_the_pairs(
    first: Path, bench: Bench, answers: Answers
) -> None:
    worse(bench, answers)
    student = found(bench, first, again(bench))["arms"][1]["comparison"]["students"]["pupil (B)"]
    assert (student["cases"], student["pairs"], student["losses"]) == (4, 3, 3)
    # 6 of 30 completeness points and one of 16 schema checks.
    assert student["difference"]["value"] == pytest.approx(-(6 + 30 / 16) / 120)
    assert (student["gained"], student["lost"]) == (0, 1)


def test_the_tables_name_both_sides(first: Path, bench: Bench, answers: Answers) -> None:
    worse(bench, answers)
    second = again(bench)
    run = compare(bench, first, second)
    assert run.code == 0
    for words in (str(first), str(second), "pupil (A)", "pupil (B)", "lower in 3", "1 lost"):
        assert words in run.out


def test_result_files_are_compared_whatever_their_arms(first: Path, bench: Bench) -> None:
    (student,) = first.glob("student*")
    (baseline,) = first.glob("baseline*")
    result = found(bench, baseline, student)
    assert [(arm["a"], arm["b"]) for arm in result["arms"]] == [("baseline", "pupil")]
    assert "baseline of A is compared with pupil of B" in result["flags"]


def test_the_only_other_students_are_paired(first: Path, bench: Bench) -> None:
    again(bench)
    bench.call(*[word.replace("pupil", "heir") for word in bench.arguments("--tag", "c")])
    (heir,) = (path for path in bench.output_dir.iterdir() if path.name.startswith("c_"))
    result = found(bench, first, heir)
    assert [(arm["a"], arm["b"]) for arm in result["arms"]] == [
        ("baseline", "baseline"),
        ("pupil", "heir"),
    ]
    assert "pupil of A is compared with heir of B" in result["flags"]


def test_a_journal_is_compared_like_its_result_files(first: Path, bench: Bench) -> None:
    second = again(bench)
    from_files = found(bench, first, second)["arms"]
    assert found(bench, first, second / "attempts.jsonl")["arms"] == from_files


def test_another_data_set_is_refused(first: Path, bench: Bench) -> None:
    bench.dataset(5)
    run = compare(bench, first, again(bench))
    assert run.code == 2
    assert "the data sets differ" in run.err


def test_another_task_version_is_refused(
    first: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = again(bench)
    edit_manifest(second, task=f"product_owner {open_task('product_owner').version}.next")
    run = compare(bench, first, second)
    assert run.code == 2
    assert "grade both again with `score`" in run.err


@pytest.mark.parametrize(
    ("flag", "value", "key"),
    [
        ("--temperature", "0.7", "temperature"),
        ("--top-p", "0.5", "top_p"),
        ("--seed", "7", "seed"),
        ("--max-new-tokens", "99", "max_new_tokens"),
        ("--retries", "0", "retries"),
        ("--quantization", "fp8", "engine_args"),
        ("--samples-per-case", "2", "samples_per_case"),
    ],
)
def test_another_setting_is_flagged(
    first: Path, bench: Bench, flag: str, value: str, key: str
) -> None:
    flags = found(bench, first, again(bench, flag, value))["flags"]
    assert [line.split()[0] for line in flags] == [key]


@pytest.mark.parametrize("key", ["prompt", "base_model", "yaml"])
def test_another_prompt_base_or_loader_is_flagged(first: Path, bench: Bench, key: str) -> None:
    second = again(bench)
    edit_manifest(second, **{key: "other"})
    assert [line.split()[0] for line in found(bench, first, second)["flags"]] == [key]


def test_a_run_from_before_loaders_were_recorded_is_not_flagged(first: Path, bench: Bench) -> None:
    second = again(bench)
    path = first / "manifest.json"
    loaded = json.loads(path.read_text("utf-8"))
    assert loaded["identity"].pop("yaml") == loader()
    path.write_text(json.dumps(loaded), "utf-8")
    assert found(bench, first, second)["flags"] == []


def test_another_adapter_of_the_same_name_is_flagged(first: Path, bench: Bench) -> None:
    second = again(bench)
    edit_manifest(second, adapters={"pupil": "other"})
    assert found(bench, first, second)["flags"] == ["pupil is a different adapter in A and in B"]


def test_cases_in_only_one_run_are_flagged(first: Path, bench: Bench) -> None:
    flags = found(bench, first, again(bench, "--max-samples", "3"))["flags"]
    assert "3 cases are in both, 1 only in A, 0 only in B; only pairs are tested" in flags


def test_a_run_that_did_not_end_is_flagged(first: Path, bench: Bench) -> None:
    second = again(bench)
    (second / "comparison.json").unlink()
    assert found(bench, first, second)["flags"] == [f"{second} holds a run that did not finish"]


def test_files_away_from_their_manifest_are_compared_by_their_configuration(
    first: Path, bench: Bench
) -> None:
    second = again(bench, "--seed", "7")
    for folder in (first, second):
        (folder / "manifest.json").unlink()
    flags = found(bench, first, second)["flags"]
    assert "do not both record" in flags[0]
    assert flags[1].startswith("seed differs: 42 in A, 7 in B")


def old_file(bench: Bench, name: str, rows: list[dict[str, Any]]) -> Path:
    path = bench.folder / name
    path.write_text(json.dumps({"results": rows}), "utf-8")
    return path


def test_files_of_the_predecessor_are_compared(bench: Bench) -> None:
    rows = [{"concept_id": f"K{n}", "status": "success", "score": n / 10} for n in (1, 2, 3)]
    lower = [row | {"score": 0.05} for row in rows]
    files = [old_file(bench, "a.json", rows), old_file(bench, "b.json", lower)]
    (arm,) = found(bench, *files)["arms"]
    assert arm["comparison"]["students"]["b (B)"]["losses"] == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"concept_id": "Z", "status": "success", "score": 1}], "no case of a is in both"),
        ([{"concept_id": "K1"}], "results[0]: lacks `status`"),
    ],
)
def test_what_cannot_be_paired_is_refused(
    bench: Bench, rows: list[dict[str, Any]], words: str
) -> None:
    good = old_file(bench, "a.json", [{"concept_id": "K1", "status": "success", "score": 1}])
    run = compare(bench, good, old_file(bench, "b.json", rows))
    assert run.code == 2
    assert words in run.err


def test_runs_without_a_common_arm_are_refused(first: Path, bench: Bench) -> None:
    for path in first.glob("baseline*"):
        path.unlink()
    row = {"concept_id": "K1", "status": "success", "score": 1}
    other = old_file(bench, "student_x.json", [row | {"arm": "x"}, row | {"arm": "y"}])
    run = compare(bench, first, other)
    assert run.code == 2
    assert "have no arm in common" in run.err
