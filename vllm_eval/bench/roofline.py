"""How far a run is from what the machine could do: the roofline model.

Attainable speed is the lesser of the arithmetic roof and bandwidth times arithmetic intensity
(Williams, Waterman, Patterson 2009, CACM 52(4)). Here it is turned round: the least time of a step
is the greater of its bytes over the bandwidth and its operations over the arithmetic roof.

A decoding step of B sequences reads every weight once (layers, output embedding, adapters of the
arms in it) and each sequence's cache; a token costs two operations a weight, and four for each
head's value and token of context (query times key, weight times value). Of a prompt only the last
token goes through the output embedding, which gives the answer's first token. Norms, sampling and
activations are left out. Less time than this is possible in two ways: weights that fit into a
processor's cache are not read from memory, and prompts computed in the same step as decoding, which
is counted apart here, share its reading of the weights.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from vllm_eval.bench.trial import Trial
from vllm_eval.inputs.adapters import WEIGHTS_FILE
from vllm_eval.inputs.base_model import read_base
from vllm_eval.inputs.plan import Plan
from vllm_eval.preflight.demand import Demand
from vllm_eval.preflight.memory import weight_bytes

ROUNDS = 5


TYPES = {"half": "float16", "float": "float32"}
"""vLLM's other words for a type."""


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What a token costs with one model and its adapters."""

    weight_bytes: int
    """Read in every step: layers and output embedding, as they lie in memory."""
    adapter_bytes: int
    """Of all adapters, in their files."""
    cache_bytes: int
    """Keys and values of one token."""
    flops: int
    """Of one token through the layers."""
    output_flops: int
    """Of one token through the output embedding."""
    context_flops: int
    """Of one token for each token of context."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time the machine allows."""

    batch: int
    """Sequences decoded in a step."""
    step_bytes: float
    step_flops: float
    step_s: float
    bound: Literal["memory", "arithmetic"]
    """Which roof a decoding step touches."""
    tokens_per_s: float
    """Most output tokens a second while decoding."""
    prefill_s: float
    """Least time for the prompts, cached tokens left out, and each answer's first token."""
    least_s: float
    """Prompts and decoding together."""


def dtype_of(plan: Plan) -> str:
    """PyTorch's name of the type the model is computed in; float32 where it is not given."""
    given = plan.config.dtype
    if given == "auto" and plan.base_model is not None:
        architecture = read_base(plan.base_model, weights=False).architecture
        given = architecture.dtype if architecture else "float32"
    return TYPES.get(given, given if given != "auto" else "float32")


def read_costs(plan: Plan) -> TokenCosts | None:
    """The costs, from `config.json`; None if it does not describe a dense decoder."""
    if plan.base_model is None:
        return None
    base = read_base(plan.base_model, weights=False)
    shape, dtype = base.architecture, dtype_of(plan)
    quantization = plan.config.engine_args.get("quantization")
    if plan.config.load_4bit:
        quantization = "bitsandbytes"
    demand = Demand(max_len=1, dtype=dtype, quantization=quantization)
    sizes = weight_bytes(base, demand)
    if shape is None or sizes is None:
        return None
    linear, vocabulary = sizes
    output = vocabulary // (1 if shape.tied else 2)
    width = 4 if dtype == "float32" else 2
    folders = [arm.adapter.path for arm in plan.arms if arm.adapter]
    return TokenCosts(
        weight_bytes=linear + output,
        adapter_bytes=sum((folder / WEIGHTS_FILE).stat().st_size for folder in folders),
        cache_bytes=2 * shape.layers * shape.kv_heads * shape.head_dim * width,
        flops=2 * shape.linear_parameters,
        output_flops=2 * shape.vocab * shape.hidden,
        context_flops=4 * shape.layers * shape.heads * shape.head_dim,
    )


def find_limit(
    costs: TokenCosts, speed: Speed, work: Trial, batch: int, arms: int, *, together: bool
) -> Limit:
    """The least time for `work` with at most `batch` sequences decoded at a time.

    `arms` includes the baseline; all are `together` in one batch, or a step is of one arm alone.
    """
    first = work.requests - work.retries  # a retry takes a place that became free
    batch = min(batch, first if together else first // arms)
    prompt = work.prompt_tokens / work.requests
    context = prompt + work.output_tokens / work.requests / 2
    # A case's arms are asked one after the other, so even a small batch has as many as fit; over
    # all steps each arm is in the same share of them, the baseline, which has no adapter, too.
    present = min(batch, arms) if together else 1
    adapters = costs.adapter_bytes * present / arms
    step_bytes = costs.weight_bytes + adapters + batch * context * costs.cache_bytes
    token_flops = costs.flops + costs.output_flops + context * costs.context_flops
    step_flops = batch * token_flops
    memory_s, arithmetic_s = step_bytes / speed.bytes_per_s, step_flops / speed.flops_per_s
    step_s = max(memory_s, arithmetic_s)
    computed = work.prompt_tokens - work.cached_tokens
    flops = computed * (costs.flops + prompt / 2 * costs.context_flops)
    flops += work.requests * costs.output_flops
    prefill_s = max(flops / speed.flops_per_s, costs.weight_bytes / speed.bytes_per_s)
    return Limit(
        batch=batch,
        step_bytes=step_bytes,
        step_flops=step_flops,
        step_s=step_s,
        bound="memory" if memory_s >= arithmetic_s else "arithmetic",
        tokens_per_s=batch / step_s,
        prefill_s=prefill_s,
        least_s=prefill_s + (work.output_tokens - work.requests) / batch * step_s,
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """A machine's roofs."""

    device: str
    dtype: str
    threads: int
    bytes_per_s: float
    flops_per_s: float


def measure_speed(dtype: str, env: Mapping[str, str]) -> Speed:
    """Measure in a separate process, which leaves no memory taken and no library loaded.

    `dtype` is PyTorch's name; what limits the engine's threads in its `env` limits these too.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, dtype, dict(env)).result()


def _measure(dtype: str, env: dict[str, str]) -> Speed:
    import os

    os.environ.update({name: value for name, value in env.items() if name not in os.environ})
    import torch  # noqa: TID251  nothing else reaches every device

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    kind: Any = getattr(torch, dtype)
    wait: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None
    count = (1 if cuda else 2**-2) * 2**30  # bytes; far more than any cache holds
    one = torch.ones(int(count) // 4, dtype=torch.float32, device=device)
    other = torch.empty_like(one)
    copy_s = _best(lambda: other.copy_(one), wait)
    size = 8192 if cuda else 1024
    left = torch.randn(size, size, device=device).to(kind)
    product = torch.empty_like(left)
    matmul_s = _best(lambda: torch.matmul(left, left, out=product), wait)
    return Speed(
        device=torch.cuda.get_device_name() if cuda else "cpu",
        dtype=dtype,
        threads=torch.get_num_threads(),
        bytes_per_s=2 * one.numel() * 4 / copy_s,
        flops_per_s=2 * size**3 / matmul_s,
    )


def _best(call: Callable[[], object], wait: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS + 1):  # the first is among them and never the best
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)
