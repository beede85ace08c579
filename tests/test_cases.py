"""Reading, checking and drawing the cases of a data set."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.conftest import PRODUCT_OWNER
from vllm_eval.errors import DatasetError
from vllm_eval.inputs.cases import open_dataset, read_cases

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_eval.records import Case

    Write = Callable[..., Path]

ROW = {"concept_id": "K1", "concept": "c", "requirements_yaml": "a: 1", "tier": "simple"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A data set of these lines; a mapping is written as JSON."""

    def lines(*rows: object) -> Path:
        path = tmp_path / "cases.jsonl"
        raw = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
        path.write_bytes(b"\n".join(raw))
        return path

    return lines


def in_file_order(path: Path) -> list[Case]:
    return sorted(
        read_cases(open_dataset(path, None, 42, PRODUCT_OWNER)), key=lambda case: case.line
    )


def test_a_record_under_input_and_one_at_the_top_are_the_same_case(write: Write) -> None:
    nested, flat = (in_file_order(write(row)) for row in ({"input": ROW, "more": 1}, ROW))
    assert nested == flat


def test_every_field_of_a_case_is_read(write: Write) -> None:
    (case,) = in_file_order(write(ROW | {"prompt": "Say it."}))
    assert (
        case.id,
        case.line,
        case.tier,
        case.inputs["concept"],
        case.inputs["requirements_yaml"],
        case.prompt,
    ) == (*("K1", 1, "simple", "c", "a: 1", "Say it."),)


def test_a_case_without_an_id_is_named_by_its_line(write: Write) -> None:
    rows = [ROW, b"", {**ROW, "concept_id": None}, {**ROW, "concept_id": ""}]
    assert [case.id for case in in_file_order(write(*rows))] == ["K1", "sample-3", "sample-4"]


def test_an_id_that_is_a_number_becomes_text(write: Write) -> None:
    assert in_file_order(write({**ROW, "concept_id": 7}))[0].id == "7"


def test_a_missing_tier_is_none(write: Write) -> None:
    row = {key: value for key, value in ROW.items() if key != "tier"}
    assert in_file_order(write(row))[0].tier is None


@pytest.mark.parametrize("row", [{"input": {**ROW, "prompt": "P"}}, {"input": ROW, "prompt": "P"}])
def test_a_record_may_carry_its_own_prompt(write: Write, row: object) -> None:
    assert in_file_order(write(row))[0].prompt == "P"


def test_an_empty_prompt_is_none(write: Write) -> None:
    assert in_file_order(write(ROW | {"prompt": ""}))[0].prompt is None


def test_blank_lines_and_dos_line_ends_are_no_records(write: Write) -> None:
    path = write(b"", json.dumps(ROW).encode() + b"\r", b"  ", b"\r")
    assert open_dataset(path, None, 42, PRODUCT_OWNER).total == 1


def test_text_of_any_language_survives(write: Write) -> None:
    assert in_file_order(write(ROW | {"concept": "Año \u202e 日本 \x1b"}))[0].inputs["concept"] == (
        "Año \u202e 日本 \x1b"
    )


# `random.Random(seed).shuffle(list(range(1, 11)))`, worked out once: the draw may never change.
@pytest.mark.parametrize(
    ("seed", "order"),
    [(42, [8, 4, 3, 9, 6, 7, 10, 5, 1, 2]), (0, [8, 9, 2, 6, 4, 5, 3, 1, 10, 7])],
)
def test_the_draw_is_a_shuffle_by_the_seed(write: Write, seed: int, order: list[int]) -> None:
    path = write(*({**ROW, "concept_id": f"K{n}"} for n in range(1, 11)))
    assert [
        case.line for case in read_cases(open_dataset(path, None, seed, PRODUCT_OWNER))
    ] == order


@pytest.mark.parametrize(("wanted", "got"), [(1, 1), (9, 9), (10, 10), (99, 10), (None, 10)])
def test_the_first_n_of_the_shuffled_records_are_drawn(
    write: Write, wanted: int | None, got: int
) -> None:
    path = write(*({**ROW, "concept_id": f"K{n}"} for n in range(1, 11)))
    everything = [case.id for case in read_cases(open_dataset(path, None, 42, PRODUCT_OWNER))]
    drawn = [case.id for case in read_cases(open_dataset(path, wanted, 42, PRODUCT_OWNER))]
    assert drawn == everything[:got]


def test_the_cases_can_be_read_more_than_once(write: Write) -> None:
    dataset = open_dataset(write(ROW, {**ROW, "concept_id": "K2"}), None, 42, PRODUCT_OWNER)
    assert list(read_cases(dataset)) == list(read_cases(dataset))


def test_the_hash_is_that_of_the_file(write: Write) -> None:
    path = write(ROW, b"", {**ROW, "concept_id": "K2"})
    assert (
        open_dataset(path, 1, 42, PRODUCT_OWNER).sha256
        == hashlib.sha256(path.read_bytes()).hexdigest()
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"{not json", "not valid JSON"),
        (b'{"concept": "\xff"}', "not valid JSON"),
        (b'{"concept": "\\ud800"}', "not valid JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        ({"concept": "c"}, "lacks 'requirements_yaml'"),
        ({"requirements_yaml": "a: 1"}, "lacks 'concept'"),
        ({**ROW, "concept": None}, "lacks 'concept'"),
        ({**ROW, "concept": 7}, "'concept' must be a string"),
        ({**ROW, "requirements_yaml": {"a": 1}}, "'requirements_yaml' must be a string"),
        ({**ROW, "tier": ["simple"]}, "'tier' must be a string"),
        ({**ROW, "prompt": 1}, "'prompt' must be a string"),
        ({**ROW, "requirements_yaml": "a: 1\nb: c: d"}, "not valid YAML at line 2 of the text"),
        ({**ROW, "requirements_yaml": "a: \0"}, "requirements_yaml is not valid YAML"),
        ({**ROW, "concept_id": "K0"}, "id 'K0' is taken by line 1"),
        ({**ROW, "concept_id": "sample-2"}, None),
    ],
)
def test_a_line_that_cannot_be_used_is_named(write: Write, row: object, said: str | None) -> None:
    path = write({**ROW, "concept_id": "K0"}, row)
    if said is None:
        assert open_dataset(path, None, 42, PRODUCT_OWNER).total == 2
        return
    with pytest.raises(DatasetError) as refused:
        open_dataset(path, 1, 42, PRODUCT_OWNER)
    assert f"{path}, line 2: " in str(refused.value)
    assert said in str(refused.value)


def test_a_given_id_may_not_be_one_that_a_line_number_makes(write: Write) -> None:
    path = write({**ROW, "concept_id": "sample-2"}, {**ROW, "concept_id": ""})
    with pytest.raises(DatasetError, match="line 2: id 'sample-2' is taken by line 1"):
        open_dataset(path, None, 42, PRODUCT_OWNER)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_records_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cases\.jsonl: has no records"):
        open_dataset(path, None, 42, PRODUCT_OWNER)


@pytest.mark.parametrize(("name", "said"), [("gone", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named_with_the_flag(
    tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(DatasetError, match=rf"{said}.*--dataset-path"):
        open_dataset(tmp_path / name, None, 42, PRODUCT_OWNER)
