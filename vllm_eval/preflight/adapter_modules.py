"""The modules that an adapter changes against those of its base: names, ranks and shapes.

Names follow `vllm/lora/utils.py` and `vllm/lora/model_manager.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from vllm_eval.inputs.adapters import CONFIG_FILE
from vllm_eval.inputs.base_model import (
    NO_VOCABULARY_LORA,
    Base,
    is_vocabulary,
    linear_modules,
    vocabulary_modules,
)
from vllm_eval.inputs.safetensors_headers import Tensor
from vllm_eval.inputs.vllm_names import lora_support, models_folder, module_prefixes, renamed
from vllm_eval.preflight.finding import Finding, counted, error, warning

Modules = Mapping[str, Mapping[str, Tensor]]
"""Tensors A and B by module."""
Shapes = Mapping[str, tuple[int, int]]

MERGE = "merge the adapter into a copy of its base, or train without it"
RENAME = "rename its tensors, as docs/adapters.md shows"
OTHER_BASE = "give --base-model, the one it was trained on"
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
"""What some wrappers add to the names of modules. vLLM finds no such module and changes nothing."""
_LAYER = re.compile(r"\.layers\.(\d{1,9})\.")
_EXPERT = re.compile(r"(.+\.experts)\.\d+\..+")
_NAME = re.compile(r"[\w.]+")
_TEXT = "language_model."
"""How the names of the text part begin in vLLM."""
_OTHER_SHAPE = "with a shape other than the base's"
_OTHER_VOCABULARY = "of a vocabulary other than the base's"
_VOCABULARY = "of the vocabulary, which vLLM cannot serve on this kind of base"
_EXPERTS = "of fused experts, which vLLM cannot serve as it is started here"
_TODO = {
    _VOCABULARY: MERGE,
    _EXPERTS: MERGE,
    _OTHER_VOCABULARY: "give the base with that vocabulary, or merge the adapter into it",
}
"""What to do about a fault, where it is not to give the right base."""


def check_modules(
    where: str, settings: Mapping[str, Any], modules: Modules, base: Base
) -> list[Finding]:
    """Whether the modules are the base's, and of the shapes and ranks that they must have."""
    # The rank of fused experts counts once for each.
    plain = {n: p for n, p in modules.items() if not unwrapped(n).endswith(".experts")}
    findings = _check_ranks(where, settings, plain)
    if settings.get("layer_replication"):  # refused, and the names are of other layers
        return findings
    linear = linear_modules(base)
    if linear is None:
        reason = "could not be fetched" if base.folder is None else "is of an unknown kind"
        what = f"names and shapes were not compared: the base {base.name} {reason}"
        todo = "the engine will compare them once it is loaded"
        return [*findings, *_check_names(where, modules, None, base), warning(where, what, todo)]
    known: Shapes = {**linear, **vocabulary_modules(base)}
    if base.wrapper:
        return findings + _check_multimodal(where, modules, known, base)
    findings += _check_names(where, modules, known, base) + _check_experts(where, modules, known)
    stated = settings.get("layers_to_transform") is not None
    return findings if stated else findings + _check_reach(where, modules, base)


def unwrapped(module: str) -> str:
    """The module of a parameter: PEFT adds `base_layer` for the first of two in one module."""
    return module.removesuffix(".base_layer")


def _check_ranks(where: str, settings: Mapping[str, Any], modules: Modules) -> list[Finding]:
    ranks = {name: (pair["A"].shape[0], pair["B"].shape[1]) for name, pair in modules.items()}
    wrong = [n for n, (a, b) in ranks.items() if not a == b == _rank_of(n, settings, a)]
    if not wrong:
        return []
    what = f"{counted(wrong, 'module')} with a rank other than {CONFIG_FILE} says"
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


def _check_experts(where: str, modules: Modules, known: Shapes) -> list[Finding]:
    """A LoRA of single experts must be of all modules of all experts of a layer.

    `pack_moe` of `vllm/lora/lora_weights.py` asserts it; PEFT loads a part, and changes nothing.
    """
    layers = {found[1] for found in map(_EXPERT.fullmatch, modules) if found}
    due = ((name, found[1]) for name in known if (found := _EXPERT.fullmatch(name)))
    if not (lacking := [name for name, layer in due if layer in layers and name not in modules]):
        return []
    what = f"{counted(lacking, 'module')} of experts without a LoRA, while others of their layer"
    todo = "give them one of zeros, as docs/adapters.md shows"
    return [error(where, f"{what} have one, which vLLM cannot serve", todo)]


