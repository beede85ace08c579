"""Whether vLLM can serve an adapter on its base, read from its files.

What vLLM refuses is in `vllm/lora/peft_helper.py` and `vllm/lora/lora_model.py`. What it accepts
without a word and computes wrongly (an extra layer, another module's rank) is refused here too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_eval.config.machine import Software
from vllm_eval.errors import InputError
from vllm_eval.inputs.adapters import CONFIG_FILE, WEIGHTS_FILE, read_settings
from vllm_eval.inputs.base_model import LLAMA_LIKE, Base, has_experts
from vllm_eval.inputs.safetensors_headers import read_header
from vllm_eval.inputs.vllm_names import lora_support, models_folder
from vllm_eval.preflight.adapter_modules import MERGE
from vllm_eval.preflight.adapter_tensors import SAVE_AGAIN, check_tensors
from vllm_eval.preflight.finding import Finding, counted, error, from_error, ok, warning
from vllm_eval.preflight.needs import PEFT_RELEASE
from vllm_eval.records import Adapter

REFUSED = (
    ("use_dora", "DoRA"),
    ("lora_bias", "a LoRA bias"),
    ("modules_to_save", "whole modules beside the LoRA"),
    ("alora_invocation_tokens", "activated LoRA (aLoRA)"),
    ("layer_replication", "layers used twice"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("use_qalora", "QALoRA"),
    ("kasa_config", "KaSA"),
    ("monteclora_config", "MonteCLoRA"),
    ("arrow_config", "Arrow, which chooses between adapters"),
    ("trainable_token_indices", "single trained tokens"),
    ("target_parameters", "LoRA of single parameters, such as fused experts"),
)
"""Keys of the configuration that must be empty, and what each asks for."""
WITHOUT_EFFECT = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
        *("revision", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias"),
        *("exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "loftq_config"),
        *("eva_config", "corda_config", "lora_ga_config", "velora_config", "runtime_config"),
        *("megatron_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
        # of other tools, and of earlier releases of PEFT
        *("unsloth_fixed", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "merge_weights"),
        "ephemeral_gpu_offload",
    )
)
"""Keys that vLLM honours, or whose effect is in the tensors alone."""
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Initialisations that leave the base unchanged; the others change it when PEFT loads them."""
KEYS = frozenset(key for key, _ in REFUSED)
LARGEST_RANK = 512
MIRROR = re.compile(r"(?:-unsloth)?-bnb-4bit$")
"""How the names of 4-bit copies on the hub end."""
LOCAL = re.compile(r"/|~|\.\.?[/\\]|[A-Za-z]:[/\\]")
"""How the path of a folder begins, in contrast to a hub id."""


def check_adapter(
    adapter: Adapter, base: Base, release: tuple[int, int], max_rank: int = LARGEST_RANK
) -> list[Finding]:
    """Everything that would keep `adapter` from being served, or served correctly.

    `release` is vLLM's, (0, 0) if unknown; `max_rank` is the largest rank that the engine takes.
    """
    settings_file = str(adapter.path / CONFIG_FILE)
    try:
        settings = read_settings(adapter.path)
        header = read_header(adapter.path / WEIGHTS_FILE)
    except InputError as failed:
        return [from_error(failed)]
    findings = _check_settings(settings_file, settings, release)
    if adapter.rank > LARGEST_RANK:
        what = f"rank {adapter.rank} is above {LARGEST_RANK}, the largest that vLLM serves"
        todo = "merge the adapter into a copy of its base, or train a smaller one"
        findings.append(error(settings_file, what, todo))
    elif adapter.rank > max_rank:
        what = f"rank {adapter.rank} is above the configured max_lora_rank {max_rank}"
        todo = "leave out engine_args.max_lora_rank: it is derived"
        findings.append(error(settings_file, what, todo))
    findings += _check_base_name(settings_file, adapter, base)
    return findings + check_tensors(adapter, settings, header, base, peft=release >= PEFT_RELEASE)


def check_lora(base: Base, software: Software) -> list[Finding]:
    """Whether vLLM serves any LoRA on this kind of base."""
    where, todo = f"base {base.name}", "give --engine transformers, or merge each adapter into it"
    if software.vllm and software.for_cpu and has_experts(base):
        what = "is a mixture of experts, on which vLLM's CPU build serves no LoRA"
        return [error(where, what, f"use a GPU, {todo}")]
    models = models_folder()
    # Reading vLLM's files takes a second, and is of no use for what is known.
    if models is None or base.kind is None or base.model_type in LLAMA_LIKE:
        return []
    with contextlib.suppress(LookupError):
        if lora_support(models, base.kind) is None:
            return [error(where, f"is a {base.kind}, on which vLLM serves no LoRA", todo)]
    return []


