"""The arithmetic of the memory, against the published figures of Qwen2.5-7B.

Those figures (15.2 GB of weights in 16 bits, 8.7 in 8, 5.6 in 4; 56 KiB of cache for a token;
5 MB for each rank of an adapter slot) are arithmetic too: nothing here was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.model_folders import base_shapes, write_base, write_json, write_safetensors
from vllm_eval.config.machine import Gpu, Machine
from vllm_eval.inputs.base_model import Base, read_base
from vllm_eval.preflight.demand import Demand
from vllm_eval.preflight.memory import GIB, MIB, check_memory, estimate, weight_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_eval.preflight.finding import Finding
    from vllm_eval.preflight.memory import Fit

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
T4 = Gpu("Tesla T4", 15360, "7.5", "580.82.07")
SETUP = Demand(max_len=4096, utilization=0.90)


def machine(*gpus: Gpu, memory_mib: int = 32_000, limit_mib: int | None = None) -> Machine:
    return Machine("Linux", "3.11.7", 4, memory_mib, gpus, limit_mib)


@pytest.fixture
def qwen(tmp_path: Path) -> Base:
    """Qwen2.5-7B as its `config.json` tells of it, without weights."""
    write_json(tmp_path / "config.json", QWEN_7B)
    return read_base(str(tmp_path), weights=False)


@pytest.fixture
def fit(qwen: Base) -> Callable[..., Fit]:
    """The arithmetic on a T4, but for some changes of the demand."""

    def make(**changes: object) -> Fit:
        demand = replace(SETUP, **changes)  # type: ignore[arg-type]
        made = estimate(qwen, demand, T4.memory_mib * MIB)
        assert made is not None
        return made

    return make


def the_one(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("quantization", "gigabytes"),
    [(None, 15.2), ("bitsandbytes", 5.5), ("fp8_per_tensor", 8.7), ("fp8", 8.7)],
)
def test_weights_take_what_is_published(
    fit: Callable[..., Fit], quantization: str | None, gigabytes: float
) -> None:
    assert fit(quantization=quantization).weights / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_a_checkpoint_in_awq_takes_what_is_published(qwen: Base) -> None:
    weights = weight_bytes(replace(qwen, quantization=AWQ), SETUP)
    assert weights is not None
    assert sum(weights) / 1e9 == pytest.approx(5.6, abs=0.06)


def test_a_token_of_cache_takes_56_kib(fit: Callable[..., Fit]) -> None:
    assert fit().token == 56 * 1024


def test_a_token_of_an_fp8_cache_takes_half(fit: Callable[..., Fit]) -> None:
    assert fit(fp8_cache=True).token == 28 * 1024


@pytest.mark.parametrize(("rank", "megabytes"), [(16, 81), (64, 323)])
def test_an_adapter_slot_takes_5_mb_a_rank(
    fit: Callable[..., Fit], rank: int, megabytes: float
) -> None:
    assert fit(rank=rank).loras / 1e6 == pytest.approx(megabytes, abs=0.5)


def test_each_slot_takes_its_own_memory(fit: Callable[..., Fit]) -> None:
    assert fit(slots=3).loras == 3 * fit().loras


def test_two_gpus_halve_weights_and_cache(fit: Callable[..., Fit]) -> None:
    two = fit(tensor_parallel=2)
    assert two.weights / 1e9 == pytest.approx(7.6, abs=0.05)
    assert two.token == 28 * 1024


def test_tensor_parallelism_shards_only_one_half_of_an_adapter(fit: Callable[..., Fit]) -> None:
    assert fit().loras / 2 < fit(tensor_parallel=2).loras < fit().loras


def test_pipeline_stages_have_one_embedding_each(fit: Callable[..., Fit]) -> None:
    assert fit(pipeline_parallel=2).weights == pytest.approx(fit().weights / 2, rel=1e-6)


def test_key_value_heads_are_not_split_below_one(fit: Callable[..., Fit]) -> None:
    assert fit(tensor_parallel=7).token == 28 * 2 * 128 * 2


def test_two_t4_hold_180_000_tokens(fit: Callable[..., Fit]) -> None:
    two = fit(tensor_parallel=2)
    assert two.cache / two.token == pytest.approx(180_000, rel=0.05)


def test_a_sequence_is_rounded_up_to_blocks(fit: Callable[..., Fit]) -> None:
    assert fit(max_len=4097, block=128).sequence == (4096 + 128) * 56 * 1024


def test_float32_doubles_the_layers(fit: Callable[..., Fit]) -> None:
    assert fit(dtype="float32").weights == 2 * fit().weights


def test_a_7b_model_in_16_bits_does_not_fit_one_t4(qwen: Base) -> None:
    found = the_one(check_memory(qwen, SETUP, machine(T4), on_gpu=True))
    assert found.level == "error"
    assert found.what == (
        "does not fit: weights 14.2 GiB + LoRA 77.0 MiB (1 slot of rank 16) + computing 1.5 GiB "
        "+ cache 224.0 MiB (one sequence of 4096 tokens x 56 KiB) = 16.0 GiB, of 0.90 of 15.0 GiB"
    )


@pytest.mark.parametrize(
    ("gpus", "todo"),
    [
        ((T4,), "--load-4bit"),
        ((T4, T4), "--load-4bit or --tensor-parallel-size 2"),
        ((T4, T4, T4), "--load-4bit"),  # 28 heads do not divide by 3
        ((replace(T4, memory_mib=6144),), "needs 17.8 GiB of memory, or a smaller base"),
        (
            (replace(T4, memory_mib=17300),),
            "--gpu-memory-utilization 0.95 or --load-4bit",
        ),
    ],
)
def test_only_options_that_help_are_named(qwen: Base, gpus: tuple[Gpu, ...], todo: str) -> None:
    assert the_one(check_memory(qwen, SETUP, machine(*gpus), on_gpu=True)).todo == todo


def test_a_context_that_is_too_long_is_answered_with_one_that_fits(qwen: Base) -> None:
    demand = replace(SETUP, max_len=32768, quantization="bitsandbytes")
    small = replace(T4, memory_mib=8800)
    found = the_one(check_memory(qwen, demand, machine(small), on_gpu=True))
    assert found.todo == "lower --max-model-len to 18432"
    shorter = replace(demand, max_len=18432)
    assert the_one(check_memory(qwen, shorter, machine(small), on_gpu=True)).level == "warning"


def test_a_run_that_fits_says_how_many_sequences_do(qwen: Base) -> None:
    demand = replace(SETUP, quantization="bitsandbytes")
    found = the_one(check_memory(qwen, demand, machine(T4), on_gpu=True))
    assert found.level == "ok"
    assert found.what.endswith("the cache of 6.8 GiB holds 30 sequences")


def test_the_smallest_gpu_in_use_decides(qwen: Base) -> None:
    large = replace(T4, memory_mib=80_000)
    two = replace(SETUP, pipeline_parallel=2)
    assert the_one(check_memory(qwen, SETUP, machine(large, T4), on_gpu=True)).level == "ok"
    small = replace(T4, memory_mib=8000)
    assert the_one(check_memory(qwen, two, machine(large, small), on_gpu=True)).level == "error"


def test_memory_that_another_process_holds_is_named(qwen: Base) -> None:
    busy = replace(T4, memory_mib=81_920, free_mib=20_000)
    found = the_one(check_memory(qwen, SETUP, machine(busy), on_gpu=True))
    assert found.level == "error"
    assert "needs 72.0 GiB, but only 19.5 GiB are free" in found.what


@pytest.mark.parametrize(
    ("memory_mib", "limit_mib", "level"),
    [(32_000, None, "ok"), (16_000, None, "error"), (32_000, 16_000, "error")],
)
def test_the_ram_or_the_containers_share_of_it_must_hold_all(
    qwen: Base, memory_mib: int, limit_mib: int | None, level: str
) -> None:
    demand = replace(SETUP, cache_bytes=4 * GIB)
    here = machine(memory_mib=memory_mib, limit_mib=limit_mib)
    assert the_one(check_memory(qwen, demand, here, on_gpu=False)).level == level


def test_a_cache_that_is_too_large_for_the_ram_is_answered_with_its_bounds(qwen: Base) -> None:
    demand = replace(SETUP, cache_bytes=64 * GIB)
    found = the_one(check_memory(qwen, demand, machine(), on_gpu=False))
    least, most = (int(word) for word in found.todo.split() if word.isdigit())
    for size in (least, most):
        fitting = replace(demand, cache_bytes=size)
        assert (
            "does not fit" not in the_one(check_memory(qwen, fitting, machine(), on_gpu=False)).what
        )


def test_a_cache_below_one_sequence_does_not_fit(qwen: Base) -> None:
    demand = replace(SETUP, cache_bytes=100 * MIB)
    found = the_one(check_memory(qwen, demand, machine(), on_gpu=False))
    assert (found.level, found.todo) == ("error", "lower --max-model-len to 1792")


def test_ram_that_is_taken_at_the_moment_is_a_warning(qwen: Base) -> None:
    here = replace(machine(), available_mib=8_000)
    demand = replace(SETUP, cache_bytes=4 * GIB)
    found = the_one(check_memory(qwen, demand, here, on_gpu=False))
    assert found.level == "warning"
    assert "7.8 GiB are free" in found.what


def test_weights_are_counted_in_the_files_where_they_are(tmp_path: Path) -> None:
    base = read_base(str(write_base(tmp_path / "base")))
    values = sum(tensor.count for tensor in (base.tensors or {}).values())
    assert sum(weight_bytes(base, SETUP) or ()) == 2 * values


def test_a_tied_output_embedding_is_counted_once(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    before = weight_bytes(read_base(str(folder)), SETUP)
    shapes = base_shapes() | {"lm_head.weight": (64, 16)}
    write_safetensors(folder / "model.safetensors", shapes, "BF16")
    assert weight_bytes(read_base(str(folder)), SETUP) == before


def test_a_quantised_checkpoint_takes_what_it_takes_on_the_disk(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", quantization_config=AWQ)
    write_safetensors(folder / "model.safetensors", {"model.layers.0.x.qweight": (8, 8)}, "I16")
    assert weight_bytes(read_base(str(folder)), SETUP) == (128, 0)


@pytest.mark.parametrize("method", ["gguf", "compressed-tensors"])
def test_a_quantisation_not_known_here_is_not_guessed_at(qwen: Base, method: str) -> None:
    demand = replace(SETUP, quantization=method)
    found = the_one(check_memory(qwen, demand, machine(T4), on_gpu=True))
    assert found.level == "warning"
    assert found.what == f"not checked: the size of weights in {method} is unknown"
