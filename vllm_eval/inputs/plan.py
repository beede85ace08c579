"""What would run: everything left of the engine, read once, for the check and for the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.errors import InputError
from vllm_eval.inputs import adapters, cases
from vllm_eval.inputs.adapter_folders import Note
from vllm_eval.inputs.arms import open_arms
from vllm_eval.inputs.base_model import Base, read_base
from vllm_eval.records import Arm
from vllm_eval.tasks import Task, open_task
from vllm_eval.tasks.grammar import make_grammar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan as far as it could be read; None where a part could not."""

    config: Config
    task: Task | None
    dataset: cases.Dataset | None
    arms: tuple[Arm, ...]
    base: Base | None
    """What is known of the base model without its weights; None too where none is read here."""
    problems: tuple[InputError, ...]
    """What stands in the way of running it."""
    notes: tuple[Note, ...] = ()
    """What became of the adapters that were given."""

    @property
    def base_model(self) -> str | None:
        """Folder or hub id of the base model; None where none is read here (scripted engine)."""
        return self.base.name if self.base else None


@dataclass(frozen=True, slots=True)
class Plan(Draft):
    """What would run."""

    task: Task
    dataset: cases.Dataset


def prepare(config: Config) -> Plan:
    """Read everything left of the engine.

    Raises:
        InputError: configuration, data set or adapter cannot be used.
    """
    return complete(read_plan(config))


def complete(draft: Draft) -> Plan:
    """A draft of which everything could be read.

    Raises:
        InputError: something could not: the only problem itself, or one that names them all.
    """
    if len(draft.problems) == 1:
        raise draft.problems[0]
    if draft.problems:
        raise InputError("\n".join(str(problem) for problem in draft.problems))
    return Plan(**{field.name: getattr(draft, field.name) for field in fields(draft)})


def read_plan(config: Config) -> Draft:
    """Read whatever can be read of everything left of the engine."""
    problems: list[InputError] = []
    template = resolve_path(config.prompt_template) if config.prompt_template else None
    task = _tried(problems, lambda: open_task(config.task, template))
    known = task or _tried([], lambda: open_task(config.task))  # the template may be at fault
    dataset = None
    if known is not None:
        data, declaration = data_path(config, known), known.declaration
        draw = (config.max_samples, config.seed)
        dataset = _tried(problems, lambda: cases.open_dataset(data, *draw, declaration))
        if data == known.dataset:
            # What the task brings is stored like what was asked for, to grade answers again by it.
            config = config.model_copy(update={"dataset_path": str(data)})
    opened = open_arms(config)
    arms = opened.arms
    problems += opened.problems
    grammar = make_grammar(known.declaration).text if known else ""
    constrained = _tried(problems, lambda: adapters.constrain_arms(arms, config, grammar))
    base = _read_base(config, arms, problems)
    return Draft(config, task, dataset, constrained or arms, base, tuple(problems), opened.notes)


def data_path(config: Config, task: Task) -> Path:
    """Where the cases are: as configured, else the task's own, else the default."""
    if task.dataset is not None and "dataset_path" not in config.model_fields_set:
        return task.dataset
    return resolve_path(config.dataset_path)


def _read_base(config: Config, arms: tuple[Arm, ...], problems: list[InputError]) -> Base | None:
    given, args = config.base_model, config.engine_args
    served = config.engine == "openai" and not given
    if config.answering == "scripted" or served or (len(arms) == 1 and not given):
        return None
    name = _tried(problems, lambda: adapters.base_of(arms, given))
    if name is None or config.engine == "openai":  # the server has it, under whatever name
        return Base(name) if name else None
    weights, revision = args.get("load_format") != "dummy", args.get("revision")
    return _tried(problems, lambda: read_base(name, revision, weights=weights))


def _tried(problems: list[InputError], call: Callable[[], _T]) -> _T | None:
    try:
        return call()
    except InputError as problem:
        problems.append(problem)
        return None
