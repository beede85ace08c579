"""What would run: everything left of the engine, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval import adapters, cases
from vllm_eval.config import resolve_path
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from vllm_eval.config import Config
    from vllm_eval.records import Arm
    from vllm_eval.tasks import Task


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run: everything left of the engine."""

    config: Config
    task: Task
    dataset: cases.Dataset
    arms: tuple[Arm, ...]
    base_model: str | None
    """None where no model is read (scripted engine)."""


def prepare(config: Config) -> Plan:
    """Read and check everything that can be checked before an engine is started.

    Raises:
        InputError: configuration, data set or adapter cannot be used.
    """
    template = resolve_path(config.prompt_template) if config.prompt_template else None
    arms = adapters.open_arms(config)
    return Plan(
        config=config,
        task=open_task(config.task, template),
        dataset=cases.open_dataset(
            resolve_path(config.dataset_path), config.max_samples, config.seed
        ),
        arms=arms,
        base_model=None
        if config.answering == "scripted" or (config.engine == "openai" and not config.base_model)
        else adapters.base_of(arms, config.base_model),
    )
