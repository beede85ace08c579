"""Tasks as data: what a declaration may say, and where a task may come from."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest

from tests.conftest import PRODUCT_OWNER, po_inputs
from tests.task_folders import CASE, GOOD, PLAIN, write_task
from vllm_eval.errors import ConfigError, EvalError
from vllm_eval.inputs.cases import open_dataset, read_cases
from vllm_eval.tasks import Task, open_task
from vllm_eval.tasks.check import compile_contract
from vllm_eval.tasks.declaration import dump_declaration, parse_declaration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]


def with_value(**value: object) -> dict[str, Any]:
    """A task whose block has one key, `it`, declared like this."""
    return PLAIN | {"blocks": {"POEM": {"keys": {"it": value}}}}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a task's folder and gives its path."""
    return partial(write_task, tmp_path)


def reason(task: Task, block: str) -> str | None:
    problem = task.grade(CASE, f"```yaml POEM\n{block}\n```\n").problem
    return problem.reason if problem else None


def test_a_task_without_a_module_asks_grades_and_scores(write: Write) -> None:
    task = open_task(str(write()))
    assert task.prompt(CASE) == "Write of rain."
    assert task.grade(CASE, GOOD).score == 1
    assert reason(task, "lines: [a]") == "poem_lines_too_few"


def test_a_folder_and_its_file_are_the_same_task(write: Write) -> None:
    folder = write()
    assert open_task(str(folder)).version == open_task(str(folder / "task.yaml")).version


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"id": "A", "topic": "x"}, ("A", {"topic": "x", "mood": ""})),
        ({"case_id": 7, "topic": "x", "mood": "sad"}, ("7", {"topic": "x", "mood": "sad"})),
        ({"concept_id": "C", "id": "A", "topic": "x"}, ("C", {"topic": "x", "mood": ""})),
        ({"input": {"topic": "x"}, "id": "A"}, ("sample-1", {"topic": "x", "mood": ""})),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_record_holds_what_its_task_declares(
    write: Write, tmp_path: Path, record: dict[str, Any], found: object, suffix: str
) -> None:
    declared = open_task(str(write(inputs={"topic": {}, "mood": {"required": False}}))).declaration
    path = tmp_path / f"cases.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps(record), "utf-8")
    (case,) = read_cases(open_dataset(path, None, 42, declared))
    assert (case.id, case.inputs) == found


def test_the_product_owners_records_go_by_their_concept_id_alone(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({"id": "A", **po_inputs("c", "a: 1")}), "utf-8")
    (case,) = read_cases(open_dataset(path, None, 42, PRODUCT_OWNER))
    assert case.id == "sample-1"


VALUES: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "it: words", None),
    ({}, "it: ''", "poem_missing_it"),
    ({}, "it: 7", "poem_it_not_text"),
    ({"max_words": 2}, "it: one two three", "poem_it_too_long"),
    ({"max_words": 2, "reason": "wordy"}, "it: one two three", "wordy"),
    ({"max_words": 2, "reason": "wordy"}, "it: [one]", "wordy"),
    ({"required": "present"}, "it:", "poem_it_not_text"),
    ({"required": "present"}, "other: 1", "poem_missing_it"),
    ({"required": "set"}, "it:", "poem_missing_it"),
    ({"required": "set"}, "it: ''", None),
    ({"required": "no"}, "other: 1", None),
    ({"required": "no"}, "it:", None),
    ({"required": False}, "it:", None),  # a bare `no` in a file
    ({"required": "no"}, "it: 7", "poem_it_not_text"),
    ({"lenient": True}, "it: 7", None),
    ({"lenient": True}, "it: ''", "poem_missing_it"),
    ({"lenient": True}, "it: []", "poem_missing_it"),
    ({"lenient": True}, "it: {}", "poem_missing_it"),
    ({"lenient": True}, "it: !!set {}", "poem_missing_it"),
    ({"lenient": True}, "it: ~", "poem_missing_it"),
    ({"type": "date"}, "it: 2026-03-01", None),
    ({"type": "date"}, "it: '2026-03-01T10:00:00Z'", None),
    ({"type": "date"}, "it: tomorrow", "poem_it_not_date"),
    ({"type": "choice", "of": ["red", "blue"]}, "it: red", None),
    ({"type": "choice", "of": ["red", "blue"]}, "it: green", "poem_it_not_choice"),
    ({"type": "choice", "of": ["red", "blue"]}, "it: [red]", "poem_it_not_choice"),
    ({"type": "list"}, "it: [7, {a: 1}]", None),
    ({"type": "list"}, "it: {a: 1}", "poem_it_not_list"),
    ({"type": "list", "min_items": 2}, "it: [a]", "poem_it_too_few"),
    ({"type": "list", "ids": {"prefixes": ["T"]}}, "it: [see t01]", None),
    ({"type": "list", "ids": {"prefixes": ["T"]}}, "it: [T1, XT01]", "no_ids"),
    ({"type": "mapping", "keys": {"in": {}}}, "it: {in: x}", None),
    ({"type": "mapping", "keys": {"in": {}}}, "it: x", "poem_it_not_dict"),
    ({"type": "mapping", "keys": {"in": {}}}, "it: {out: x}", "poem_it_missing_in"),
    ({"type": "mapping", "keys": {"in": {}}}, "it: {in: 7}", "poem_it_in_not_text"),
    ({"type": "mapping", "keys": {"in": {}}, "prefix": "p"}, "it: {in: 7}", "p_in_not_text"),
    ({"type": "mapping", "keys": {"in": {}}, "required": "no"}, "other: 1", None),
]