def _check_settings(
    where: str, settings: Mapping[str, Any], release: tuple[int, int]
) -> list[Finding]:
    asked = {key: what for key, what in REFUSED if settings.get(key)}
    parameters = settings.get("target_parameters")
    if isinstance(parameters, list) and all(str(one).endswith(".weight") for one in parameters):
        asked.pop("target_parameters", None)  # of a linear module: a LoRA like any other
    refused = (f"{key}: vLLM cannot serve {what}" for key, what in asked.items())
    findings = [error(where, what, MERGE) for what in refused]
    if settings.get("bias") not in (None, "none"):
        what = f"bias is {settings['bias']!r}: vLLM cannot serve an adapter's bias"
        findings.append(error(where, what, MERGE))
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        what = f"init_lora_weights is {init!r}, which changes the base when PEFT loads it"
        todo = "save it as a plain LoRA: path_initial_model_for_weight_conversion of PEFT"
        findings.append(error(where, what, todo))
    if unknown := [key for key in settings.keys() - WITHOUT_EFFECT - KEYS if settings[key]]:
        what = f"{counted(sorted(unknown), 'key')} unknown here, which vLLM ignores"
        findings.append(warning(where, what, "make sure that no answer depends on it"))
    if "target_modules" not in settings:
        findings.append(error(where, "target_modules is missing", SAVE_AGAIN))
    elif not isinstance(settings["target_modules"], str | list | None):
        findings.append(error(where, "target_modules must be names, or a pattern", SAVE_AGAIN))
    elif not settings["target_modules"] and not settings.get("target_parameters"):
        what = "target_modules is empty: vLLM goes by the tensors, but PEFT does not"
        strict = release >= PEFT_RELEASE and settings["target_modules"] is not None
        findings.append((error if strict else warning)(where, what, "name the modules there"))
    return findings + _check_scales(where, settings, release)


def _check_scales(
    where: str, settings: Mapping[str, Any], release: tuple[int, int]
) -> list[Finding]:
    findings = []
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        what = "lora_alpha must be a number: it sets the strength of the adapter"
        findings.append(error(where, what, SAVE_AGAIN))
    elif alpha == 0:
        what = "lora_alpha is 0, so the adapter changes nothing"
        findings.append(error(where, what, "give the value it was trained with"))
    scales = settings.get("alpha_pattern") or {}
    if not isinstance(scales, dict) or any(
        type(one) not in (int, float) for one in scales.values()
    ):
        findings.append(error(where, "alpha_pattern must hold a number by module", SAVE_AGAIN))
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        what = "vLLM before 0.26 silently scales rank_pattern and alpha_pattern wrongly"
        if (0, 0) < release < (0, 26):
            findings.append(error(where, what, "use a newer vLLM; 0.32 is known to be correct"))
        elif release < (0, 32):
            findings.append(warning(where, what, "0.32 is known to be correct"))
    return findings


def _check_base_name(where: str, adapter: Adapter, base: Base) -> list[Finding]:
    trained = adapter.base_model or ""
    name, given = _last_name(trained), _last_name(base.name)
    if not name or name == given:
        return []
    if _plain(name) == _plain(given):
        what = f"was trained on {trained!r}, a 4-bit copy of the base {base.name!r}"
        return [ok(where, what)] if MIRROR.search(name) else []
    if (LOCAL.match(trained) or trained.count("/") > 1) and not Path(trained).is_dir():
        what = f"was trained on {trained!r}, a folder of another machine"
        return [ok(where, f"{what}, so its name tells nothing")]
    what = f"was trained on {trained!r}, but the base is {base.name!r}"
    return [warning(where, what, "make sure that they are the same model")]


def _last_name(name: str) -> str:
    """The model's name in a path, a hub id, or a path in the hub's cache, in lower case."""
    if cached := re.search(r"models--[^/]+--([^/]+)/snapshots/", name):
        return cached[1].casefold()
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold()


def _plain(name: str) -> str:
    """The name without what mirrors add to it, or leave out."""
    return MIRROR.sub("", name).removeprefix("meta-")
