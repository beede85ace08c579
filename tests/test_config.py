"""Layers, precedence, and what is said of a key or value that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import vllm_eval
from vllm_eval.config.layers import dump_config, load_config, profile_names, read_layer
from vllm_eval.config.settings import Config, GateConfig, resolve_path
from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., str]

NONE = ["profile=none"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A configuration file of this text; its path."""

    def file(text: str | bytes, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return file


def refusal(*arguments: Any) -> str:
    """The message of the error that these layers end in."""
    with pytest.raises(ConfigError) as refused:
        load_config(*arguments)
    return str(refused.value)


def test_without_any_layer_the_defaults_of_the_specification_hold() -> None:
    config = load_config((), NONE)
    assert config.gate == GateConfig(min_valid_rate=0.9, min_baseline_mean=0.75, min_ratio=0.9)
    assert (config.seed, config.retries, config.task) == (42, 2, "product_owner")


def test_the_data_set_of_the_old_repository_is_the_default() -> None:
    expected = "artifacts/synthetic/product_owner/product_owner_val.jsonl"
    assert load_config((), NONE).dataset_path == expected


def test_a_file_beats_the_profile(write: Write) -> None:
    over = write("profile: cpu\nengine_args: {max_num_seqs: 3}")
    assert load_config([over]).engine_args["max_num_seqs"] == 3


def test_a_later_file_beats_an_earlier_one(write: Write) -> None:
    files = [write("seed: 1\nretries: 1", "a.yaml"), write("seed: 2", "b.yaml")]
    config = load_config(files, NONE)
    assert (config.seed, config.retries) == (2, 1)


def test_a_setting_beats_a_file(write: Write) -> None:
    assert load_config([write("seed: 1")], [*NONE, "seed=2"]).seed == 2


def test_a_flag_beats_a_setting() -> None:
    assert load_config((), [*NONE, "seed=2"], {"seed": 3}).seed == 3


def test_mappings_are_merged_key_by_key(write: Write) -> None:
    layer = write("engine_args: {dtype: half, seed: 1}\ngate: {min_ratio: 0.5}")
    config = load_config([layer], [*NONE, "engine_args.seed=2", "gate.min_valid_rate=1"])
    assert config.engine_args == {"dtype": "half", "seed": 2}
    assert config.gate == GateConfig(min_ratio=0.5, min_valid_rate=1.0)


def test_a_list_is_replaced_not_joined(write: Write) -> None:
    config = load_config([write("adapters: [a, b]")], [*NONE, "adapters=[c]"])
    assert config.adapters == ("c",)


def test_a_setting_may_hold_an_equals_sign() -> None:
    assert load_config((), [*NONE, "tag=a=b"]).tag == "a=b"


def test_a_setting_may_make_deep_mappings() -> None:
    config = load_config((), [*NONE, "engine_args.compilation_config.mode=3"])
    assert config.engine_args == {"compilation_config": {"mode": 3}}


def test_an_empty_file_changes_nothing(write: Write) -> None:
    assert load_config([write("# nothing")], NONE) == load_config((), NONE)


@pytest.mark.parametrize("name", ["demo", "cpu", "gpu"])
def test_a_shipped_profile_loads_as_profile_and_as_file(name: str) -> None:
    assert name in profile_names()
    as_profile, as_file = load_config((), (), {"profile": name}), load_config([name], NONE)
    assert as_profile.engine_args.items() >= as_file.engine_args.items()
    assert as_profile.profile == name


def test_a_profile_stands_on_the_one_it_names() -> None:
    demo = load_config((), (), {"profile": "demo"})
    cpu = load_config((), (), {"profile": "cpu"})
    assert cpu.engine_env.items() <= demo.engine_env.items()
    assert demo.base_model == "package:demo/base"


def test_the_machine_chooses_the_profile_where_none_is_named() -> None:
    assert load_config().profile in ("cpu", "gpu")


def test_a_flag_may_name_another_profile_than_the_file(write: Write) -> None:
    config = load_config([write("profile: cpu")], (), {"profile": "none"})
    assert (config.profile, config.engine_args) == ("none", {})


@pytest.mark.parametrize("name", ["demo", "cpu", "gpu"])
def test_a_resolved_configuration_is_read_back_to_the_same_record(write: Write, name: str) -> None:
    config = load_config((), ["gate.min_ratio=0.8", "adapters=[é, b]"], {"profile": name})
    assert load_config([write(dump_config(config))]) == config


@pytest.mark.parametrize(
    ("setting", "key", "near"),
    [
        ("retrys=1", "retrys", "retries"),
        ("max_sample=1", "max_sample", "max_samples"),
        ("dataset=x", "dataset", "dataset_path"),
        ("gate.min_ration=1", "gate.min_ration", "gate.min_ratio"),
        ("gate.valid_rate=1", "gate.valid_rate", "gate.min_valid_rate"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(setting: str, key: str, near: str) -> None:
    message = refusal((), [setting])
    assert message.startswith(f"-c {setting}: ")
    assert f"unknown key {key!r}; did you mean {near!r}?" in message


def test_an_unknown_key_like_no_other_is_still_named() -> None:
    assert refusal((), ["zzzz=1"]).endswith("unknown key 'zzzz'")


def test_the_file_of_an_unknown_key_is_named(write: Write) -> None:
    path = write("gate: {ratio: 1}")
    assert refusal([path]).startswith(f"{path}: unknown key 'gate.ratio'")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("seed=abc", "seed"),
        ("seed=1.5", "seed"),
        ("seed='1'", "seed"),
        ("seed=null", "seed"),
        ("retries=-1", "retries"),
        ("max_samples=0", "max_samples"),
        ("max_new_tokens=0", "max_new_tokens"),
        ("temperature=-0.1", "temperature"),
        ("temperature=.nan", "temperature"),
        ("temperature=.inf", "temperature"),
        ("top_p=0", "top_p"),
        ("top_p=1.01", "top_p"),
        ("load_4bit=1", "load_4bit"),
        ("engine=tgi", "engine"),
        ("prompt_format=xml", "prompt_format"),
        ("adapters=one", "adapters"),
        ("adapters=[1]", "adapters.0"),
        ("engine_args=[1]", "engine_args"),
        ("engine_env.A=1", "engine_env.A"),
        ("engine_env.a=x", "engine_env.a"),
        ("gate=1", "gate"),
        ("gate.min_ratio=x", "gate.min_ratio"),
        ("gate.min_valid_rate=1.1", "gate.min_valid_rate"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named_with_its_key(setting: str, key: str) -> None:
    assert refusal((), [setting]).startswith(f"-c {setting}: {key}")


def test_a_wrong_flag_is_blamed_on_the_command_line() -> None:
    assert refusal((), (), {"seed": "x"}).startswith("command line: seed: ")


@pytest.mark.parametrize("setting", ["seed", "=1", ".=1", "", "seed=[", "seed=a: b: c"])
def test_a_setting_that_is_no_setting_is_quoted(setting: str) -> None:
    assert refusal((), [setting]).startswith(f"-c {setting}: ")


@pytest.mark.parametrize("setting", [".seed=1", "seed.=1", "gate..min_ratio=1"])
def test_an_empty_word_in_a_keys_path_is_refused(setting: str) -> None:
    assert refusal((), [setting]).startswith(f"-c {setting}: ")


def test_a_missing_file_is_answered_with_the_profiles() -> None:
    message = refusal(["nowhere/gone.yaml"])
    assert message.startswith("nowhere/gone.yaml: no such file")
    assert "cpu, demo, gpu" in message


def test_a_misspelt_profile_is_answered_with_the_nearest() -> None:
    assert refusal(["demmo"]).endswith("did you mean 'demo'?")
    assert refusal((), (), {"profile": "gpus"}).endswith("did you mean 'gpu'?")


def test_a_profile_is_never_a_file_of_the_users(write: Write) -> None:
    assert "no such file" in refusal((), (), {"profile": write("seed: 1")})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"- a", "must hold a mapping of keys to values, not a list"),
        (b"text", "must hold a mapping of keys to values, not a str"),
        (b"2024-01-01: a", "unknown key"),
        (b"engine_args: &a {b: *a}", "engine_args"),
    ],
)
def test_a_file_that_holds_no_configuration_is_named(
    write: Write, content: bytes, said: str
) -> None:
    path = write(content)
    message = refusal([path])
    assert message.startswith(path)
    assert said in message


def test_a_shipped_profile_can_be_read_by_name() -> None:
    assert read_layer("demo")["tag"] == "demo"


def test_package_paths_lead_into_the_installed_package() -> None:
    (package,) = vllm_eval.__path__
    path = resolve_path("package:demo/cases.jsonl")
    assert str(path) == f"{package}/demo/cases.jsonl"
    assert path.is_file()


def test_the_home_folder_may_be_abbreviated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/cases.jsonl") == tmp_path / "cases.jsonl"


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(flags={"base_url": ["http://me:hunter2@host/v1"]})
    assert "base_url" in str(refused.value)
    assert "hunter2" not in str(refused.value)
