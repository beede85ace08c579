"""What the transformers engine makes of a configuration that is written in vLLM's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_eval.config.identity import CAPACITY_ARGS
from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_eval.config.settings import Config

HONOURED = frozenset(
    {
        *("dtype", "max_model_len", "quantization", "load_format"),
        *("revision", "tokenizer", "tokenizer_revision"),
    }
)
"""Engine options with a meaning here; all others are vLLM's own."""
IGNORED = (
    CAPACITY_ARGS
    | {"attention_backend", "async_scheduling", "block_size", "compilation_config"}
    | {"fully_sharded_loras", "max_lora_rank", "seed"}
) - HONOURED
"""What only decides how vLLM goes about it: a profile may hold it, and no answer depends on it."""
DTYPES = {"half": "float16", "float": "float32"} | {
    name: name for name in ("auto", "float16", "bfloat16", "float32")
}


@dataclass(frozen=True, slots=True)
class Options:
    """How the base model is loaded."""

    dtype: str
    """Name of a torch type, or `auto` for the checkpoint's own."""
    four_bit: bool
    """bitsandbytes NF4 with double quantisation."""
    compute_dtype: str | None
    """Type computed in with `four_bit`; None for that of the model's other weights."""
    max_len: int | None
    """Most tokens of prompt and answer together; None for what the model was made for."""
    dummy: bool
    """Random weights in the shapes of `config.json`: for timing."""
    tokenizer: str | None
    """Folder or hub id, where it is not the base's own."""
    revision: str | None
    tokenizer_revision: str | None
    ignored: tuple[str, ...]
    """Configured options of vLLM that have no meaning here."""


def read_options(config: Config) -> Options:
    """The configured `engine_args` as far as they mean something without vLLM.

    Raises:
        ConfigError: an option would change the answers and is not to be had here, or its value
            is none this engine knows.
    """
    args = config.engine_args
    for name in args:
        if name not in HONOURED | IGNORED:
            msg = (
                f"engine_args: the transformers engine has no option {name!r}, and answers may "
                f"depend on it; remove it, or give --engine vllm"
            )
            raise ConfigError(msg)
    four_bit = config.load_4bit or _one_of(args, "quantization", None, "bitsandbytes") is not None
    dummy = _one_of(args, "load_format", "auto", "safetensors", "dummy") == "dummy"
    if dummy and four_bit:
        msg = "engine_args.load_format: there is no dummy of 4-bit weights; remove --load-4bit"
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
    """A configured value; the first of those known where there is none."""
    value: str | None = args.get(name, known[0])
    if value not in known:
        words = ", ".join(str(word) for word in known if word is not None)
        msg = f"engine_args.{name}: the transformers engine knows {words}, not {value!r}"
        raise ConfigError(msg)
    return value


def _length(value: object) -> int | None:
    """vLLM's -1 and `auto` leave the length to the engine."""
    if value in (None, -1, "auto"):
        return None
    if type(value) is not int or value <= 0:
        msg = f"engine_args.max_model_len: must be a number of tokens above 0, not {value!r}"
        raise ConfigError(msg)
    return value
