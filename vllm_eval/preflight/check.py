"""The preflight: everything before the engine, checked before any model is loaded.

Each finding says what, where and what to do. A run stops at an error and shows the warnings.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable

from vllm_eval.config import machine, profiles
from vllm_eval.config.machine import Machine, Software
from vllm_eval.config.settings import Config, quantization_of, resolve_path, whole
from vllm_eval.engines import check_options
from vllm_eval.engines.tokens import open_counter, too_long
from vllm_eval.errors import InputError
from vllm_eval.inputs.adapters import loaded_adapters
from vllm_eval.inputs.base_model import Base, missing_modules
from vllm_eval.inputs.cases import read_cases
from vllm_eval.inputs.plan import Draft, read_plan
from vllm_eval.preflight import memory, needs
from vllm_eval.preflight.adapter import LARGEST_RANK, check_adapter, check_lora
from vllm_eval.preflight.adapter_tokenizer import check_template, check_tokenizer
from vllm_eval.preflight.baseline import check_baseline
from vllm_eval.preflight.demand import Demand, as_loaded, demand_of
from vllm_eval.preflight.finding import Finding, Findings, error, from_error, ok, warning
from vllm_eval.preflight.gate import check_gate
from vllm_eval.preflight.slots import check_slots, choose_slots, demand_with, uses_gpu
from vllm_eval.records import BASELINE, free_arms

SHOWN_IDS = 3
ADAPTERS = "adapters"
"""Where the findings on what became of the given adapters are."""
NO_MODEL_HERE = ("openai", "scripted")
BYTES_PER_TOKEN = 6
COPIES = 3
"""An answer is in the journal, in a result file and, compressed, in the ZIP."""


def check_config(
    config: Config, hardware: Machine | None = None, software: Software | None = None
) -> Findings:
    """Check whatever of a configuration can be read; anything else is a finding of its own.

    A run checks the baseline that it takes from another one only where it takes it.
    """
    draft = read_plan(config)
    return Findings((*check_plan(draft, hardware, software), *check_baseline(draft)))


def check_plan(
    draft: Draft, hardware: Machine | None = None, software: Software | None = None
) -> Findings:
    """Check what a run would start from; hardware and software are this machine's by default."""
    here, there = hardware or machine.detect(), software or machine.installed()
    return Findings((*map(from_error, draft.problems), *_check(draft, here, there)))


