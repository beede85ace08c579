"""An adapter's tensors against its base: names, ranks and shapes from the headers.

Only whole weights saved beside the LoRA are read: vLLM silently drops those of the embeddings, so
they must be the base's own. Names follow `vllm/lora/utils.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_eval.inputs.adapters import CONFIG_FILE, MLX_TODO, WEIGHTS_FILE
from vllm_eval.inputs.base_model import (
    NO_VOCABULARY_LORA,
    Base,
    is_vocabulary,
    linear_modules,
    stored_as,
    vocabulary_modules,
)
from vllm_eval.inputs.safetensors_headers import FLOATS, Tensor
from vllm_eval.inputs.tensor_values import same_values
from vllm_eval.inputs.vllm_names import models_folder, module_prefixes, renamed
from vllm_eval.preflight.finding import Finding, error, ok, warning
from vllm_eval.records import Adapter

Modules = Mapping[str, Mapping[str, Tensor]]
Shapes = Mapping[str, tuple[int, int]]
Kind = tuple[Callable[[str, str, str], Finding], str, str]
"""A level, what is wrong and what to do."""

MERGE = "merge the adapter into a copy of its base, or train without it"
SAVE_AGAIN = "save it again with PEFT"
RENAME = "rename its tensors, as docs/adapters.md shows"
OTHER_BASE = "give --base-model, the one it was trained on"
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
}
"""What some wrappers add to the names of modules. vLLM finds no such module and changes nothing."""
TRACES = (
    ("lora_magnitude_vector", "use_dora", "of DoRA"),
    (".lora_B.bias", "lora_bias", "of a LoRA bias"),
    ("trainable_tokens_", "trainable_token_indices", "of single trained tokens"),
)
"""Parts of the names of tensors that vLLM cannot serve, and the key that goes with them."""
PREFIX = "base_model.model."
"""How PEFT begins the name of every tensor; vLLM takes it away wherever it stands."""
_SKIPPED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Ends of the names of tensors that vLLM does not load: `is_base_embedding_weights`."""
_WEIGHT = re.compile(r"(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B))")
_RAW = re.compile(r".+\.lora_(?:embedding_)?[AB]\.(?!weight$|bias$)[^.]+(?:\.weight)?")
_MLX = re.compile(r".+\.lora_[ab]")
_LAYER = re.compile(r"\.layers\.(\d{1,9})\.")
_NAME = re.compile(r"[\w.]+")
_TEXT = "language_model."
"""How the names of the text part begin in vLLM."""
_TAKEN = FLOATS | {"F8_E4M3", "F8_E5M2"}
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


def check_tensors(
    adapter: Adapter,
    settings: Mapping[str, Any],
    header: Mapping[str, Tensor],
    base: Base,
    *,
    peft: bool = False,
) -> list[Finding]:
    """Whether vLLM, or else PEFT, can serve these tensors on this base, as they were trained."""
    file = adapter.path / WEIGHTS_FILE
    where = str(file)
    if names := [name for name in header if _RAW.fullmatch(name)]:
        what = f"{counted(names, 'tensor')} named as in a raw state_dict, with the adapter's name"
        return [error(where, what, f"{SAVE_AGAIN}'s save_pretrained, or {RENAME}")]
    if names := [name for name in header if _MLX.fullmatch(name)]:
        what = f"{counted(names, 'tensor')} of MLX, which vLLM cannot read"
        return [error(where, what, MLX_TODO)]
    modules: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    others: dict[str, Tensor] = {}
    for name, tensor in header.items():
        found = _WEIGHT.fullmatch(name.replace(PREFIX, "") if name.startswith(PREFIX) else name)
        if found is None or tensor.dtype not in _TAKEN or len(tensor.shape) != 2:
            others[name] = tensor
        else:
            modules[found[1]][found[2] or found[3]] = tensor
    findings = _check_others(file, settings, others, base)
    if not modules:
        unusable = any(_WEIGHT.fullmatch(name) for name in others)
        return findings + [error(where, "has no LoRA weights", SAVE_AGAIN)] * (not unusable)
    if half := [name for name, pair in modules.items() if len(pair) < 2]:
        what = f"{counted(half, 'module')} with only one of lora_A and lora_B"
        findings.append(error(where, what, SAVE_AGAIN))
    parents = tuple(one.rpartition(".")[0] for one in _listed(settings, "target_parameters"))
    whole = {
        name: pair
        for name, pair in modules.items()
        # Modules of `target_parameters` are refused already.
        if len(pair) == 2 and not (parents and _unwrapped(name).endswith(parents))
    }
    findings += _check_modules(where, settings, whole, base)
    odd = [name for name in header if not name.startswith(PREFIX) or name.startswith(2 * PREFIX)]
    if odd and not any(finding.level == "error" for finding in findings):
        what = f"{counted(odd, 'tensor')} that vLLM serves but PEFT does not find"
        todo = f"let their names begin with {PREFIX!r} once, as docs/adapters.md shows"
        findings.append((error if peft else warning)(where, what, todo))
    return findings or [ok(where, f"{len(whole)} modules of rank {adapter.rank} that fit the base")]


