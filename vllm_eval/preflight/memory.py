"""Whether a run fits into memory: weights, adapters, cache and room to compute.

Plain arithmetic over the base's files. Sources: `vllm/lora/layers/base_linear.py` (what an adapter
slot takes), `vllm/v1/kv_cache_interface.py` (a token of cache), the QLoRA paper (4 bits).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vllm_eval.config.machine import Machine
from vllm_eval.inputs.base_model import NO_VOCABULARY_LORA, Architecture, Base, is_vocabulary
from vllm_eval.inputs.safetensors_headers import FLOATS
from vllm_eval.preflight.demand import Demand
from vllm_eval.preflight.finding import Finding, error, ok, warning

MIB, GIB = 2**20, 2**30
ALLOWANCE = 3 * GIB // 2
"""Activations and CUDA graphs of a 7B model; on a CPU Python, PyTorch and vLLM themselves."""
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: an 8-bit scale for 64 weights, a 32-bit one for 256 scales."""
FEW_SEQUENCES = 4
SHORTEST = 1024
"""A shorter `max_model_len` is not worth suggesting."""
_ROW_PARALLEL = frozenset({"self_attn.o_proj", "mlp.down_proj"})
"""Modules whose inputs are split over the GPUs; the others' outputs are."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Bytes on one GPU, or in RAM."""

    weights: int
    loras: int
    token: int
    """Cache for one token."""
    sequence: int
    """Cache for one sequence of maximum length."""
    budget: int
    cache_bytes: int | None

    @property
    def fixed(self) -> int:
        """Everything except the cache."""
        return self.weights + self.loras + ALLOWANCE

    @property
    def needed(self) -> int:
        """The least that a run needs."""
        return self.fixed + max(self.sequence, self.cache_bytes or 0)

    @property
    def fits(self) -> bool:
        """Whether everything fits, with room for at least one sequence."""
        return self.needed <= self.budget and self.sequences >= 1

    @property
    def cache(self) -> int:
        """What the cache gets."""
        left = max(0, self.budget - self.fixed)
        return left if self.cache_bytes is None else self.cache_bytes

    @property
    def sequences(self) -> int:
        """How many sequences of maximum length fit at a time."""
        return self.cache // max(1, self.sequence)


