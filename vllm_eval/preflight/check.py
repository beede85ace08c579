"""The preflight: everything left of the engine, looked at before any model is loaded.

Each finding says what, where and what to do. A run stops at an error and shows the warnings.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from vllm_eval.config import machine, profiles
from vllm_eval.config.settings import quantization_of, resolve_path, whole
from vllm_eval.engines.tokens import open_counter
from vllm_eval.errors import InputError
from vllm_eval.inputs import adapters, cases
from vllm_eval.inputs.base_model import missing_modules, read_base
from vllm_eval.inputs.plan import data_path
from vllm_eval.preflight import memory
from vllm_eval.preflight.adapter import LARGEST_RANK, check_adapter
from vllm_eval.preflight.demand import as_loaded, demand_of
from vllm_eval.preflight.finding import Finding, error, from_error, ok, warning
from vllm_eval.preflight.needs import (
    PEFT_RELEASE,
    check_libraries,
    check_ray,
    check_servers,
    check_versions,
    needs_of,
)
from vllm_eval.records import BASELINE, Arm
from vllm_eval.tasks import open_task
from vllm_eval.tasks.grammar import make_grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllm_eval.config.machine import Machine, Software
    from vllm_eval.config.settings import Config
    from vllm_eval.inputs.base_model import Base
    from vllm_eval.inputs.plan import Plan
    from vllm_eval.preflight.demand import Demand
    from vllm_eval.tasks import Task

SHOWN_IDS = 3


_T = TypeVar("_T")
NO_MODEL_HERE = ("openai", "scripted")
BYTES_PER_TOKEN = 6
COPIES = 3
"""An answer is in the journal, in a result file and, packed, in the ZIP."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What could be read of a plan; None where it could not."""

    config: Config
    task: Task | None
    dataset: cases.Dataset | None
    arms: tuple[Arm, ...]
    base_model: str | None


def check_config(
    config: Config, hardware: Machine | None = None, software: Software | None = None
) -> list[Finding]:
    """Check whatever of a configuration can be read; what cannot is a finding of its own."""
    failed: list[Finding] = []
    template = resolve_path(config.prompt_template) if config.prompt_template else None
    task = _tried(failed, lambda: open_task(config.task, template))
    dataset = None
    if known := task or _tried([], lambda: open_task(config.task)):  # the template may be at fault
        data, draw = data_path(config, known), (config.max_samples, config.seed)
        dataset = _tried(failed, lambda: cases.open_dataset(data, *draw, known.declaration))
    free = _open_arms(config, failed)
    grammar = make_grammar(known.declaration).text if known else ""
    arms = _tried(failed, lambda: adapters.constrain_arms(free, config, grammar)) or free
    base_model = None
    if config.answering not in NO_MODEL_HERE and (config.base_model or len(arms) > 1):
        base_model = _tried(failed, lambda: adapters.base_of(arms, config.base_model))
    parts = Parts(config, task, dataset, arms, base_model)
    return failed + _check(parts, hardware or machine.detect(), software or machine.installed())


def check_plan(
    plan: Plan, hardware: Machine | None = None, software: Software | None = None
) -> list[Finding]:
    """Check a plan whose parts could all be read.

    Args:
        plan: what would run.
        hardware: this machine by default.
        software: what is installed by default.
    """
    parts = Parts(plan.config, plan.task, plan.dataset, plan.arms, plan.base_model)
    return _check(parts, hardware or machine.detect(), software or machine.installed())


def refuse(findings: Iterable[Finding]) -> None:
    """Do nothing where no finding is an error.

    Raises:
        InputError: one is; its message holds all of them, one a line.
    """
    if errors := [finding.line for finding in findings if finding.level == "error"]:
        count = f"{len(errors)} finding{'s' if len(errors) > 1 else ''}"
        raise InputError("\n".join([f"check: the run cannot start, {count}:", *errors]))


def check_room(where: str, free: int, least: int, most: int) -> list[Finding]:
    """Bytes free where the run folder is to be, against those the answers may take."""
    sums = f"{memory.size(free)} free, answers take {memory.size(least)} to {memory.size(most)}"
    if free < least:
        return [error(where, sums, "free space or give --output-dir")]
    if free < most:
        return [warning(where, sums, "free space, or answers that fail often may fill the disk")]
    return [ok(where, f"writable, {sums}")]


