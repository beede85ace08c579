"""Whether vLLM can serve an adapter on its base, read from its configuration and headers alone.

What vLLM refuses is in `vllm/lora/peft_helper.py` and `vllm/lora/lora_model.py`. What it accepts
without a word and computes wrongly (an extra layer, another module's rank) is refused here too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_eval.errors import InputError
from vllm_eval.inputs.adapters import CONFIG_FILE, WEIGHTS_FILE, read_settings
from vllm_eval.inputs.base_model import NO_VOCABULARY_LORA, Base, is_vocabulary, linear_modules
from vllm_eval.inputs.safetensors_headers import FLOATS, Tensor, read_header
from vllm_eval.preflight.finding import Finding, error, from_error, ok, warning
from vllm_eval.records import Adapter

Modules = Mapping[str, Mapping[str, Tensor]]

MERGE = "merge the adapter into a copy of its base, or train without it"
SAVE_AGAIN = "save it again with PEFT"
REFUSED = (
    ("use_dora", "DoRA"),
    ("lora_bias", "a LoRA bias"),
    ("modules_to_save", "whole modules beside the LoRA"),
    ("alora_invocation_tokens", "activated LoRA (aLoRA)"),
    ("layer_replication", "layers used twice"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("use_qalora", "QALoRA"),
    ("trainable_token_indices", "single trained tokens"),
)
"""Keys of the configuration that must be empty, and what each asks for."""
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Initialisations that leave the base unchanged; the others change it when PEFT loads them."""
LARGEST_RANK = 512
_OTHER_SHAPE = "with a shape other than the base's"
_VOCABULARY = "of the vocabulary, which vLLM cannot serve on this kind of base"
_PREFIX = "base_model.model."
_WEIGHT = re.compile(r"(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B))")
_LAYER = re.compile(r"\.layers\.(\d{1,9})\.")
_NAME = re.compile(r"[\w.]+")


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
    return findings + _check_tensors(adapter, settings, header, base)


def _check_settings(
    where: str, settings: Mapping[str, Any], release: tuple[int, int]
) -> list[Finding]:
    refused = (f"{key}: vLLM cannot serve {what}" for key, what in REFUSED if settings.get(key))
    findings = [error(where, what, MERGE) for what in refused]
    if settings.get("bias") not in (None, "none"):
        what = f"bias is {settings['bias']!r}: vLLM cannot serve an adapter's bias"
        findings.append(error(where, what, MERGE))
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        what = f"init_lora_weights is {init!r}, which changes the base when PEFT loads it"
        todo = "save it as a plain LoRA: path_initial_model_for_weight_conversion of PEFT"
        findings.append(error(where, what, todo))
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        what = "lora_alpha must be a number: it sets the strength of the adapter"
        findings.append(error(where, what, SAVE_AGAIN))
    if not settings.get("target_modules"):
        findings.append(error(where, "target_modules is missing", SAVE_AGAIN))
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        what = "vLLM before 0.26 silently scales rank_pattern and alpha_pattern wrongly"
        if (0, 0) < release < (0, 26):
            findings.append(error(where, what, "use a newer vLLM; 0.32 is known to be correct"))
        elif release < (0, 32):
            findings.append(warning(where, what, "0.32 is known to be correct"))
    return findings


def _check_base_name(where: str, adapter: Adapter, base: Base) -> list[Finding]:
    trained, given = _last_name(adapter.base_model or ""), _last_name(base.name)
    if not trained or trained.casefold() == given.casefold():
        return []
    what = f"was trained on {adapter.base_model!r}, but the base is {base.name!r}"
    return [warning(where, what, "make sure that they are the same model")]


def _last_name(name: str) -> str:
    """The model's name in a path, a hub id, or a path in the hub's cache."""
    if cached := re.search(r"models--[^/]+--([^/]+)/snapshots/", name):
        return cached[1]
    return name.rstrip("/").rpartition("/")[2]


