"""Decide whether a LoRA adapter is good enough to ship: base and students in one vLLM engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vllm_eval.version import __version__

if TYPE_CHECKING:
    from vllm_eval.api import Progress, Result, check, compare_runs, evaluate, score, show
    from vllm_eval.errors import (
        AdapterError,
        ConfigError,
        DatasetError,
        EngineDiedError,
        EngineError,
        EvalError,
        InputError,
    )

__all__ = [
    "AdapterError",
    "ConfigError",
    "DatasetError",
    "EngineDiedError",
    "EngineError",
    "EvalError",
    "InputError",
    "Progress",
    "Result",
    "__version__",
    "check",
    "compare_runs",
    "evaluate",
    "score",
    "show",
]


def __getattr__(name: str) -> object:
    """Import what is asked for only then, so that `import vllm_eval` stays instant."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    home = "vllm_eval.errors" if name.endswith("Error") else "vllm_eval.api"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
