"""What is asked and how an answer is judged: the Task protocol and the tasks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_eval.records import Case, Judgement, Problem


class Task(Protocol):
    """A prompt, a contract and a metric. No method learns the arm, so none can favour one."""

    @property
    def name(self) -> str:
        """The name it is configured by."""

    @property
    def version(self) -> str:
        """Changes whenever the same answer could be judged differently."""

    @property
    def prompt_sha256(self) -> str:
        """Identifies what is put to the model, apart from the case."""

    def prompt(self, case: Case, problem: Problem | None = None) -> str:
        """The text put to the model; with `problem`, a retry that names what was wrong."""

    def judge(self, case: Case, text: str) -> Judgement:
        """Parse, check and score one answer. Never raises for any answer."""

    def blocks(self, text: str) -> Mapping[str, str]:
        """The raw text of each block that an answer holds, by its label in lower case."""


def open_task(name: str, template: Path | None = None) -> Task:
    """The task called `name`, with its prompt from `template` where one is given.

    Raises:
        ConfigError: there is no such task, or the template cannot be used.
    """
    if name == "product_owner":
        from vllm_eval.tasks.product_owner import ProductOwner

        return ProductOwner.with_template(template)
    msg = f"task: there is no task {name!r}; the only one is 'product_owner'"
    raise ConfigError(msg)
