"""The interface between the loop and every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vllm_eval.engines.base_canary import BaseAnswers
from vllm_eval.records import Completion, Request


class Engine(Protocol):
    """Answers requests of all arms in one running batch.

    One bad request never affects another: it comes back as a completion with an error.
    Completions come in any order and carry their request's id.
    """

    @property
    def capacity(self) -> int:
        """How many requests are worth holding in flight."""

    @property
    def about(self) -> Mapping[str, str | int]:
        """Name, versions and settings, for the manifest."""

    @property
    def base(self) -> Sequence[BaseAnswers | None]:
        """What the bare base answered the canary: of each server or replica that has proved itself.

        None of one whose noise is too large for that; empty without weights.
        """

    def refusal(self, prompt: str) -> str | None:
        """Why this prompt can never be answered, or None. Nothing is submitted."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; they join the running batch."""

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Block until at least one request has finished, or `timeout` seconds have passed.

        Empty if none finished in time, and immediately if none is in flight.
        """

    def close(self) -> None:
        """Release everything, even after a failure."""
