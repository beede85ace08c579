"""An adapter's tensors by their headers: which of them are LoRA weights, and what the others are.

Only whole weights saved beside the LoRA are read: vLLM silently drops those of the embeddings, so
they must be the base's own. Names follow `vllm/lora/utils.py`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_eval.inputs.adapters import CONFIG_FILE, MLX_TODO, WEIGHTS_FILE
from vllm_eval.inputs.base_model import Base, is_vocabulary, stored_as
from vllm_eval.inputs.safetensors_headers import FLOATS, Tensor
from vllm_eval.inputs.tensor_values import same_values, survey
from vllm_eval.preflight.adapter_modules import (
    MERGE,
    OTHER_BASE,
    RENAME,
    check_modules,
    unwrapped,
)
from vllm_eval.preflight.finding import Finding, counted, error, ok, warning
from vllm_eval.records import Adapter

Kind = tuple[Callable[[str, str, str], Finding], str, str]
"""A level, what is wrong and what to do."""

SAVE_AGAIN = "save it again with PEFT"
TRACES = (
    ("lora_magnitude_vector", "use_dora", "of DoRA"),
    (".lora_B.bias", "lora_bias", "of a LoRA bias"),
    ("trainable_tokens_", "trainable_token_indices", "of single trained tokens"),
    ("lora_diag", "kasa_config", "of KaSA"),
    ("lora_monteclora_", "monteclora_config", "of MonteCLoRA"),
)
"""Parts of the names of tensors that vLLM cannot serve, and the key that goes with them."""
VELORA = "lora_velora_"
"""What VeLoRA keeps for the backward pass alone."""
PREFIX = "base_model.model."
"""How PEFT begins the name of every tensor; vLLM takes it away wherever it stands."""
_SKIPPED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Ends of the names of tensors that vLLM does not load: `is_base_embedding_weights`."""
_WEIGHT = re.compile(r"(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B))")
_RAW = re.compile(r".+\.lora_(?:embedding_)?[AB]\.(?!weight$|bias$)[^.]+(?:\.weight)?")
_MLX = re.compile(r".+\.lora_[ab]")
_TAKEN = FLOATS | {"F8_E4M3", "F8_E5M2"}


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
    parameters = _listed(settings, "target_parameters")
    parents = tuple(one.rpartition(".")[0] for one in parameters if not one.endswith(".weight"))
    whole = {
        name: pair
        for name, pair in modules.items()
        # Modules of `target_parameters` are refused already.
        if len(pair) == 2 and not (parents and unwrapped(name).endswith(parents))
    }
    findings += check_modules(where, settings, whole, base)
    if not any(finding.level == "error" for finding in findings):
        findings += _check_values(file, header) or _check_peft(
            where, settings, header, whole, error if peft else warning
        )
    return findings or [ok(where, f"{len(whole)} modules of rank {adapter.rank} that fit the base")]


def _check_others(
    file: Path, settings: Mapping[str, Any], others: Mapping[str, Tensor], base: Base
) -> list[Finding]:
    """Tensors that are not LoRA weights of two dimensions; those of a refused key are known."""
    kinds: defaultdict[Kind, list[str]] = defaultdict(list)
    saved = tuple(_listed(settings, "modules_to_save"))
    for name, tensor in others.items():
        traces = [(key, what) for part, key, what in TRACES if part in name]
        inside = any(f".{one}." in name for one in saved)
        inside = inside or name.rpartition(".")[0].endswith(saved)
        if inside or any(settings.get(key) for key, _ in traces):
            continue
        if traces:
            kind: Kind | None = (error, f"{traces[0][1]}, which vLLM cannot serve", MERGE)
        elif VELORA in name:
            what = "of VeLoRA, which only training needs, and which vLLM refuses"
            kind = (error, what, "leave them out, as docs/adapters.md shows")
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


def _check_peft(
    where: str,
    settings: Mapping[str, Any],
    names: Iterable[str],
    modules: Iterable[str],
    level: Callable[[str, str, str], Finding],
) -> list[Finding]:
    """What PEFT silently leaves out, and vLLM serves; a pattern of targets is not followed."""
    odd = [name for name in names if not name.startswith(PREFIX) or name.startswith(2 * PREFIX)]
    if odd:
        what = f"{counted(odd, 'tensor')} that vLLM serves but PEFT does not find"
        todo = f"let their names begin with {PREFIX!r} once, as docs/adapters.md shows"
        return [level(where, what, todo)]
    named = _listed(settings, "target_modules")
    named += [one.rpartition(".")[0] for one in _listed(settings, "target_parameters")]
    targets = tuple(f".{name}" for name in named)
    if unnamed := [name for name in modules if targets and not f".{name}".endswith(targets)]:
        what = f"{counted(unnamed, 'module')} that vLLM serves but PEFT does not, because"
        todo = "take both files from the same training run"
        return [level(where, f"{what} {CONFIG_FILE} does not name them as targets", todo)]
    return []


def _check_values(file: Path, header: Mapping[str, Tensor]) -> list[Finding]:
    """Values that training leaves when it diverges, or has not begun."""
    loras = {name: tensor for name, tensor in header.items() if _WEIGHT.fullmatch(name)}
    found, where = survey(file, loras), str(file)
    if found.not_finite:
        what = f"{counted(found.not_finite, 'tensor')} with NaN or infinity: the training diverged"
        return [error(where, what, "take an earlier checkpoint")]
    for half in "BA":
        names = [name for name in loras if f".lora_{half}." in name or name.endswith(f"_{half}")]
        if names and found.zero.issuperset(names):
            what = f"every lora_{half} is zero, so it changes nothing: it has not been trained"
            return [error(where, what, "take a later checkpoint")]
    return []


def _listed(settings: Mapping[str, Any], key: str) -> list[str]:
    value = settings.get(key)
    return [str(one) for one in value] if isinstance(value, list) else []


def _unusable(tensor: Tensor) -> tuple[str, str]:
    """What is wrong with a LoRA weight that has another type or number of dimensions."""
    if len(tensor.shape) > 2:
        what = f"of {len(tensor.shape)} dimensions: of a convolution or of stacked experts, which"
        return f"{what} vLLM cannot serve", MERGE
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
