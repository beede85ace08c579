"""How many adapters the engine holds ready at a time: decided once, for the check and for the run.

vLLM answers a request with an adapter that is in one of `max_loras` slots of the device, and keeps
`max_cpu_loras` adapters in host memory, from which a slot is filled. A slot takes as much for each
linear module of the base, trained or not (`memory.estimate`). An adapter without a slot only waits
for its turn, while a small cache slows down every answer. So the cache comes first:

    slots = (budget - weights - computing - cache) / slot, from 1 to the number of adapters

where the cache is that of `USEFUL_BATCH` sequences of maximum length, or the configured one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm_eval.config import machine
from vllm_eval.config.machine import Machine, Software
from vllm_eval.config.settings import Config, whole
from vllm_eval.inputs.plan import Draft
from vllm_eval.preflight.demand import Demand, demand_of
from vllm_eval.preflight.finding import Finding, error, ok
from vllm_eval.preflight.memory import MIB, adapter_bytes, estimate, memory_of
from vllm_eval.records import BASELINE

USEFUL_BATCH = 16
"""Sequences of maximum length: some 30 answers of ordinary length decode side by side."""
HOST_SHARE = 0.5
"""Of the host's free memory, for adapters without a slot."""
FIXED = (0, 33)
"""The first release of vLLM whose CPU build keeps base rows apart from the last slot."""


@dataclass(frozen=True, slots=True)
class Slots:
    """What was decided, for the engine and for the order of the cases."""

    adapters: int
    at_once: int
    """How many of them can answer side by side."""
    args: Mapping[str, int] = field(default_factory=dict)
    """The options that the engine must start with; what is configured wins."""

    def applied(self, config: Config) -> Config:
        """The configuration to open the engine with; it is not the one to be stored."""
        return config.model_copy(update={"engine_args": {**self.args, **config.engine_args}})


def choose_slots(
    draft: Draft, hardware: Machine | None = None, software: Software | None = None
) -> Slots:
    """Decide from base, demand and machine; hardware and software are this machine's by default.

    The transformers engine holds all adapters. A server has slots of its own, and `max_loras` can
    say how many, for the order. On a CPU all have a slot, and one more stays empty, because of the
    defect that `check_slots` names.
    """
    config, args = draft.config, draft.config.engine_args
    adapters = len({arm.model for arm in draft.arms} - {BASELINE})
    given = whole(args.get("max_loras"), 0)
    host = whole(args.get("max_cpu_loras"), 0)
    at_once = min(adapters, given or adapters)
    if config.answering == "transformers" or not adapters:
        return Slots(adapters, adapters)
    if config.answering != "vllm":
        return Slots(adapters, at_once)
    hardware, software = hardware or machine.detect(), software or machine.installed()
    if not uses_gpu(hardware, software):
        return Slots(adapters, at_once, {"max_loras": given or adapters + 1})
    most = min(adapters, host or adapters)
    chosen = given or min(most, _that_fit(draft, hardware, adapters))
    held = max(chosen, _held_in_host(draft, hardware, adapters))
    return Slots(adapters, min(adapters, chosen), {"max_loras": chosen, "max_cpu_loras": held})


def uses_gpu(hardware: Machine, software: Software) -> bool:
    """Whether vLLM will compute on a GPU here."""
    return not software.for_cpu if software.vllm else bool(hardware.gpus)


def demand_with(draft: Draft, slots: Slots, demand: Demand) -> Demand:
    """The demand with the chosen slots."""
    chosen = slots.applied(draft.config).engine_args.get("max_loras")
    return replace(demand, slots=whole(chosen, demand.slots), adapters=slots.adapters)


def check_slots(draft: Draft, slots: Slots, software: Software, *, on_gpu: bool) -> list[Finding]:
    """Whether the configured slots can be used, and what it means if not all adapters have one."""
    args, adapters = slots.applied(draft.config).engine_args, slots.adapters
    given, host = whole(args.get("max_loras"), 0), args.get("max_cpu_loras")
    if adapters and not on_gpu and given <= adapters and software.release < FIXED:
        what = f"{given} for {adapters} adapter{'s' if adapters > 1 else ''} leaves no spare slot: "
        what += "CPU builds of vLLM up to 0.32 answer the base with the adapter of the last one"
        todo = f"leave it out, or give at least {adapters + 1}"
        return [error("engine_args.max_loras", what, todo)]
    if isinstance(host, int) and host < given:
        what = f"{host} is less than the {given} slots, each of which holds a copy of one"
        return [error("engine_args.max_cpu_loras", what, f"leave it out, or give at least {given}")]
    if slots.at_once >= adapters:
        return []
    what = f"{adapters} take turns in {given} slot{'s' if given > 1 else ''}: each is loaded once, "
    what += "answers all cases and makes room for the next; the base is asked beside the first"
    if isinstance(host, int) and host < adapters:
        what += f"; host memory keeps {host}, the others are read from disk again"
    return [ok("adapters", what)]


def _that_fit(draft: Draft, hardware: Machine, adapters: int) -> int:
    """How many slots leave a useful cache; all where the arithmetic cannot be done."""
    if draft.base is None or not hardware.gpus or draft.config.ray_address:
        return adapters  # the memory is another machine's
    demand = demand_of(draft.config, draft.arms, draft.base, on_gpu=True)
    memory = memory_of(hardware, demand.gpus, on_gpu=True)
    fit = estimate(draft.base, replace(demand, slots=1), memory * MIB)
    if fit is None or not fit.loras:
        return adapters
    batch = min(USEFUL_BATCH, whole(draft.config.engine_args.get("max_num_seqs"), USEFUL_BATCH))
    cache = batch * fit.sequence if fit.cache_bytes is None else fit.cache_bytes
    return min(adapters, max(1, (fit.budget - fit.fixed + fit.loras - cache) // fit.loras))


def _held_in_host(draft: Draft, hardware: Machine, adapters: int) -> int:
    """How many adapters host memory can keep, so that none of them is read twice from disk."""
    free = hardware.available_mib or memory_of(hardware, 0, on_gpu=False)
    if draft.base is None or draft.config.ray_address:
        return adapters
    demand = demand_of(draft.config, draft.arms, draft.base, on_gpu=True)
    each = adapter_bytes(draft.base, demand)
    if not each:
        return adapters
    # Each GPU has a process of its own, with all of every adapter.
    return min(adapters, int(HOST_SHARE * free * MIB / (each * demand.gpus)))
