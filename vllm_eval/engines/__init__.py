"""The engines, and the one place where they are opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_eval.config.settings import Config
from vllm_eval.engines.protocol import Engine
from vllm_eval.records import Arm


def check_options(config: Config) -> None:
    """Refuse invalid engine options that can be recognised without importing a library.

    `open_engine` refuses what only the library knows, such as names in vLLM's `EngineArgs`.

    Raises:
        InputError: an option or the script cannot be used.
    """
    if config.answering == "scripted":
        from vllm_eval.engines.scripted import ScriptedEngine

        ScriptedEngine.open(config.script)
    elif config.answering == "transformers":
        from vllm_eval.engines.transformers.model import read_options

        read_options(config)
    elif config.answering == "vllm":
        from vllm_eval.engines.vllm.options import refuse_ours

        refuse_ours(config)


def open_engine(
    config: Config, arms: Sequence[Arm], base_model: str | None, log: Path, life: int = 0
) -> Engine:
    """Start the configured engine; its output goes to the file `log`.

    `life` counts the starts in this run, from 0: a script may let its engine die in some.

    Raises:
        EngineError: it cannot be started, with the cause.
        ConfigError: one of its options does not exist.
    """
    if config.engine == "scripted":
        from vllm_eval.engines.scripted import ScriptedEngine

        return ScriptedEngine.open(config.script, life)
    if config.engine == "transformers":
        from vllm_eval.engines.transformers.engine import TransformersEngine

        return TransformersEngine.open(config, arms, base_model or "", log)
    if config.engine == "openai":
        from vllm_eval.engines.openai.engine import OpenAIEngine

        return OpenAIEngine.open(config, arms, log)
    if config.engine == "ray":
        from vllm_eval.engines.ray.engine import RayEngine
        from vllm_eval.engines.ray.replica import Order

        order = Order(config, tuple(arms), base_model, log.absolute(), life, open_engine)
        return RayEngine.open(order)
    from vllm_eval.engines.vllm.engine import VllmEngine

    return VllmEngine.open(config, arms, base_model or "", log)