def _serves(embedding: str, base: Base) -> bool:
    """Whether vLLM serves a LoRA of this embedding; true where nobody knows."""
    models = None if base.wrapper else models_folder()
    with contextlib.suppress(LookupError):
        if models and base.kind:
            return embedding in (lora_support(models, base.kind) or ())
    return base.model_type not in NO_VOCABULARY_LORA


def _check_names(where: str, modules: Modules, known: Shapes | None, base: Base) -> list[Finding]:
    """Names and shapes against those of the base; without them, names that no base has."""
    faults: defaultdict[str, list[str]] = defaultdict(list)
    for name, pair in modules.items():
        if fault := _misnamed(name, known) or (known and _fault(name, pair, known, base)):
            faults[fault].append(name)
    findings = []
    for fault, names in faults.items():
        what = f"{counted(names, 'module')} {fault}"
        if fault in (_OTHER_SHAPE, _OTHER_VOCABULARY):
            pair, (inputs, outputs) = modules[names[0]], (known or {})[names[0]]
            has = f"{pair['A'].shape[1]} to {pair['B'].shape[0]}"
            what = f"{what}: {has}, not {inputs} to {outputs}"
        todo = RENAME if fault.startswith("named") else _TODO.get(fault, OTHER_BASE)
        findings.append(error(where, what, todo))
    return findings


def _check_multimodal(where: str, modules: Modules, known: Shapes, base: Base) -> list[Finding]:
    """Names as vLLM maps them, on both sides; it silently leaves out what it does not find."""
    models = models_folder()
    prefixes = module_prefixes(models, base.wrapper or "") if models else None
    if prefixes is None:
        what = f"names were not compared: vLLM's own for {base.wrapper} are not known here"
        return [warning(where, what, "see that the student's answers are not the baseline's")]
    known = {renamed(name, prefixes): shape for name, shape in known.items()}
    mapped = {renamed(name, prefixes): pair for name, pair in modules.items()}
    start = _TEXT if any(name.startswith(_TEXT) for name in known) else ""
    text = {name: pair for name, pair in mapped.items() if name.startswith(start)}
    findings = []
    if lost := [name for name in mapped if name not in known]:
        what = f"{counted(lost, 'module')} that vLLM would not find in {base.wrapper}"
        todo = "rename its tensors to the names that the base's have, as docs/adapters.md shows"
        findings.append(error(where, what, todo))
    elif beside := [name for name in mapped if name not in text]:
        what = f"{counted(beside, 'module')} outside the language model, which vLLM leaves out"
        findings.append(error(where, what, MERGE))
    found = {name: pair for name, pair in text.items() if name in known}
    return findings + _check_names(where, found, known, base) + _check_reach(where, found, base)


def _misnamed(name: str, known: Shapes | None) -> str | None:
    """How a module is named by a wrapper of the model, so that vLLM would silently leave it out."""
    for part, wrapper in WRAPPERS.items():
        if part in name:
            return f"named through {wrapper} ({part!r}), which vLLM would not find"
    if known is None or name in known:
        return None
    if f"model.{name}" in known:
        return "named without 'model.', as in a model without its head, which vLLM would not find"
    if name.replace("language_model.", "") in known:
        return "named as in a multimodal model ('language_model.'), which vLLM would not find"
    parts = name.split(".")
    tails = (".".join(parts[start:]) for start in range(1, len(parts)))
    if tail := next((tail for tail in tails if tail in known), None):
        return f"named with {name.removesuffix(tail)[:40]!r} in front, which vLLM would not find"
    return None


def _fault(name: str, pair: Mapping[str, Tensor], known: Shapes, base: Base) -> str | None:
    """What is wrong with one module, worded to follow the number of such modules."""
    architecture, layer = base.architecture, _LAYER.search(f".{name}")
    if architecture is not None and layer and int(layer[1]) >= architecture.layers:
        return f"beyond the {architecture.layers} layers of the base"
    if unwrapped(name).endswith(".experts"):
        return _EXPERTS
    vocabulary = is_vocabulary(name)
    if vocabulary and not _serves(name.rpartition(".")[2], base):
        return _VOCABULARY
    if name not in known:
        return "that the base does not have"
    if (pair["A"].shape[1], pair["B"].shape[0]) == known[name]:
        return None
    return _OTHER_VOCABULARY if vocabulary else _OTHER_SHAPE


def _check_reach(where: str, modules: Modules, base: Base) -> list[Finding]:
    """An adapter without some layers may be intended, or come from a smaller base."""
    last = base.architecture.layers - 1 if base.architecture else 0
    found = (_LAYER.search(f".{name}") for name in modules)
    highest = max((int(layer[1]) for layer in found if layer), default=last)
    if highest >= last:
        return []
    what = f"changes layers up to {highest}, but the base has layers up to {last}"
    return [warning(where, what, "make sure that it was trained on this base")]
