"""Data sets that are no plain JSON lines: the same cases, drawn alike; errors name the row."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import PRODUCT_OWNER, REQUIREMENTS
from vllm_eval.errors import DatasetError, InputError
from vllm_eval.inputs.cases import open_dataset, read_cases
from vllm_eval.inputs.formats import MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Answers, Bench

Rows = list[dict[str, Any]]
FORMATS = ["cases.jsonl.gz", "cases.parquet", "saved"]


def rows(count: int) -> Rows:
    plain = {"concept": "A tool library", "requirements_yaml": REQUIREMENTS, "tier": "simple"}
    return [{"concept_id": f"K{n}", **plain} for n in range(1, count + 1)]


def save(folder: Path, name: str, content: Rows) -> Path:
    """The rows in the format that goes with the name."""
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(content), path, row_group_size=3)
    elif name == "saved":
        datasets.Dataset.from_list(content).save_to_disk(path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in content).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_cases_that_json_lines_give(tmp_path: Path, name: str) -> None:
    plain = open_dataset(save(tmp_path, "cases.jsonl", rows(10)), 7, 42, PRODUCT_OWNER)
    other = open_dataset(save(tmp_path, name, rows(10)), 7, 42, PRODUCT_OWNER)
    assert list(read_cases(other)) == list(read_cases(plain))
    assert (other.total, other.path) == (10, tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_fields_may_stand_under_input_as_they_do_in_json_lines(tmp_path: Path, name: str) -> None:
    nested = [{"input": row, "output": {"score": 1.0}} for row in rows(2)]
    found = read_cases(open_dataset(save(tmp_path, name, nested), None, 42, PRODUCT_OWNER))
    assert sorted(case.id for case in found) == ["K1", "K2"]


def test_columns_that_nobody_asks_for_may_hold_anything(tmp_path: Path) -> None:
    odd = [row | {"image": b"\xff\x00", "made": pa.scalar(1).as_py()} for row in rows(2)]
    assert open_dataset(save(tmp_path, "cases.parquet", odd), None, 42, PRODUCT_OWNER).total == 2


def test_a_file_and_its_gzip_are_the_same_data_set(tmp_path: Path) -> None:
    plain = open_dataset(save(tmp_path, "cases.jsonl", rows(3)), None, 42, PRODUCT_OWNER)
    assert (
        open_dataset(save(tmp_path, "c.jsonl.gz", rows(3)), None, 42, PRODUCT_OWNER).sha256
        == plain.sha256
    )


@pytest.mark.parametrize(
    ("name", "place"),
    [("cases.jsonl.gz", "line 5"), ("cases.parquet", "row 5"), ("saved", "row 5")],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path: Path, name: str, place: str) -> None:
    content = rows(6)
    content[4]["requirements_yaml"] = "a: [1"
    path = save(tmp_path, name, content)
    with pytest.raises(DatasetError) as refused:
        open_dataset(path, None, 42, PRODUCT_OWNER)
    assert str(refused.value).startswith(f"{path}, {place}: requirements_yaml is not valid YAML")


def test_a_gzip_that_breaks_off_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl.gz"
    save(tmp_path, path.name, [row | {"concept": os.urandom(2000).hex()} for row in rows(30)])
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DatasetError, match=r"cases\.jsonl\.gz, line \d+: the data set is damaged"):
        open_dataset(path, None, 42, PRODUCT_OWNER)


@pytest.mark.parametrize("name", ["cases.jsonl.gz", "cases.parquet"])
def test_a_file_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("plain text\n")
    with pytest.raises(DatasetError, match=name):
        open_dataset(tmp_path / name, None, 42, PRODUCT_OWNER)


def test_several_splits_are_named_for_a_choice(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(rows(2))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DatasetError, match=rf"give --dataset-path one of {tmp_path}/splits/train,"):
        open_dataset(tmp_path / "splits", None, 42, PRODUCT_OWNER)
    assert open_dataset(tmp_path / "splits" / "test", None, 42, PRODUCT_OWNER).total == 2


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("cases.parquet", "pyarrow", "parquet"),
        ("saved", "datasets", "datasets"),
        ("hf:somebody/cases", "datasets", "datasets"),
    ],
)
def test_a_format_without_its_extra_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    path = Path(name) if name.startswith("hf:") else save(tmp_path, name, rows(2))
    monkeypatch.setitem(sys.modules, module, None)  # what Python takes for "not installed"
    with pytest.raises(InputError, match=rf"pip install 'vllm_eval\[{extra}\]'"):
        open_dataset(path, None, 42, PRODUCT_OWNER)


def test_a_data_set_of_the_hub_that_cannot_be_reached_is_bad_input() -> None:
    arguments = ["--engine", "scripted", "--adapter", "pupil", "--profile", "none", "--script", "s"]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_eval", *arguments, "--dataset-path", "hf:somebody/cases:test"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "hf:somebody/cases:test: cannot read the data set" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("name", FORMATS)
def test_the_copy_is_gone_once_nobody_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = save(tmp_path, name, rows(2))
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    dataset = open_dataset(path, None, 42, PRODUCT_OWNER)
    made = list((tmp_path / "copies").iterdir())
    del dataset
    assert (len(made), list((tmp_path / "copies").iterdir())) == (1, [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_can_be_scored_again_with_the_data_set_it_had(
    bench: Bench, answers: Answers, name: str
) -> None:
    path = save(bench.folder, name, rows(4))
    bench.answers({"text": answers.text()})
    run = bench.run("--dataset-path", str(path))
    assert run.code == 0
    again = bench.call("score", str(run.folder))
    assert again.code == 0


def test_a_run_begun_on_a_file_goes_on_with_its_gzip(
    bench: Bench, answers: Answers, cut: Callable[[Path], None]
) -> None:
    bench.dataset(4)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    cut(folder)
    packed = bench.folder / "cases.jsonl.gz"
    packed.write_bytes(gzip.compress(bench.cases.read_bytes()))
    bench.cases.unlink()
    resumed = bench.call("--resume", str(folder), "--dataset-path", str(packed))
    assert (resumed.code, len(resumed.journal)) == (0, 8)


@pytest.fixture
def cut() -> Callable[[Path], None]:
    """Leaves a run as a kill in the middle would have left it."""

    def leave(folder: Path) -> None:
        journal = folder / "attempts.jsonl"
        journal.write_bytes(journal.read_bytes()[:-100])
        (folder / "comparison.json").unlink()

    return leave


def test_bytes_in_a_table_are_taken_for_text(tmp_path: Path) -> None:
    path = tmp_path / "cases.parquet"
    encoded = [{key: str(text).encode() for key, text in row.items()} for row in rows(2)]
    parquet.write_table(pa.Table.from_pylist(encoded), path)
    plain = save(tmp_path, "plain.parquet", rows(2))
    assert [
        case.inputs["concept"] for case in read_cases(open_dataset(path, None, 42, PRODUCT_OWNER))
    ] == [
        case.inputs["concept"] for case in read_cases(open_dataset(plain, None, 42, PRODUCT_OWNER))
    ]


def test_what_is_no_text_in_a_table_is_bad_input_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "cases.parquet"
    odd = [row | {"concept": b"\xff"} for row in rows(1)]
    parquet.write_table(pa.Table.from_pylist(odd), path)
    with pytest.raises(DatasetError, match=r"cases\.parquet, row 1: the data set is damaged here"):
        open_dataset(path, None, 42, PRODUCT_OWNER)


def test_a_line_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (MAX_LINE + 10), compresslevel=1))
    with pytest.raises(DatasetError, match="a line is longer than"):
        open_dataset(path, None, 42, PRODUCT_OWNER)


@pytest.mark.parametrize("name", ["hf:/etc", "hf:.", "hf:json", "hf:../x/y"])
def test_only_the_hub_is_asked_for_a_name_of_the_hub(name: str) -> None:
    with pytest.raises(DatasetError, match="is not OWNER/NAME"):
        open_dataset(Path(name), None, 42, PRODUCT_OWNER)