@pytest.mark.parametrize(("value", "block", "expected"), VALUES)
def test_a_declared_value_is_held_to_its_declaration(
    write: Write, value: dict[str, Any], block: str, expected: str | None
) -> None:
    task = open_task(str(write(with_value(**value))))
    assert reason(task, block) == expected
    assert expected is None or expected in compile_contract(task.declaration).reasons


@pytest.mark.parametrize(
    ("value", "block", "expected"),
    [
        ({"lenient": True}, "it: 0", None),
        ({"lenient": True}, "it: 0.0", None),
        ({"lenient": True}, "it: no", None),
        ({"lenient": True}, "it: false", None),
        ({}, "it: 0", "poem_it_not_text"),
        ({}, "it: no", "poem_it_not_text"),
        ({"type": "choice", "of": ["red", "blue"]}, "it: false", "poem_it_not_choice"),
        ({"type": "list"}, "it: 0", "poem_it_not_list"),
    ],
)
def test_zero_no_and_false_are_values_and_not_missing(
    write: Write, value: dict[str, Any], block: str, expected: str | None
) -> None:
    assert reason(open_task(str(write(with_value(**value)))), block) == expected


def test_shape_counts_nested_keys_and_takes_nothing_absent_for_right(write: Write) -> None:
    inner = {"in": {"required": "no"}, "out": {"type": "list", "lenient": True}}
    keys = {"it": {"type": "mapping", "keys": inner}, "more": {}}
    task = open_task(str(write(blocks={"POEM": {"keys": keys}})))
    graded = task.grade(CASE, "```yaml POEM\nit: {out: x}\nmore: words\n```\n")
    assert graded.score == pytest.approx(2 / 4)  # it and more, not in and out


def test_nothing_to_mention_is_all_mentioned(write: Write) -> None:
    part = {"points": 4, "measure": "mentions", "input": "topic", "ids": {"prefixes": ["T"]}}
    task = open_task(str(write(metric={"named": part})))
    assert task.grade(CASE, GOOD).parts == {"named": 4}


@pytest.mark.parametrize("block", ["lines: &x [T01, *x]", "lines: &x {T01: *x}"])
def test_an_answer_that_holds_itself_is_searched_once(write: Write, block: str) -> None:
    part = {"points": 4, "measure": "mentions", "input": "topic", "ids": {"prefixes": ["T"]}}
    task = open_task(str(write(metric={"named": part})))
    case = replace(CASE, inputs={"topic": "T01 T02"})
    assert task.grade(case, f"```yaml POEM\n{block}\n```\n").parts == {"named": 2}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"poem": 1}, "unknown key 'poem'"),
    ({"modul": "a.py", "name": 1}, "unknown key 'modul'; did you mean 'module'?"),
    ({"version": 1}, "version: must be a text; put it in quotes, not 1"),
    ({"blocks": {"poem": PLAIN["blocks"]["POEM"]}}, "blocks.poem: must be capital letters"),
    ({"inputs": {"topic": None}}, "inputs.topic: must be a mapping, {} at least"),
    ({"inputs": {"tier": {}}}, "'tier' is a key of every record"),
    ({"inputs": {"id": {}}}, "'id' is a key of every record"),
    (with_value(type="poem"), "blocks.POEM.keys.it.type"),
    (with_value(type="choice"), "a choice needs of"),
    (with_value(type="choice", of=["red", "no"]), "does not read an unquoted 'no' as text"),
    (with_value(type="mapping"), "a mapping needs keys"),
    (with_value(min_items=2), "min_items is for a list, and this is a text"),
    (with_value(type="list", min_items=5, max_items=4), "min_items is 5"),
    ({"metric": {"all": {"points": 0, "measure": "shape"}}}, "metric.all.points"),
    ({"metric": {"all": {"points": 1, "measure": "mentions"}}}, "`mentions` needs"),
    ({"metric": {"all": {"points": 1, "measure": "rhymes"}}}, "metric.all.measure: 'rhymes'"),
    ({"prompt": "../other.j2"}, "prompt: '../other.j2' is outside"),
    ({"prompt": "/etc/hostname"}, "prompt: '/etc/hostname' is outside"),
    ({"prompt": "gone.j2"}, "prompt: cannot read"),
    ({"prompt": "a\0b"}, "prompt: must be the name of a file"),
    ({"module": "../other.py"}, "module: '../other.py' is outside"),
    ({"module": "gone.py"}, "module: cannot read"),
    ({"dataset": "/etc/hostname"}, "dataset: '/etc/hostname' is outside"),
]