def _check(parts: Parts, hardware: Machine, software: Software) -> list[Finding]:
    findings = []
    if parts.dataset is not None:
        of = f"{parts.dataset.total} records, {len(parts.dataset.drawn)} drawn"
        findings.append(ok(str(parts.dataset.path), of))
    findings += _check_output(parts) + check_servers(parts.config, parts.arms)
    findings += check_ray(parts.config)
    if parts.config.answering in NO_MODEL_HERE:
        return findings
    findings += _check_profile(parts.config, hardware, software)
    findings += _check_software(parts, hardware, software)
    if parts.base_model is None:
        return findings
    config, args = parts.config, parts.config.engine_args
    revision, dummy = args.get("revision"), args.get("load_format") == "dummy"
    name = parts.base_model
    base = _tried(findings, lambda: read_base(name, revision, weights=not dummy))
    if base is None:
        return findings
    demand, release = demand_of(config, parts.arms, base, on_gpu=False), software.release
    most = whole(args.get("max_lora_rank"), LARGEST_RANK)
    if parts.config.engine == "transformers":
        demand = as_loaded(base, demand, len(parts.arms) - 1)
        release, most = PEFT_RELEASE, LARGEST_RANK
    findings += _check_base(base, demand)
    for arm in parts.arms:
        if arm.adapter is not None and arm.variant_of is None:
            findings += check_adapter(arm.adapter, base, release, most)
    findings += _check_memory(parts, base, hardware, software)
    return findings + _check_prompts(parts, base)


def _check_software(parts: Parts, hardware: Machine, software: Software) -> list[Finding]:
    if parts.config.answering == "vllm":
        return check_versions(hardware, software, needs_of(parts.config))
    four_bit = quantization_of(parts.config) == "bitsandbytes"
    return check_libraries(hardware, software, four_bit=four_bit)


def _check_memory(parts: Parts, base: Base, hardware: Machine, software: Software) -> list[Finding]:
    if parts.config.engine == "transformers":
        demand = demand_of(parts.config, parts.arms, base, on_gpu=bool(hardware.gpus))
        demand = as_loaded(base, demand, len(parts.arms) - 1)
        return memory.check_batch(base, demand, parts.config.batch_size, hardware)
    on_gpu = not software.for_cpu if software.vllm else bool(hardware.gpus)
    if (on_gpu and not hardware.gpus) or parts.config.ray_address:  # another machine's memory
        return []
    demand = demand_of(parts.config, parts.arms, base, on_gpu=on_gpu)
    findings = memory.check_memory(base, demand, hardware, on_gpu=on_gpu)
    if parts.config.load_4bit and on_gpu:
        findings += memory.check_need_to_quantise(base, demand, hardware)
    return findings


def _check_profile(config: Config, hardware: Machine, software: Software) -> list[Finding]:
    """What was chosen and why; loudly where that decides what is measured."""
    choice = profiles.choose(hardware, for_cpu=software.leaves_gpus(config.answering))
    what = f"{choice.profile} for {choice.reason}"
    if config.profile != choice.profile:
        what = f"{config.profile}, as configured; auto takes {what}"
    findings = [ok("profile", what)]
    if method := quantization_of(config):
        what = f"the base is quantised while loading ({method}), and both arms are measured so"
        todo = "--profile gpu -c load_4bit=false measures it as it is stored, where that fits"
        findings.append(warning("quantization", what, todo))
    return findings


