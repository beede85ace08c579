"""Finding an adapter and knowing it from its JSON alone; every way it can be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save

from vllm_eval.config.settings import Config
from vllm_eval.errors import AdapterError
from vllm_eval.inputs.adapters import base_of, read_adapter
from vllm_eval.inputs.arms import open_arms

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Bench
    from vllm_eval.records import Arm

    Make = Callable[..., Path]

REPOSITORY = Path(__file__).parents[1]


def safetensors(values: tuple[float, ...] = (1.0, 2.0)) -> bytes:
    """A file with one tensor."""
    file: bytes = save({"lora_A": np.array(values, "float32")})
    return file


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An adapter folder; keys of its configuration may be replaced."""

    def folder(name: str = "pupil", **changes: object) -> Path:
        path = tmp_path / "adapters" / name
        path.mkdir(parents=True)
        fields = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/base"} | changes
        (path / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
        (path / "adapter_model.safetensors").write_bytes(safetensors())
        return path

    return folder


def config(*adapters: str, dirs: tuple[str, ...] = (), **more: object) -> Config:
    return Config(adapters=adapters, adapter_dirs=dirs, **more)  # type: ignore[arg-type]


def arms_of(*adapters: str, dirs: tuple[str, ...] = (), **more: object) -> tuple[Arm, ...]:
    """The arms; the first problem with them is raised."""
    opened = open_arms(config(*adapters, dirs=dirs, **more))
    for problem in opened.problems:
        raise problem
    return opened.arms


def path_of(given: str, *dirs: str) -> Path:
    """Where an adapter was found."""
    _, student = arms_of(given, dirs=dirs)
    assert student.adapter is not None
    return student.adapter.path


def test_an_adapter_is_known_by_base_and_rank(make: Make) -> None:
    adapter = read_adapter("pupil", make(r=16))
    assert (adapter.name, adapter.base_model, adapter.rank) == ("pupil", "org/base", 16)


def test_the_largest_rank_of_any_module_counts(make: Make) -> None:
    assert read_adapter("pupil", make(r=8, rank_pattern={"q_proj": 4, "v_proj": 32})).rank == 32


@pytest.mark.parametrize("base", [None, ""])
def test_an_adapter_may_not_know_its_base(make: Make, base: object) -> None:
    assert read_adapter("pupil", make(base_model_name_or_path=base)).base_model is None


def test_the_hash_changes_with_the_weights(make: Make) -> None:
    folder = make()
    before = read_adapter("pupil", folder).sha256
    (folder / "adapter_model.safetensors").write_bytes(safetensors((1.0, 3.0)))
    assert read_adapter("pupil", folder).sha256 != before


def test_the_hash_changes_with_the_configuration(make: Make) -> None:
    one, other = (read_adapter("x", make(f"p{r}", r=8, lora_alpha=r)).sha256 for r in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"peft_type": None}, "peft_type must be LORA"),
        ({"r": None}, "must be positive whole numbers"),
        ({"r": 0}, "must be positive whole numbers"),
        ({"r": "8"}, "must be positive whole numbers"),
        ({"r": 8.5}, "must be positive whole numbers"),
        ({"r": True}, "must be positive whole numbers"),
        ({"rank_pattern": {"q_proj": "x"}}, "must be positive whole numbers"),
        ({"rank_pattern": {"q_proj": -1}}, "must be positive whole numbers"),
        ({"rank_pattern": [4]}, "must be positive whole numbers"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_named(
    make: Make, changes: dict[str, object], said: str
) -> None:
    folder = make(**changes)
    with pytest.raises(AdapterError) as refused:
        read_adapter("pupil", folder)
    assert str(folder / "adapter_config.json") in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", "peft_type must be LORA"),
    ],
)
def test_a_configuration_that_is_no_json_object_is_named(
    make: Make, content: bytes, said: str
) -> None:
    folder = make()
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: .*{said}"):
        read_adapter("pupil", folder)


def test_a_configuration_nested_too_deeply_is_refused(make: Make) -> None:
    folder = make()
    nested = b'{"peft_type": "LORA", "r": 8, "more": ' + b"[" * 1000 + b"]" * 1000 + b"}"
    (folder / "adapter_config.json").write_bytes(nested)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: is nested too deeply"):
        read_adapter("pupil", folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(make: Make, name: str) -> None:
    folder = make()
    (folder / name).unlink()
    with pytest.raises(AdapterError, match=f"{folder}: has no {name}"):
        read_adapter("pupil", folder)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that cannot be read")
def test_weights_that_cannot_be_read_are_named(make: Make) -> None:
    folder = make()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(AdapterError, match=f"adapter {folder}: cannot be read"):
        read_adapter("pupil", folder)


def test_pickled_weights_do_not_stand_in_for_safetensors(make: Make) -> None:
    folder = make()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="safe_serialization=True"):
        read_adapter("pupil", folder)