def refuse(findings: Iterable[Finding]) -> None:
    """Do nothing if no finding is an error.

    Raises:
        InputError: there are errors; the message lists them, one per line. A single error has its
            own message alone, and is the exception that it was made from, if any.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if len(errors) == 1:
        raise errors[0].cause or InputError(errors[0].message)
    if errors:
        head = f"check: the run cannot start, {len(errors)} findings:"
        raise InputError("\n".join([head, *(finding.line for finding in errors)]))


def check_room(where: str, free: int, least: int, most: int) -> list[Finding]:
    """Free bytes where the run folder will be, against those that the answers may take."""
    sums = f"{memory.size(free)} free, answers take {memory.size(least)} to {memory.size(most)}"
    if free < least:
        return [error(where, sums, "free some space, or give --output-dir")]
    if free < most:
        return [warning(where, sums, "free some space: failed answers could fill the disk")]
    return [ok(where, f"writable, {sums}")]


def _check(draft: Draft, hardware: Machine, software: Software) -> list[Finding]:
    findings, config, base = [], draft.config, draft.base
    if draft.dataset is not None:
        of = f"{draft.dataset.total} records, {len(draft.dataset.drawn)} drawn"
        findings.append(ok(str(draft.dataset.path), of))
        students = [name for name in free_arms(arm.name for arm in draft.arms) if name != BASELINE]
        findings += check_gate(config.gate, len(draft.dataset.drawn), len(students))
    for note in draft.notes:
        findings.append(Finding("warning" if note.todo else "ok", ADAPTERS, note.what, note.todo))
    findings += _check_output(draft) + needs.check_servers(config, draft.arms)
    findings += needs.check_ray(config)
    try:
        check_options(config)
    except InputError as failed:
        findings.append(from_error(failed))
    if config.answering in NO_MODEL_HERE:
        return findings
    findings += _check_profile(config, hardware, software)
    findings += _check_software(config, hardware, software)
    if base is None:
        return findings
    demand, release = demand_of(config, draft.arms, base, on_gpu=False), software.release
    most = whole(config.engine_args.get("max_lora_rank"), LARGEST_RANK)
    if config.engine == "transformers":
        demand = as_loaded(base, demand, len(loaded_adapters(draft.arms)))
        release, most = needs.PEFT_RELEASE, LARGEST_RANK
    findings += _check_base(base, demand)
    if config.answering == "vllm" and any(arm.adapter for arm in draft.arms):
        findings += check_lora(base, software)
    for arm in draft.arms:
        if arm.adapter is not None and arm.variant_of is None:
            findings += check_adapter(arm.adapter, base, release, most)
            findings += check_tokenizer(arm.adapter, base, config)
    findings += _check_memory(draft, base, hardware, software)
    return findings + _check_prompts(draft, base)


def _check_software(config: Config, hardware: Machine, software: Software) -> list[Finding]:
    if config.answering == "vllm":
        return needs.check_versions(hardware, software, needs.needs_of(config))
    four_bit = quantization_of(config) == "bitsandbytes"
    return needs.check_libraries(hardware, software, four_bit=four_bit)


def _check_memory(draft: Draft, base: Base, hardware: Machine, software: Software) -> list[Finding]:
    if draft.config.engine == "transformers":
        demand = demand_of(draft.config, draft.arms, base, on_gpu=bool(hardware.gpus))
        demand = as_loaded(base, demand, len(loaded_adapters(draft.arms)))
        return memory.check_batch(base, demand, draft.config.batch_size, hardware)
    on_gpu, slots = uses_gpu(hardware, software), choose_slots(draft, hardware, software)
    findings = check_slots(draft, slots, software, on_gpu=on_gpu)
    if (on_gpu and not hardware.gpus) or draft.config.ray_address:  # another machine's memory
        return findings
    demand = demand_of(draft.config, draft.arms, base, on_gpu=on_gpu)
    demand = demand_with(draft, slots, demand)
    findings += memory.check_memory(base, demand, hardware, on_gpu=on_gpu)
    if draft.config.load_4bit and on_gpu:
        findings += memory.check_need_to_quantise(base, demand, hardware)
    return findings


def _check_profile(config: Config, hardware: Machine, software: Software) -> list[Finding]:
    """The profile and why it was chosen; a warning if it decides what is measured."""
    choice = profiles.choose(hardware, for_cpu=software.leaves_gpus(config.answering))
    what = f"{choice.profile} for {choice.reason}"
    if config.profile != choice.profile:
        what = f"{config.profile}, as configured; auto takes {what}"
    findings = [ok("profile", what)]
    if method := quantization_of(config):
        what = f"the base is quantised while loading ({method}), and both arms are measured on it"
        todo = "--profile gpu -c load_4bit=false measures it as stored, if that fits"
        findings.append(warning("quantization", what, todo))
    return findings


def _check_base(base: Base, demand: Demand) -> list[Finding]:
    where = f"base {base.name}"
    if base.folder is None:
        what = "could not be fetched from the hub: sizes, tokenizer and memory were not checked"
        return [warning(where, what, "download it, or give --base-model FOLDER")]
    architecture, findings = base.architecture, []
    if architecture is None:
        what = "config.json does not describe a dense decoder, so few checks were possible"
        return [warning(where, what, "make sure that the installed vLLM supports it")]
    stored = (base.quantization or {}).get("quant_method")
    if stored not in (None, "bitsandbytes") and demand.quantization == "bitsandbytes":
        what = f"is stored quantised ({stored}), so bitsandbytes cannot quantise it again"
        findings.append(error(where, what, "give -c load_4bit=false"))
    if stored == "bitsandbytes" and demand.tensor_parallel > 1:
        what = "is stored in bitsandbytes, which vLLM does not split over GPUs"
        findings.append(error(where, what, "give the base it was made from, with --load-4bit"))
    if missing := missing_modules(base):
        what = f"the weights lack {len(missing)} modules of config.json ({missing[0]})"
        findings.append(error(where, what, "copy the model again"))
    if uneven := architecture.uneven(demand.tensor_parallel):
        what = f"{uneven} cannot be split over {demand.tensor_parallel} GPUs"
        findings.append(error(where, what, "give a --tensor-parallel-size that divides them"))
    if architecture.max_len is not None and demand.max_len > architecture.max_len:
        what = f"was made for {architecture.max_len} tokens, but max_model_len is {demand.max_len}"
        findings.append(error(where, what, f"lower --max-model-len to {architecture.max_len}"))
    sizes = f"{architecture.model_type}, {architecture.layers} layers"
    return findings or [ok(where, f"{sizes}, {stored or architecture.dtype}")]


def _check_prompts(draft: Draft, base: Base) -> list[Finding]:
    task, dataset, config = draft.task, draft.dataset, draft.config
    if task is None or dataset is None or base.folder is None:
        return []
    tokenizer = resolve_path(str(config.engine_args.get("tokenizer") or base.folder))
    prompts = ((case.id, task.prompt(case)) for case in read_cases(dataset))
    limit = demand_of(config, draft.arms, base, on_gpu=False).max_len
    try:
        count = open_counter(tokenizer, config)
        findings = check_template(tokenizer, config.chat_template_kwargs)
        return findings + check_lengths(prompts, count, limit, config.max_new_tokens)
    except ImportError:
        what = "lengths were not checked: transformers is not installed"
        return [warning("prompts", what, "the engine will refuse too long prompts, case by case")]
    except InputError as failed:
        return [from_error(failed)]


def _check_output(draft: Draft) -> list[Finding]:
    config, folder = draft.config, resolve_path(draft.config.output_dir).absolute()
    where = f"output_dir {folder}"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as failed:
        return [error(where, f"cannot write to {there}: {failed.strerror}", "give --output-dir")]
    drawn = len(draft.dataset.drawn) if draft.dataset else 0
    answers = drawn * max(2, len(draft.arms)) * config.samples_per_case
    least = answers * config.max_new_tokens * BYTES_PER_TOKEN * COPIES
    return check_room(where, free, least, least * (1 + config.retries))


def check_lengths(
    prompts: Iterable[tuple[str, str]], count: Callable[[str], int], limit: int, answer: int
) -> list[Finding]:
    """Case ids and prompts against the length that the engine accepts, with room for the answer."""
    longest, total = 0, 0
    beyond: list[str] = []
    for case_id, prompt in prompts:
        tokens = count(prompt)
        total += 1
        longest = max(longest, tokens)
        if too_long(tokens, answer, limit) is not None:
            beyond.append(case_id)
    sums = f"longest {longest} tokens + {answer} for the answer, of {limit}"
    if not beyond:
        return [ok("prompts", f"{total} checked, {sums}")]
    named = ", ".join(repr(name[:60]) for name in beyond[:SHOWN_IDS])
    what = f"{len(beyond)} of {total} are empty or too long ({named}): {sums}"
    todo = f"raise --max-model-len to {longest + answer}, or lower --max-new-tokens"
    return [(error if len(beyond) == total else warning)("prompts", what, todo)]
