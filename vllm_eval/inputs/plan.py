"""What would run: everything left of the engine, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.config.settings import resolve_path
from vllm_eval.inputs import adapters, cases
from vllm_eval.tasks import open_task
from vllm_eval.tasks.grammar import make_grammar

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.config.settings import Config
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
    task = open_task(config.task, template)
    data = data_path(config, task)
    return Plan(
        # What the task brings is stored like what was asked for: the run is graded again by it.
        config=config.model_copy(update={"dataset_path": str(data)})
        if data == task.dataset
        else config,
        task=task,
        dataset=cases.open_dataset(data, config.max_samples, config.seed, task.declaration),
        arms=adapters.constrain_arms(arms, config, make_grammar(task.declaration).text),
        base_model=None
        if config.answering == "scripted" or (config.engine == "openai" and not config.base_model)
        else adapters.base_of(arms, config.base_model),
    )


def data_path(config: Config, task: Task) -> Path:
    """Where the cases are: as configured, else the task's own, else the default."""
    if task.dataset is not None and "dataset_path" not in config.model_fields_set:
        return task.dataset
    return resolve_path(config.dataset_path)