def _check_tensors(
    adapter: Adapter, settings: Mapping[str, Any], header: Mapping[str, Tensor], base: Base
) -> list[Finding]:
    where = str(adapter.path / WEIGHTS_FILE)
    modules: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    strange = []
    for name, tensor in header.items():
        found = _WEIGHT.fullmatch(name.removeprefix(_PREFIX))
        if found is None or tensor.dtype not in FLOATS or len(tensor.shape) != 2:
            strange.append(name)
        else:
            modules[found[1]][found[2] or found[3]] = tensor
    findings = []
    if strange:
        what = f"{_count(strange, 'tensor')} that vLLM has no use for"
        todo = "save the adapter alone, with PEFT's save_pretrained(save_embedding_layers=False)"
        findings.append(error(where, what, todo))
    if not modules:
        return [*findings, error(where, "has no LoRA weights", SAVE_AGAIN)]
    if half := [name for name, pair in modules.items() if len(pair) < 2]:
        what = f"{_count(half, 'module')} with only one of lora_A and lora_B"
        findings.append(error(where, what, SAVE_AGAIN))
    whole = {name: pair for name, pair in modules.items() if len(pair) == 2}
    findings += _check_ranks(where, settings, whole)
    linear = linear_modules(base)
    if linear is None:
        reason = "could not be fetched" if base.folder is None else "is of an unknown kind"
        what = f"names and shapes were not compared: the base {base.name} {reason}"
        return [*findings, warning(where, what, "the engine will compare them once it is loaded")]
    findings += _check_names(where, whole, linear, base)
    findings += _check_reach(where, whole, base)
    return findings or [ok(where, f"{len(whole)} modules of rank {adapter.rank} that fit the base")]


def _check_ranks(where: str, settings: Mapping[str, Any], modules: Modules) -> list[Finding]:
    ranks = {name: (pair["A"].shape[0], pair["B"].shape[1]) for name, pair in modules.items()}
    wrong = [n for n, (a, b) in ranks.items() if not a == b == _rank_of(n, settings, a)]
    if not wrong:
        return []
    what = f"{_count(wrong, 'module')} with a rank other than {CONFIG_FILE} says"
    return [error(where, what, "take both files from the same training run")]


def _rank_of(module: str, settings: Mapping[str, Any], unknown: int) -> object:
    """PEFT's rule: a key matches the end of a module's name, after a dot; the first match counts.

    A key is a regular expression, and one from a file of unknown origin can run for hours. If it
    is more than a name, the rank counts as unknown.
    """
    for key, rank in (settings.get("rank_pattern") or {}).items():
        if not _NAME.fullmatch(key):
            return unknown
        if re.match(rf"(.*\.)?({key})$", module):
            return rank
    return settings.get("r")


def _check_names(
    where: str, modules: Modules, linear: Mapping[str, tuple[int, int]], base: Base
) -> list[Finding]:
    faults: defaultdict[str, list[str]] = defaultdict(list)
    for name, pair in modules.items():
        if fault := _fault(name, pair, linear, base):
            faults[fault].append(name)
    findings = []
    for fault, names in faults.items():
        what = f"{_count(names, 'module')} {fault}"
        if fault == _OTHER_SHAPE:
            pair, (inputs, outputs) = modules[names[0]], linear[names[0]]
            has = f"{pair['A'].shape[1]} to {pair['B'].shape[0]}"
            what = f"{what}: {has}, not {inputs} to {outputs}"
        todo = MERGE if fault == _VOCABULARY else "give --base-model, the one it was trained on"
        findings.append(error(where, what, todo))
    return findings


def _fault(
    name: str, pair: Mapping[str, Tensor], linear: Mapping[str, tuple[int, int]], base: Base
) -> str | None:
    """What is wrong with one module, worded to follow the number of such modules."""
    architecture, layer = base.architecture, _LAYER.search(f".{name}")
    if architecture is not None and layer and int(layer[1]) >= architecture.layers:
        return f"beyond the {architecture.layers} layers of the base"
    if is_vocabulary(name):
        served = architecture is None or architecture.model_type not in NO_VOCABULARY_LORA
        return None if served else _VOCABULARY
    if name not in linear:
        return "that the base does not have"
    shape = (pair["A"].shape[1], pair["B"].shape[0])
    return None if shape == linear[name] else _OTHER_SHAPE


def _check_reach(where: str, modules: Modules, base: Base) -> list[Finding]:
    """An adapter without some layers may be intended, or come from a smaller base."""
    last = base.architecture.layers - 1 if base.architecture else 0
    found = (_LAYER.search(f".{name}") for name in modules)
    highest = max((int(layer[1]) for layer in found if layer), default=last)
    if highest >= last:
        return []
    what = f"changes layers up to {highest}, but the base has layers up to {last}"
    return [warning(where, what, "make sure that it was trained on this base")]


def _count(names: Sequence[str], noun: str) -> str:
    """The number, and the first name, escaped and shortened because it comes from a file."""
    shown = names[0] if len(names[0]) <= 80 else f"{names[0][:80]}..."
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} (first {shown!r})"