def test_an_adapter_is_found_by_its_path(make: Make) -> None:
    folder = make()
    assert path_of(str(folder)) == folder


def test_an_adapter_is_found_by_name_in_the_adapter_folders(make: Make, tmp_path: Path) -> None:
    folder = make()
    dirs = [str(tmp_path / "none"), str(tmp_path / "adapters")]
    assert path_of("pupil", *dirs) == folder


def test_an_adapter_that_is_nowhere_lists_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as refused:
        path_of("gone", str(tmp_path / "a"), str(tmp_path / "b"))
    assert f"looked for gone, {tmp_path}/a/gone, {tmp_path}/b/gone" in str(refused.value)


def test_a_hub_id_that_cannot_be_had_is_an_error_of_the_adapter(bench: Bench) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(bench.folder), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "vllm_eval", "--adapter", "nobody/nothing", "--profile", "none"],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "adapter 'nobody/nothing'" in done.stderr


def test_the_baseline_comes_first_and_has_no_adapter(make: Make) -> None:
    baseline, student = arms_of(str(make()))
    assert (baseline.name, baseline.adapter) == ("baseline", None)
    assert student.name == "pupil"
    assert student.adapter is not None


def test_each_adapter_is_an_arm_named_for_its_folder(make: Make) -> None:
    arms = arms_of(f"{make('a')}/", str(make("b c", r=16)))
    assert [arm.name for arm in arms] == ["baseline", "a", "b_c"]


def test_the_scripted_engine_reads_no_adapter_file() -> None:
    arms = arms_of("nowhere/at all", engine="scripted")
    assert [(arm.name, arm.adapter) for arm in arms] == [("baseline", None), ("at_all", None)]


def test_a_run_without_an_adapter_has_nothing_to_compare() -> None:
    with pytest.raises(AdapterError, match="give --adapter NAME"):
        arms_of()


@pytest.mark.parametrize("names", [("a b", "a_b"), ("baseline",)])
def test_two_arms_of_one_name_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(AdapterError, match="would be called"):
        arms_of(*names, engine="scripted")


@pytest.mark.parametrize("name", ["", "/", "package:"])
def test_an_adapter_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(AdapterError):
        arms_of(name, engine="scripted")


def test_the_base_is_what_the_adapters_agree_on(make: Make) -> None:
    arms = arms_of(str(make("a")), str(make("b", r=16)))
    assert base_of(arms, None) == "org/base"


def test_a_given_base_wins(make: Make) -> None:
    assert base_of(arms_of(str(make())), "my/other") == "my/other"


def test_a_base_that_is_a_folder_becomes_absolute(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    arms = arms_of(str(make(base_model_name_or_path="weights")))
    assert base_of(arms, None) == str(tmp_path / "weights")


def test_an_adapter_that_names_no_base_asks_for_it(make: Make) -> None:
    with pytest.raises(AdapterError, match="no adapter names its base; give --base-model"):
        base_of(arms_of(str(make(base_model_name_or_path=None))), None)


@pytest.mark.parametrize("other", ["org/different", None])
def test_adapters_of_different_bases_are_refused_by_name(make: Make, other: str | None) -> None:
    arms = arms_of(str(make("a")), str(make("b", base_model_name_or_path=other)))
    with pytest.raises(AdapterError) as refused:
        base_of(arms, None)
    assert f"a: org/base; b: {other}" in str(refused.value)
    assert "--base-model" in str(refused.value)


@pytest.mark.parametrize("names", [("Abc", "aBC"), ("x" * 101,), ("foo:",), ("..",)])
def test_a_name_that_cannot_name_a_file_on_every_disk_is_refused(
    bench: Bench, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [word for name in names for word in ("--adapter", name)]
    bench.dataset(1)
    bench.answers({"text": "x"})
    run = bench.call(
        *("--engine", "scripted", "--script", str(bench.script), "--profile", "none"),
        *("--dataset-path", str(bench.cases), "--output-dir", str(bench.output_dir), *flags),
    )
    assert run.code == 2
    assert "adapters:" in run.err