def _check_base(base: Base, demand: Demand) -> list[Finding]:
    where = f"base {base.name}"
    if base.folder is None:
        what = (
            "could not be fetched from the hub, so its sizes, tokenizer and memory were not checked"
        )
        return [warning(where, what, "download it, or give --base-model FOLDER")]
    architecture, findings = base.architecture, []
    if architecture is None:
        what = "config.json describes no dense decoder, so little of it was checked"
        return [warning(where, what, "see that the installed vLLM knows it")]
    stored = (base.quantization or {}).get("quant_method")
    if stored not in (None, "bitsandbytes") and demand.quantization == "bitsandbytes":
        what = f"is stored quantised ({stored}), so bitsandbytes cannot quantise it again"
        findings.append(error(where, what, "give -c load_4bit=false"))
    if stored == "bitsandbytes" and demand.tensor_parallel > 1:
        what = "is stored in bitsandbytes, which vLLM does not split over GPUs"
        findings.append(error(where, what, "give the base it was made from, with --load-4bit"))
    if missing := missing_modules(base):
        what = f"the weights lack {len(missing)} modules that config.json promises ({missing[0]})"
        findings.append(error(where, what, "copy the model again"))
    if uneven := architecture.uneven(demand.tensor_parallel):
        what = f"{uneven} over {demand.tensor_parallel} GPUs"
        findings.append(error(where, what, "give a --tensor-parallel-size that divides them"))
    if architecture.max_len is not None and demand.max_len > architecture.max_len:
        what = f"was made for {architecture.max_len} tokens, max_model_len is {demand.max_len}"
        findings.append(error(where, what, f"lower --max-model-len to {architecture.max_len}"))
    sizes = f"{architecture.model_type}, {architecture.layers} layers"
    return findings or [ok(where, f"{sizes}, {stored or architecture.dtype}")]


def _check_prompts(parts: Parts, base: Base) -> list[Finding]:
    task, dataset, config = parts.task, parts.dataset, parts.config
    if task is None or dataset is None or base.folder is None:
        return []
    tokenizer = resolve_path(str(config.engine_args.get("tokenizer") or base.folder))
    prompts = ((case.id, task.prompt(case)) for case in cases.read_cases(dataset))
    limit = demand_of(config, parts.arms, base, on_gpu=False).max_len
    try:
        count = open_counter(tokenizer, config.prompt_format, config.engine_env)
        return check_lengths(prompts, count, limit, config.max_new_tokens)
    except ImportError:
        what = "lengths were not checked: transformers is not installed"
        return [warning("prompts", what, "the engine refuses what is too long, case by case")]
    except InputError as failed:
        return [from_error(failed)]


def _check_output(parts: Parts) -> list[Finding]:
    config = parts.config
    folder = resolve_path(config.output_dir).absolute()
    where = f"output_dir {folder}"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as failed:
        what = f"cannot write to {there}: {failed.strerror}"
        return [error(where, what, "give --output-dir")]
    drawn = len(parts.dataset.drawn) if parts.dataset else 0
    answers = drawn * max(2, len(parts.arms)) * config.samples_per_case
    least = answers * config.max_new_tokens * BYTES_PER_TOKEN * COPIES
    return check_room(where, free, least, least * (1 + config.retries))


def _tried(findings: list[Finding], call: Callable[[], _T]) -> _T | None:
    try:
        return call()
    except InputError as failed:
        findings.append(from_error(failed))
        return None


def _open_arms(config: Config, findings: list[Finding]) -> tuple[Arm, ...]:
    """All arms; where one is broken, the others, and a finding for each broken one."""
    try:
        return adapters.open_arms(config)
    except InputError as whole:
        arms, before = [Arm(BASELINE)], len(findings)
        for given in config.adapters:
            alone = config.model_copy(update={"adapters": (given,)})
            arms += (_tried(findings, partial(adapters.open_arms, alone)) or ())[1:]
        if len(findings) == before:
            findings.append(from_error(whole))
        return tuple(arms)


def check_lengths(
    prompts: Iterable[tuple[str, str]],
    count: Callable[[str], int],
    max_len: int,
    max_new_tokens: int,
) -> list[Finding]:
    """Case ids and prompts against the length the engine takes, answer included."""
    longest, total = 0, 0
    beyond: list[str] = []
    for case_id, prompt in prompts:
        tokens = count(prompt)
        total += 1
        longest = max(longest, tokens)
        if tokens == 0 or tokens + max_new_tokens > max_len:
            beyond.append(case_id)
    sums = f"longest {longest} tokens + {max_new_tokens} for the answer, of {max_len}"
    if not beyond:
        return [ok("prompts", f"{total} checked, {sums}")]
    named = ", ".join(repr(name[:60]) for name in beyond[:SHOWN_IDS])
    what = f"{len(beyond)} of {total} are empty or too long ({named}): {sums}"
    todo = f"raise --max-model-len to {longest + max_new_tokens}, or lower --max-new-tokens"
    return [(error if len(beyond) == total else warning)("prompts", what, todo)]