@pytest.mark.parametrize(("changes", "said"), BROKEN)
def test_a_declaration_that_cannot_work_is_refused_by_file_and_key(
    write: Write, changes: dict[str, Any], said: str
) -> None:
    folder = write(PLAIN | changes)
    with pytest.raises(ConfigError) as refused:
        open_task(str(folder))
    assert str(folder / "task.yaml") in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b: c", "line 1: not valid YAML"),
        ("- a", "must be a mapping"),
        ("name: a", "version: is needed"),
        ("inputs: {on: {}}", "the key True; put"),
        ("a: &x [*x]", "Circular reference"),
    ],
)
def test_a_file_that_declares_nothing_is_refused(write: Write, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_task(str(write(text)))


def test_a_folder_without_a_declaration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no task\.yaml"):
        open_task(str(tmp_path))


def test_a_template_through_a_link_to_elsewhere_is_refused(write: Write, tmp_path: Path) -> None:
    folder = write()
    (tmp_path / "secret").write_text("s", "utf-8")
    (folder / "prompt.j2").unlink()
    (folder / "prompt.j2").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="is outside"):
        open_task(str(folder))


def test_a_declaration_survives_being_written_down() -> None:
    assert parse_declaration(dump_declaration(PRODUCT_OWNER), "x") == PRODUCT_OWNER


def test_every_change_of_a_tasks_files_is_another_version(write: Write) -> None:
    versions = [
        open_task(str(write(module=module, **changes))).version
        for module, changes in [
            ("", {}),
            ("# mended", {}),
            ("", {"metric": {"shape": {"points": 2, "measure": "shape"}}}),
        ]
    ]
    assert len(set(versions)) == 3
    assert all(version.startswith("1+") for version in versions)


MODULES = [
    ("1 / 0", "cannot be run as the task's module: ZeroDivisionError"),
    ("def rhymes(", "cannot be run as the task's module: SyntaxError"),
    ("rhymes = 3", "metric.all.measure: 'rhymes' is none of shape, mentions"),
    ("check = 3\ndef rhymes(b, c): return 1", "module: 'check'"),
]


@pytest.mark.parametrize(("module", "said"), MODULES)
def test_a_module_that_cannot_work_is_refused_at_once(write: Write, module: str, said: str) -> None:
    metric = {"all": {"points": 1, "measure": "rhymes"}}
    with pytest.raises(ConfigError) as refused:
        open_task(str(write(module=module, metric=metric)))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return blocks['NONE']", "rhymes fails on an answer to case 'H1': KeyError"),
        ("return 'many'", "must return a number of points, not 'many'"),
        ("return float('nan')", "must return a number of points, not nan"),
    ],
)
def test_a_measure_that_fails_is_our_error_and_no_bad_answer(
    write: Write, body: str, said: str
) -> None:
    metric = {"all": {"points": 1, "measure": "rhymes"}}
    task = open_task(str(write(module=f"def rhymes(blocks, case): {body}", metric=metric)))
    with pytest.raises(EvalError) as failed:
        task.grade(CASE, GOOD)
    assert said in str(failed.value)


@pytest.mark.parametrize(("returned", "points"), [(-1, 0), (0.5, 0.5), (9, 2)])
def test_points_are_held_between_zero_and_those_of_the_part(
    write: Write, returned: float, points: float
) -> None:
    metric = {"all": {"points": 2, "measure": "rhymes"}}
    module = f"def rhymes(blocks, case): return {returned}"
    assert open_task(str(write(module=module, metric=metric))).grade(CASE, GOOD).parts == {
        "all": points
    }


def test_an_installed_task_is_known_by_its_name(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, site = write(), tmp_path / "site"
    info = site / "poems-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poems\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[vllm_eval.tasks]\nhaiku = poems_x:HAIKU\n", "utf-8")
    path = str(folder / "task.yaml")
    (site / "poems_x.py").write_text(f"HAIKU = {path!r}\n", "utf-8")
    monkeypatch.syspath_prepend(str(site))
    assert open_task("haiku").name == "haiku"
    with pytest.raises(ConfigError, match="known by name: 'haiku', 'product_owner'"):
        open_task("sonnet")
    sys.modules.pop("poems_x", None)
