"""Loads a base model once with transformers, puts the adapters on it with peft, asks either.

The adapters stay beside the base's weights and are never merged: a request chooses one, or turns
all of them off.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_eval.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from vllm_eval.config.settings import Config
    from vllm_eval.engines.transformers.options import Options
    from vllm_eval.records import Arm


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model with or without adapters on it, and what belongs to it."""

    model: Any
    tokenizer: Any
    adapters: Mapping[str, str | None]
    """For each arm peft's name of its adapter; None for the bare base."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    max_len: int
    quantization: str


def load_base(options: Options, config: Config, base_model: str) -> Loaded:
    """Load base and tokenizer: from safetensors alone, and without code that comes with them.

    Args:
        options: how.
        config: says how long an answer is and what ends it.
        base_model: folder or hub id.

    Raises:
        EngineError: nobody says how long a text the model can read.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(
        options.tokenizer or base_model,
        revision=options.tokenizer_revision,
        trust_remote_code=False,
    )
    found = AutoConfig.from_pretrained(
        base_model, revision=options.revision, trust_remote_code=False
    )
    own = found.get_text_config().dtype or torch.float32
    dtype = own if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.dummy:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(found, dtype=dtype, trust_remote_code=False)
        model.eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(
            base_model,
            revision=options.revision,
            dtype=dtype,
            # Straight to the device: a 7B model need not fit into the RAM of a small notebook.
            device_map={"": device},
            quantization_config=_four_bit(options, dtype) if options.four_bit else None,
            use_safetensors=True,
            trust_remote_code=False,
        )
    longest = getattr(found.get_text_config(), "max_position_embeddings", None)
    max_len = options.max_len or longest
    if max_len is None:
        msg = f"{base_model}: does not say how long a text it can read; give --max-model-len"
        raise EngineError(msg)
    ends = _ends(model, tokenizer)
    model.generation_config = _generation(config, ends, tokenizer.pad_token_id)
    stored = (getattr(found, "quantization_config", None) or {}).get("quant_method")
    method = "bitsandbytes" if options.four_bit else str(stored or "none")
    return Loaded(model, tokenizer, {}, ends, int(max_len), method)


def add_adapters(loaded: Loaded, arms: Sequence[Arm]) -> Loaded:
    """Put every arm's adapter on the base; it is changed in place."""
    from peft import PeftModel

    model, names = loaded.model, {}
    for number, arm in enumerate(arms):
        # A name of our own: peft takes none with a dot in it.
        names[arm.name] = f"adapter{number}" if arm.adapter else None
        if arm.adapter is None:
            continue
        folder, name = str(arm.adapter.path), names[arm.name]
        if model is loaded.model:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
    model.eval()
    return replace(loaded, model=model, adapters=names)


@contextlib.contextmanager
def as_arm(loaded: Loaded, arm: str) -> Iterator[Any]:
    """The model as one arm sees it."""
    adapter = loaded.adapters.get(arm)
    if adapter is not None:
        loaded.model.set_adapter(adapter)
        yield loaded.model
    elif any(loaded.adapters.values()):
        with loaded.model.disable_adapter():
            yield loaded.model
    else:
        yield loaded.model


def pad(loaded: Loaded, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Prompts of different lengths as one batch: padded on the left, so that all end together.

    Returns:
        `input_ids` and `attention_mask`, each rows x longest prompt, on the model's device.
    """
    import torch

    width = max(map(len, rows))
    filler = loaded.model.generation_config.pad_token_id
    ids = [[filler] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    device = loaded.model.device
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def likeliest_tokens(
    loaded: Loaded, arm: str, rows: Sequence[Sequence[int]], count: int
) -> list[dict[int, float]]:
    """For each prompt the log probabilities of the `count` likeliest next tokens."""
    import torch

    with as_arm(loaded, arm) as model, torch.inference_mode():
        out = model.generate(
            **pad(loaded, rows), max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
    found = out.logits[0].float().log_softmax(dim=-1).topk(count)
    return [
        dict(zip(tokens, chances, strict=True))
        for tokens, chances in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _four_bit(options: Options, dtype: torch.dtype) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    compute = getattr(torch, options.compute_dtype) if options.compute_dtype else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """What vLLM takes as the end too: the tokenizer's token, and those of generation_config."""
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(ends - {None}))


def _generation(config: Config, ends: tuple[int, ...], filler: int | None) -> Any:
    """How tokens are chosen: by the configuration alone, as in vLLM.

    The checkpoint's own generation_config may hold another temperature, or a penalty on
    repetitions that no run asked for.
    """
    from transformers import GenerationConfig

    forced = config.ignore_eos
    return GenerationConfig(
        do_sample=False,  # greedy on what SeededDraw makes of the scores
        max_new_tokens=config.max_new_tokens,
        eos_token_id=None if forced or not ends else list(ends),
        suppress_tokens=list(ends) if forced and ends else None,
        pad_token_id=next(iter(ends), 0) if filler is None else filler,
    )
