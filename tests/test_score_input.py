"""What `score` takes as stored answers, and how it refuses what it cannot use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vllm_eval.errors import InputError
from vllm_eval.rescore.stored import MAX_BYTES, arm_of, open_file, read_answers

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run


def write(tmp_path: Path, text: str, name: str = "student.json") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def ids(path: Path) -> list[str]:
    return [answer.concept_id for answer in read_answers(open_file(path))]


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        open_file(path)
    return str(error.value)


def score(bench: Bench, *words: object) -> Run:
    return bench.call("score", *map(str, words), "--dataset-path", str(bench.cases))


ROWS: list[dict[str, Any]] = [
    {"concept_id": "K1", "raw_response": "x"},
    {"concept_id": 2, "raw_response": "y"},
]
SHAPES = {
    "one line": json.dumps({"results": ROWS}),
    "indented": json.dumps({"config": {"a": [1, {}]}, "results": ROWS, "metrics": {}}, indent=4),
    "tabs and CRLF": json.dumps({"results": ROWS}, indent="\t").replace("\n", "\r\n"),
    "config last": json.dumps({"results": ROWS, "config": {"dataset_path": "x"}}),
    "bare list": json.dumps(ROWS),
    "JSON lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "torn last line": "".join(json.dumps(row) + "\n" for row in ROWS) + '{"concept_id": "K3", "ra',
    "no last line end": "\n".join(json.dumps(row) for row in ROWS),
    "byte order mark": "\ufeff" + json.dumps({"results": ROWS}),
    "NaN": json.dumps({"metrics": {"mean": float("nan")}, "results": ROWS}),
    "control characters": json.dumps({"results": ROWS}).replace('"x"', '"x\ty\x01"'),
    "lone surrogate": json.dumps({"results": ROWS}).replace('"x"', '"\\ud83d"'),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_of_this_shape_is_read(tmp_path: Path, shape: str) -> None:
    assert ids(write(tmp_path, SHAPES[shape])) == ["K1", "2"]


BROKEN = {
    "": "line 1: is neither",
    "hello": "line 1: is neither",
    '{"a": 1}': "has neither a list `results` nor",
    '{"results": {}}': "has neither a list `results` nor",
    '{"results": []}': "has no answers",
    "[]": "has no answers",
    '{"results": [7]}': "results[0]: must be a JSON object",
    '{"results":\n[{"concept_id": "a"},\n{"tier": 1}]}': "results[1]: lacks `concept_id`",
    '{"results":\n[{"concept_id": "a"},\n{"concept_id": }]}': "line 3: not valid JSON",
    '{"results":\n[{"concept_id": "a"}': "line 2: not valid JSON: Expecting ',' delimiter",
    '{"results": [{"concept_id": "a"}]} more': "line 1: not valid JSON: Extra data",
    '{"results" [1]}': "line 1: not valid JSON: Expecting ':' delimiter",
    "{1: 2}": "line 1: not valid JSON: Expecting property name",
    '{"concept_id": "a"}\n{"concept_id": }\n': "line 2: not valid JSON",
    '{"concept_id": "a"}\n[1]\n': "line 2: must be a JSON object",
    '{"results": [{"concept_id": ["a"]}]}': "lacks `concept_id`",
    '{"results": [{"concept_id": "a", "x": ' + "[" * 100_000: "nested too deep",
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:40])
def test_a_broken_file_is_refused_at_its_place(tmp_path: Path, text: str) -> None:
    message = refused(write(tmp_path, text))
    assert message.startswith(str(tmp_path / "student.json"))
    assert BROKEN[text] in message


def test_a_result_file_without_its_end_is_refused(bench: Bench) -> None:
    bench.dataset(1)
    scored = score(bench, write(bench.folder, SHAPES["indented"][:-30]))
    assert scored.code == 2
    assert "student.json, line 16: not valid JSON: Expecting" in scored.err


def test_a_file_too_large_to_be_read_whole_is_refused_before_it_is_read(bench: Bench) -> None:
    bench.dataset(1)
    path = write(bench.folder, '{"results": [\n')
    os.truncate(path, MAX_BYTES + 1)  # a hole: no disk is taken
    scored = score(bench, path)
    assert scored.code == 2
    assert "is larger than 1 GiB, and must be read whole into memory" in scored.err
    assert "attempts.jsonl" in scored.err


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"results": ["\xff"]}')
    assert "is not UTF-8" in refused(path)


def test_a_file_that_is_not_there_is_an_input_error(bench: Bench) -> None:
    bench.dataset(1)
    scored = score(bench, bench.folder / "none.json")
    assert scored.code == 2
    assert "none.json: cannot read the answers" in scored.err


def test_a_folder_without_answers_is_an_input_error(bench: Bench) -> None:
    bench.dataset(1)
    scored = score(bench, bench.folder)
    assert scored.code == 2
    assert "has no baseline_*.json" in scored.err


def test_an_id_that_the_data_set_lacks_is_an_input_error(bench: Bench) -> None:
    bench.dataset(1)
    path = write(bench.folder, json.dumps({"results": ROWS}))
    scored = score(bench, path, "--json")
    assert (scored.code, scored.out) == (2, "")
    assert f"{path}, results[1]: concept_id '2' is not in {bench.cases}" in scored.err


def test_a_data_set_that_is_not_there_is_an_input_error(bench: Bench) -> None:
    path = write(bench.folder, json.dumps({"results": ROWS}))
    scored = score(bench, path)
    assert scored.code == 2
    assert "cases.jsonl: cannot read the data set" in scored.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: not valid JSON"),
        ("[1]", "line 1: must be a JSON object"),
        ('{"concept_id": "a"}\n{"concept_id": "a"}', "line 2: id 'a' is taken by line 1"),
        ('{"concept_id": "a", "concept": "x"}', "line 1: lacks 'requirements_yaml'"),
        (
            '{"concept_id": "a", "concept": "x", "requirements_yaml": "a: b: c"}',
            "line 1: requirements_yaml is not valid YAML",
        ),
    ],
)
def test_a_line_of_the_data_set_that_cannot_be_used_is_named(
    bench: Bench, line: str, words: str
) -> None:
    bench.write(bench.cases, [line])
    path = write(bench.folder, json.dumps([{"concept_id": "a", "raw_response": "x"}]))
    scored = score(bench, path)
    assert scored.code == 2
    assert f"cases.jsonl, {words}" in scored.err


def test_both_shapes_of_a_data_set_are_read(bench: Bench, answers: Answers) -> None:
    inner = {"concept": "x", "requirements_yaml": "a: 1"}
    bench.write(bench.cases, [{"input": inner | {"concept_id": "a"}}, inner])
    rows = [{"concept_id": name, "raw_response": answers.text()} for name in ("a", "sample-2")]
    assert score(bench, write(bench.folder, json.dumps(rows))).code == 0


def test_stored_thresholds_that_cannot_be_used_are_named(bench: Bench) -> None:
    config = {"task": "product_owner", "engine": "vllm", "dataset_path": "x"}
    text = json.dumps({"config": config | {"gate": {"min_ratio": -1}}, "results": ROWS[:1]})
    bench.dataset(1)
    scored = score(bench, write(bench.folder, text))
    assert scored.code == 2
    assert "config.gate.min_ratio" in scored.err


def test_a_stored_task_that_there_is_not_is_an_input_error(bench: Bench) -> None:
    config = {"task": "poems", "engine": "vllm", "gate": {}, "dataset_path": "x"}
    bench.dataset(1)
    path = write(bench.folder, json.dumps({"config": config, "results": ROWS[:1]}))
    scored = score(bench, path)
    assert scored.code == 2
    assert "'poems'" in scored.err


def test_a_case_and_sample_that_is_there_twice_gets_no_verdict(bench: Bench) -> None:
    bench.dataset(1)
    rows = [{**ROWS[0], "sample": 0}] * 2
    files = [write(bench.folder, json.dumps(rows), f"{arm}.json") for arm in ("baseline", "b")]
    scored = score(bench, *files)
    assert scored.code == 2
    assert "twice" in scored.err


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("baseline_20251108-101112.json", "baseline"),
        ("Baseline.json", "baseline"),
        ("student_20251108-101112.json", "student"),
        ("student_po_v1_20251108_101112.json", "student_po_v1"),
        ("po-student-2025-11-08T10:11:12.json", "po-student"),
        ("student.json", "student"),
        ("20251108.json", "20251108"),
    ],
)
def test_the_arm_is_read_from_the_name_of_a_file_that_does_not_say(name: str, arm: str) -> None:
    assert arm_of(Path(name)) == arm


@pytest.mark.parametrize("row", [{}, {"score": "high"}, {"score": True}, {"tier": 3, "status": 1}])
def test_what_was_recorded_may_be_missing_or_strange(
    bench: Bench, answers: Answers, row: dict[str, Any]
) -> None:
    bench.dataset(1)
    text = json.dumps([{"concept_id": "K1", "raw_response": answers.text()} | row])
    scored = score(bench, write(bench.folder, text), "--json")
    (found,) = (json.loads(line) for line in scored.out.splitlines())
    assert (found["recorded_status"], found["recorded_score"]) == (None, None)
    assert (found["tier"], found["score"]) == ("simple", 1.0)
