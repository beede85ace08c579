"""Loads a base model with transformers, puts the adapters on it with peft, and asks either.

The configuration uses vLLM's options, so their meaning here is resolved first.

The adapters stay beside the base's weights and are never merged: a request chooses one, or turns
all of them off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_eval.config.identity import CAPACITY_ARGS
from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.errors import ConfigError, EngineError
from vllm_eval.records import Arm

if TYPE_CHECKING:
    import torch

HONOURED = frozenset(("dtype", "max_model_len", "quantization", "load_format"))
HONOURED |= {"revision", "tokenizer", "tokenizer_revision"}
"""Engine options with a meaning here; all others are only vLLM's."""
IGNORED = CAPACITY_ARGS - HONOURED
IGNORED |= {"attention_backend", "async_scheduling", "block_size", "compilation_config"}
IGNORED |= {"fully_sharded_loras", "max_lora_rank", "seed"}
"""Options that only decide how vLLM works: profiles may set them, and no answer depends on them."""
DTYPES = {name: name for name in ("auto", "float16", "bfloat16", "float32")}
DTYPES |= {"half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True)
class Options:
    """How the base model is loaded."""

    dtype: str
    """Name of a torch type, or `auto` for the checkpoint's own."""
    four_bit: bool
    """bitsandbytes NF4 with double quantisation."""
    compute_dtype: str | None
    """The compute type with `four_bit`; None for the type of the model's other weights."""
    max_len: int | None
    """The most tokens of prompt and answer together; None for the model's own limit."""
    dummy: bool
    """Random weights in the shapes of `config.json`, for timing."""
    tokenizer: str | None
    """Folder or hub id, if it is not the base's own."""
    revision: str | None
    tokenizer_revision: str | None
    ignored: tuple[str, ...]
    """Configured options of vLLM that have no meaning here."""


def read_options(config: Config) -> Options:
    """The configured `engine_args` that have a meaning without vLLM.

    Raises:
        ConfigError: an option would change the answers and is not available here, or this engine
            does not know its value.
    """
    args = config.engine_args
    for name in args:
        if name not in HONOURED | IGNORED:
            msg = f"engine_args: the transformers engine has no option {name!r}, and answers may"
            raise ConfigError(f"{msg} depend on it; remove it, or give --engine vllm")
    four_bit = config.load_4bit or _one_of(args, "quantization", None, "bitsandbytes") is not None
    dummy = _one_of(args, "load_format", "auto", "safetensors", "dummy") == "dummy"
    if dummy and four_bit:
        msg = "engine_args.load_format: dummy weights cannot be 4-bit; remove --load-4bit"
        raise ConfigError(msg)
    dtype = DTYPES[str(_one_of(args, "dtype", *DTYPES))]
    tokenizer = args.get("tokenizer")
    return Options(
        dtype=(config.bnb_compute_dtype or dtype) if dtype == "auto" else dtype,
        four_bit=four_bit,
        compute_dtype=config.bnb_compute_dtype,
        max_len=_length(args.get("max_model_len")),
        dummy=dummy,
        tokenizer=str(resolve_path(str(tokenizer))) if tokenizer else None,
        revision=args.get("revision"),
        tokenizer_revision=args.get("tokenizer_revision") or args.get("revision"),
        ignored=tuple(sorted(set(args) - HONOURED)),
    )


def _one_of(args: Mapping[str, Any], name: str, *known: str | None) -> str | None:
    """A configured value; by default the first of the known ones."""
    value: str | None = args.get(name, known[0])
    if value not in known:
        words = ", ".join(str(word) for word in known if word is not None)
        msg = f"engine_args.{name}: the transformers engine supports {words}, not {value!r}"
        raise ConfigError(msg)
    return value


def _length(value: object) -> int | None:
    """vLLM's -1 and `auto` leave the length to the engine."""
    if value in (None, -1, "auto"):
        return None
    if type(value) is not int or value <= 0:
        what = f"must be a number of tokens above 0, not {value!r}"
        raise ConfigError(f"engine_args.max_model_len: {what}")
    return value


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base model with or without adapters, its tokenizer and end tokens."""

    model: Any
    tokenizer: Any
    adapters: Mapping[str, str | None]
    """peft's adapter name by arm; None for the bare base."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    max_len: int
    quantization: str


def load_base(options: Options, config: Config, base_model: str) -> Loaded:
    """Load base and tokenizer, from safetensors only and without running their code.

    `config` says how long an answer is and what ends it; the base model is a folder or hub id.

    Raises:
        EngineError: the longest text that the model can read is unknown.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, revision = options.tokenizer or base_model, options.tokenizer_revision
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    safe = {"revision": options.revision, "trust_remote_code": False}
    found = AutoConfig.from_pretrained(base_model, **safe)
    own = found.get_text_config().dtype or torch.float32
    dtype = own if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.dummy:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(found, dtype=dtype, trust_remote_code=False)
        model.eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(
            base_model,
            dtype=dtype,
            # Straight to the device: a 7B model may not fit into the RAM of a small notebook.
            device_map={"": device},
            quantization_config=_four_bit(options, dtype) if options.four_bit else None,
            use_safetensors=True,
            **safe,
        )
    longest = getattr(found.get_text_config(), "max_position_embeddings", None)
    if (max_len := options.max_len or longest) is None:
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
        # Our own name: peft accepts none with a dot.
        names[arm.name] = name = f"adapter{number}" if arm.adapter else None
        if arm.adapter is None:
            continue
        folder = str(arm.adapter.path)
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

    `input_ids` and `attention_mask`, each rows x longest prompt, on the model's device.
    """
    import torch

    width, device = max(map(len, rows)), loaded.model.device
    filler = loaded.model.generation_config.pad_token_id
    ids = torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def likeliest_tokens(
    loaded: Loaded, arm: str, rows: Sequence[Sequence[int]], count: int
) -> list[dict[int, float]]:
    """The log probabilities of each prompt's `count` likeliest next tokens."""
    import torch

    with as_arm(loaded, arm) as model, torch.inference_mode():
        out = model.generate(
            **pad(loaded, rows), max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
    found = out.logits[0].float().log_softmax(dim=-1).topk(count)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [dict(zip(tokens, chances, strict=True)) for tokens, chances in pairs]


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
    """End tokens as in vLLM: the tokenizer's, and those of generation_config."""
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(ends - {None}))


def _generation(config: Config, ends: tuple[int, ...], filler: int | None) -> Any:
    """How tokens are chosen: by the configuration alone, as in vLLM.

    The checkpoint's own generation_config may set another temperature, or a repetition penalty that
    the run did not ask for.
    """
    from transformers import GenerationConfig

    forced, tokens = config.ignore_eos, list(ends) or None
    return GenerationConfig(
        do_sample=False,  # greedy on the scores from SeededDraw
        max_new_tokens=config.max_new_tokens,
        eos_token_id=None if forced else tokens,
        suppress_tokens=tokens if forced else None,
        pad_token_id=next(iter(ends), 0) if filler is None else filler,
    )