def _check_others(
    file: Path, settings: Mapping[str, Any], others: Mapping[str, Tensor], base: Base
) -> list[Finding]:
    """Tensors that are not LoRA weights of two dimensions; those of a refused key are known."""
    kinds: defaultdict[Kind, list[str]] = defaultdict(list)
    saved = tuple(f".{name}." for name in _listed(settings, "modules_to_save"))
    for name, tensor in others.items():
        traces = [(key, what) for part, key, what in TRACES if part in name]
        if any(settings.get(key) for key, _ in traces) or any(one in name for one in saved):
            continue
        if traces:
            kind: Kind | None = (error, f"{traces[0][1]}, which vLLM cannot serve", MERGE)
        elif _WEIGHT.fullmatch(name):
            kind = (error, *_unusable(tensor))
        else:
            kind = _whole(file, name, tensor, base)
        if kind:
            kinds[kind].append(name)
    return [
        level(str(file), f"{counted(names, 'tensor')} {what}", todo)
        for (level, what, todo), names in kinds.items()
    ]


def _listed(settings: Mapping[str, Any], key: str) -> list[str]:
    value = settings.get(key)
    return [str(one) for one in value] if isinstance(value, list) else []


def _unusable(tensor: Tensor) -> tuple[str, str]:
    """What is wrong with a LoRA weight that has another type or number of dimensions."""
    if len(tensor.shape) != 2:
        what = "not of two dimensions: parts of sharded training (ZeRO-3, FSDP), not gathered"
        return what, "gather the parameters before save_pretrained"
    return f"stored as {tensor.dtype[:20]}, not as floats", "save it in 16 or 32 bits"


def _whole(file: Path, name: str, tensor: Tensor, base: Base) -> Kind | None:
    """What is wrong with a weight saved whole beside the LoRA; None if vLLM may skip it."""
    own = name.replace(PREFIX, "").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    small = is_vocabulary(name) or len(tensor.shape) < 2  # else it may be the whole model
    found = stored_as(base, own) if small else None
    same = found is not None and same_values(file, name, *found)
    if name.endswith(_SKIPPED):
        what = "of the embeddings, which vLLM does not load "
        if found is None:
            todo = "make sure that training left them unchanged"
            return (warning, f"{what}and which were not compared with the base's", todo)
        todo = f"{OTHER_BASE}, or merge the adapter into a copy of it"
        return None if same else (error, f"{what}and which differ from the base's", todo)
    if same or (is_vocabulary(name) and found is None):
        todo = "save the adapter alone, with PEFT's save_pretrained(save_embedding_layers=False)"
        return (error, "that vLLM has no use for", todo if is_vocabulary(name) else SAVE_AGAIN)
    if not name.endswith((".weight", ".bias")):
        return (error, "that vLLM has no use for", SAVE_AGAIN)
    return (error, "saved whole beside the LoRA, which vLLM cannot serve", MERGE)


def _check_modules(
    where: str, settings: Mapping[str, Any], modules: Modules, base: Base
) -> list[Finding]:
    # The rank of fused experts counts once for each.
    plain = {n: p for n, p in modules.items() if not _unwrapped(n).endswith(".experts")}
    findings = _check_ranks(where, settings, plain)
    linear = linear_modules(base)
    if linear is None:
        reason = "could not be fetched" if base.folder is None else "is of an unknown kind"
        what = f"names and shapes were not compared: the base {base.name} {reason}"
        todo = "the engine will compare them once it is loaded"
        return [*findings, *_check_names(where, modules, None, base), warning(where, what, todo)]
    known: Shapes = {**linear, **vocabulary_modules(base)}
    if base.wrapper:
        return findings + _check_multimodal(where, modules, known, base)
    return findings + _check_names(where, modules, known, base) + _check_reach(where, modules, base)


def _unwrapped(module: str) -> str:
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
    return None


def _fault(name: str, pair: Mapping[str, Tensor], known: Shapes, base: Base) -> str | None:
    """What is wrong with one module, worded to follow the number of such modules."""
    architecture, layer = base.architecture, _LAYER.search(f".{name}")
    if architecture is not None and layer and int(layer[1]) >= architecture.layers:
        return f"beyond the {architecture.layers} layers of the base"
    if _unwrapped(name).endswith(".experts"):
        return _EXPERTS
    vocabulary = is_vocabulary(name)
    if vocabulary and architecture and architecture.model_type in NO_VOCABULARY_LORA:
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


def counted(names: Sequence[str], noun: str) -> str:
    """The number, and the first name, escaped and shortened because it comes from a file."""
    shown = names[0] if len(names[0]) <= 80 else f"{names[0][:80]}..."
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} (first {shown!r})"