def estimate(base: Base, demand: Demand, memory: int) -> Fit | None:
    """The arithmetic for one GPU of `memory` bytes; None if the base's files do not tell."""
    architecture, weights = base.architecture, weight_bytes(base, demand)
    if architecture is None or weights is None:
        return None
    linear, vocabulary = weights
    stages, shards = demand.pipeline_parallel, demand.tensor_parallel
    if stages > 1 and not architecture.tied:  # the first stage has one embedding, the last another
        vocabulary //= 2
    layers = math.ceil(architecture.layers / stages)
    values = max(1, architecture.kv_heads // shards) * architecture.head_dim
    token = layers * 2 * values * (1 if demand.fp8_cache else _bytes(demand))
    budget = memory if demand.cache_bytes is not None else int(memory * demand.utilization)
    slot = demand.rank * _lora_values(architecture, shards, layers)
    return Fit(
        weights=linear // demand.gpus + vocabulary // shards,
        loras=demand.slots * slot * (demand.lora_bytes or _bytes(demand)),
        token=token,
        sequence=math.ceil(demand.max_len / demand.block) * demand.block * token,
        budget=budget,
        cache_bytes=demand.cache_bytes,
    )


def adapter_bytes(base: Base, demand: Demand) -> int | None:
    """The most that one adapter takes in host memory, where it is not split; None if not known."""
    shape = base.architecture
    return demand.rank * _lora_values(shape, 1, shape.layers) * _bytes(demand) if shape else None


def weight_bytes(base: Base, demand: Demand) -> tuple[int, int] | None:
    """Bytes of the layers and of the embeddings once loaded, all GPUs together."""
    architecture, each = base.architecture, _bytes(demand)
    if base.quantization is not None and base.tensors is not None:
        return _stored(base)
    if base.tensors is not None:
        counts = {False: 0, True: 0}
        for name, tensor in base.tensors.items():
            if not (name.startswith("lm_head") and architecture and architecture.tied):
                counts[is_vocabulary(name)] += tensor.count
        linear, vocabulary = counts[False], counts[True]
    elif architecture is not None:
        linear, vocabulary = architecture.linear_parameters, architecture.vocabulary_parameters
    else:
        return None
    size = _quantised(base, demand, each)
    return None if size is None else (int(linear * size), vocabulary * each)


def check_memory(base: Base, demand: Demand, machine: Machine, *, on_gpu: bool) -> list[Finding]:
    """Whether a run with vLLM fits into this machine's memory, with the arithmetic."""
    if not on_gpu:
        demand = replace(demand, tensor_parallel=1, pipeline_parallel=1)
        machine = replace(machine, gpus=())  # none that would help
    where, free = _device(machine, demand.gpus, on_gpu=on_gpu)
    memory = memory_of(machine, demand.gpus, on_gpu=on_gpu)
    fit = estimate(base, demand, memory * MIB)
    if fit is None:
        return [_not_checked(where, base, demand)]
    share = "" if demand.cache_bytes is not None else f"{demand.utilization:.2f} of "
    sums = f"{arithmetic(fit, demand)}, of {share}{memory / 1024:.1f} GiB"
    if not fit.fits:
        return [error(where, f"does not fit: {sums}", _remedy(base, demand, fit, memory, machine))]
    findings = []
    taken = fit.needed if demand.cache_bytes is not None else fit.budget
    if free is not None and taken > free * MIB:
        what = f"needs {size(taken)}, but only {size(free * MIB)} are free: {sums}"
        if on_gpu:
            todo = "end the other process, or lower --gpu-memory-utilization"
            return [error(where, what, todo)]
        todo = "end other processes, or lower engine_args.kv_cache_memory_bytes"
        findings.append(warning(where, what, todo))
    holds = f"the cache of {size(fit.cache)} holds {fit.sequences} sequences"
    if fit.sequences < FEW_SEQUENCES:
        what = f"{holds} of {demand.max_len} tokens at a time, which is slow: {sums}"
        findings.append(warning(where, what, "lower --max-model-len, or give the cache more"))
    return findings or [ok(where, f"{sums}; {holds}")]


def check_batch(base: Base, demand: Demand, batch: int, machine: Machine) -> list[Finding]:
    """Whether model, adapters and one batch fit into memory with the transformers engine."""
    on_gpu = bool(machine.gpus)
    (where, free), memory = _device(machine, 1, on_gpu=on_gpu), memory_of(machine, 1, on_gpu=on_gpu)
    fit = estimate(base, demand, memory * MIB)
    if fit is None:
        return [_not_checked(where, base, demand)]
    needed = fit.fixed + batch * fit.sequence
    adapters = f" ({demand.slots} adapters of rank {demand.rank})" if demand.slots > 1 else ""
    sums = _sum(fit, adapters, batch * fit.sequence, f"{batch} x {demand.max_len} tokens")
    sums += f", of {size(memory * MIB)}"
    if needed > memory * MIB:
        todo = "--load-4bit, or a smaller base" if batch == 1 else "lower --batch-size"
        return [error(where, f"does not fit: {sums}", todo)]
    if free is not None and needed > free * MIB:
        return [warning(where, f"{size(free * MIB)} are free: {sums}", "end other processes")]
    return [ok(where, sums)]


def check_need_to_quantise(base: Base, demand: Demand, machine: Machine) -> list[Finding]:
    """A warning if the base would fit the GPUs without being quantised."""
    memory = min(gpu.memory_mib for gpu in machine.gpus[: demand.gpus])
    plain = replace(demand, quantization=None)
    fit = estimate(base, plain, memory * MIB)
    if base.quantization is not None or fit is None or fit.sequences < FEW_SEQUENCES:
        return []
    what = f"is on, and this base fits unquantised: {arithmetic(fit, plain)}, of "
    what += f"{demand.utilization:.2f} of {memory / 1024:.1f} GiB"
    todo = "-c load_4bit=false measures it as stored"
    return [warning("load_4bit", what, todo)] if fit.fits else []


def arithmetic(fit: Fit, demand: Demand) -> str:
    """The sum in words, for one GPU or the RAM."""
    cache = f"one sequence of {demand.max_len} tokens x {fit.token / 1024:.0f} KiB"
    if demand.cache_bytes is not None:
        cache = "kv_cache_memory_bytes"
    return _sum(fit, _slot_words(demand), fit.needed - fit.fixed, cache)


def _slot_words(demand: Demand) -> str:
    """What the adapters' memory is for."""
    slots = f"{demand.slots} slot{'s' if demand.slots > 1 else ''} of rank {demand.rank}"
    many = demand.adapters and demand.adapters > demand.slots
    return f" ({demand.adapters} adapters in {slots})" if many else f" ({slots})"


def _sum(fit: Fit, slots: str, cache: int, what: str) -> str:
    parts = f"weights {size(fit.weights)} + LoRA {size(fit.loras)}{slots}"
    parts += f" + computing {size(ALLOWANCE)} + cache {size(cache)} ({what})"
    return f"{parts} = {size(fit.fixed + cache)}"


def size(count: int) -> str:
    """Bytes in GiB, as in vLLM's own log, or in MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _remedy(base: Base, demand: Demand, fit: Fit, memory: int, machine: Machine) -> str:
    """The options that would make it fit, by the same arithmetic."""
    left = (demand.cache_bytes or fit.budget - fit.fixed) // fit.token
    if fit.fixed + (demand.cache_bytes or 0) <= fit.budget and left >= SHORTEST:
        return f"lower --max-model-len to {left // 256 * 256}"
    if demand.cache_bytes is not None and fit.fixed + fit.sequence <= fit.budget:
        least, most = fit.sequence, fit.budget - fit.fixed
        return f"set engine_args.kv_cache_memory_bytes to between {least} and {most}"
    many = len(machine.gpus)
    trials = {
        "--gpu-memory-utilization 0.95": replace(demand, utilization=0.95),
        "--load-4bit": replace(demand, quantization="bitsandbytes"),
        f"--tensor-parallel-size {many}": replace(demand, tensor_parallel=max(1, many)),
    }
    if demand.quantization or base.quantization or not machine.gpus:
        del trials["--load-4bit"]
    shape = base.architecture
    works = [
        option
        for option, trial in trials.items()
        if trial.gpus <= max(1, many) and not (shape and shape.uneven(trial.tensor_parallel))
        if (new := estimate(base, trial, memory * MIB)) and new.fits
    ]
    slots = (fit.budget - fit.needed + fit.loras) // (fit.loras // demand.slots)
    if machine.gpus and slots >= 1:
        works.append(f"lower engine_args.max_loras to {slots}")
    elif slots > 1:  # on a CPU, one stays empty
        works.append(f"compare at most {slots - 1} adapters in a run")
    least = fit.needed if demand.cache_bytes is not None else int(fit.needed / demand.utilization)
    return " or ".join(works) or f"needs {size(least)} of memory, or a smaller base"


def _bytes(demand: Demand) -> int:
    """Bytes of a computed value; `auto` uses 16 bits even for a float32 checkpoint."""
    return 4 if demand.dtype in ("float32", "float") else 2


def _quantised(base: Base, demand: Demand, plain: int) -> float | None:
    """Bytes of a weight in a layer; None for an unknown method."""
    stored, method = base.quantization or {}, _method(base, demand)
    bits, group = stored.get("bits"), stored.get("group_size")
    if method == "none":
        return plain
    if method == "bitsandbytes":
        return 1.0 if stored.get("load_in_8bit") else NF4
    if method.startswith("fp8"):
        return 1.0
    if method in ("awq", "gptq") and bits in (2, 3, 4, 8):
        groups = group if isinstance(group, int) and group > 0 else 1024
        return float(bits / 8 + (2 + bits / 8) / groups)
    return None


def _method(base: Base, demand: Demand) -> str:
    stored = base.quantization or {}
    return str(stored.get("quant_method") or demand.quantization or "none")


def memory_of(machine: Machine, gpus: int, *, on_gpu: bool) -> int:
    """MiB of the smallest GPU in use, or of the RAM that this process may use."""
    if on_gpu:
        return min(gpu.memory_mib for gpu in machine.gpus[:gpus])
    return min(machine.memory_mib, machine.limit_mib or machine.memory_mib)


def _device(machine: Machine, gpus: int, *, on_gpu: bool) -> tuple[str, int | None]:
    """The memory's name, and the free MiB if known."""
    if on_gpu:
        gpu = min(machine.gpus[:gpus], key=lambda gpu: gpu.memory_mib)
        return f"memory of {gpu.name}", gpu.free_mib
    return "memory", machine.available_mib


def _not_checked(where: str, base: Base, demand: Demand) -> Finding:
    if base.folder is None:
        why = f"the base {base.name} is not in the cache yet"
    elif base.architecture is None:
        why = f"the base {base.name} is not a dense decoder"
    else:
        why = f"the size of weights in {_method(base, demand)} is unknown"
    return warning(where, f"not checked: {why}", "the engine will say so if it is too large")


def _stored(base: Base) -> tuple[int, int]:
    """A quantised checkpoint is loaded as stored, its other parts in 16 bits."""
    sizes = {False: 0, True: 0}
    for name, tensor in (base.tensors or {}).items():
        count = min(tensor.size, 2 * tensor.count) if tensor.dtype in FLOATS else tensor.size
        sizes[is_vocabulary(name)] += count
    return sizes[False], sizes[True]


def _lora_values(architecture: Architecture, shards: int, layers: int) -> int:
    """Values of one slot per rank; every linear module gets one, trained or not."""
    values = 0
    for name, (inputs, outputs) in architecture.layer_modules.items():
        split = name in _ROW_PARALLEL
        values += layers * (inputs // shards + outputs if split else inputs + outputs // shards)
    if architecture.model_type not in NO_VOCABULARY_LORA:
        values += 2 * (architecture.hidden + architecture.vocab)
    return values
