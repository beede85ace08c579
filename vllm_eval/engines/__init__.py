"""What an engine promises, and the one place where engines are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_eval.config.settings import Config
    from vllm_eval.records import Arm, Completion, Request


class Engine(Protocol):
    """Answers requests of all arms in one running batch.

    One bad request never costs another one: it comes back as a completion with an error.
    The order of completions is nobody's assumption; they carry their request's id.
    """

    @property
    def capacity(self) -> int:
        """How many requests are worth holding in flight."""

    @property
    def about(self) -> Mapping[str, str | int]:
        """Name, versions and settings, for the manifest."""

    def refusal(self, prompt: str) -> str | None:
        """Why this prompt can never be answered, or None. Nothing is submitted."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; they join the running batch."""

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Block until at least one request has finished, or `timeout` seconds have passed.

        Empty when none finished in time, and at once when none is in flight.
        """

    def close(self) -> None:
        """Release everything, also after a failure."""


def open_engine(
    config: Config, arms: Sequence[Arm], base_model: str | None, log: Path, life: int = 0
) -> Engine:
    """Start the configured engine; what it prints goes to the file `log`.

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

        return RayEngine.open(config, arms, base_model, log, life)
    from vllm_eval.engines.vllm.engine import VllmEngine

    return VllmEngine.open(config, arms, base_model or "", log)
