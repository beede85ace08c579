"""A task: the contract, prompt and metric of a declaration, and how to open one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_eval.errors import ConfigError, EvalError, InputError
from vllm_eval.records import Case, Grade, Problem
from vllm_eval.tasks.check import Contract, compile_contract
from vllm_eval.tasks.declaration import TASK_FILE, Declaration, Part, read_declaration
from vllm_eval.tasks.parse import extract_block, parse_block
from vllm_eval.tasks.prompt import Prompt, read_prompt
from vllm_eval.tasks.score import BUILT_IN, Blocks
from vllm_eval.tasks.sources import Grading, built_in_grading, find_source, is_named, open_grading


@dataclass(frozen=True, slots=True)
class Task:
    """A contract, with prompt and metric where they may be used.

    No method is told the arm, so none can favour one.
    """

    declaration: Declaration
    contract: Contract
    template: Prompt | None = None
    grading: Grading | None = None
    dataset: Path | None = None
    """Its own cases, used if no others are given."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.declaration.name

    @property
    def version(self) -> str:
        """Changes whenever the same answer could be graded differently."""
        return self.grading.version if self.grading else self.declaration.version

    @property
    def prompt_sha256(self) -> str:
        """Identifies the prompt, apart from the case."""
        return self.template.sha256 if self.template else ""

    @property
    def grades(self) -> bool:
        """Whether answers can be graded without running code that only a stored run names."""
        return self.grading is not None

    def prompt(self, case: Case, problem: Problem | None = None) -> str:
        """The prompt; for a retry, `problem` adds what was wrong."""
        if self.template is None:
            raise _only_stored(self.name)
        return self.template.fill(case, problem)

    def grade(self, case: Case, text: str) -> Grade:
        """Parse, check and score one answer. No answer can make this raise.

        Raises:
            EvalError: the task's own module failed.
        """
        if self.grading is None:
            raise _only_stored(self.name)
        found = self.blocks(text)
        if missing := self.contract.missing(found):
            return Grade(missing, None, {})
        parsed = {label: parse_block(found[label.lower()]) for label in self.declaration.blocks}
        data = {label: block.data for label, block in parsed.items()}
        blocks = {label: one if isinstance(one, dict) else {} for label, one in data.items()}
        score, parts = _score(self.declaration, self.grading, blocks, case)
        problem = self.contract.check(parsed)
        if problem is None and self.grading.rule is not None:
            problem = _problem_of(self.grading.rule(blocks, case), self.name)
        return Grade(problem, score, parts)

    def blocks(self, text: str) -> dict[str, str]:
        """The raw text of each block that is there, by its label in lower case."""
        found = {label.lower(): extract_block(text, label) for label in self.declaration.blocks}
        return {label: block for label, block in found.items() if block is not None}


def open_task(name: str, template: Path | None = None) -> Task:
    """Open a task that the user names, with its prompt from `template` if given.

    `name` is a shipped task, an installed one (entry points of `vllm_eval.tasks`), or the path of a
    declaration or of a folder with a `task.yaml`. Runs the task's module.

    Raises:
        ConfigError: there is no such task, or its template, module or data set cannot be used.
    """
    source = find_source(name)
    declared, key = source.declaration, "prompt_template"
    if template is None:
        template, key = source.beside("prompt", declared.prompt), f"{source.path}: prompt"
    contract, prompt = compile_contract(declared), read_prompt(template, declared, key)
    grading = open_grading(source)
    dataset = source.beside("dataset", declared.dataset) if declared.dataset else None
    return Task(declared, contract, prompt, grading, dataset)


def open_stored(folder: Path, name: str) -> Task:
    """The task of a stored run, without running any code that only the run names.

    Opens a shipped or installed task by name, if the run's copy of the declaration is the same.
    Otherwise it opens the copy: answers can be shown, and graded if that needs no module.

    Raises:
        InputError: the task is neither known by name nor declared in the folder.
    """
    path = folder / TASK_FILE
    copy = read_declaration(path) if path.is_file() else None
    if is_named(name):
        task = open_task(name)
        if copy is None or copy == task.declaration:
            return task
    if copy is None:
        msg = f"{folder}: its task {name!r} is not installed here, and the run lacks"
        raise InputError(f"{msg} {TASK_FILE}; restore the file")
    whole = all(part.measure in BUILT_IN for part in copy.metric.values()) and not copy.module
    return Task(copy, compile_contract(copy), grading=built_in_grading(copy) if whole else None)


def refuse_file(name: str, where: Path) -> None:
    """Do nothing if a task is known by name.

    Raises:
        InputError: `where` is stored with a file as its task, or one that is not installed here.
    """
    if not is_named(name):
        msg = f"{where}: its task {name!r} is not installed here, and a file that only a stored"
        raise InputError(f"{msg} run names is never run; if you trust it, give --task {name}")


def _score(
    declaration: Declaration, grading: Grading, blocks: Blocks, case: Case
) -> tuple[float, Mapping[str, float]]:
    """The metric in [0, 1], and the points of each part."""
    parts = {
        name: _points(name, part, grading.measures[name](blocks, case))
        for name, part in declaration.metric.items()
    }
    most = sum(part.points for part in declaration.metric.values())
    return min(max(sum(parts.values()) / most, 0.0), 1.0), parts


def _points(name: str, part: Part, points: object) -> float:
    if not isinstance(points, int | float) or not math.isfinite(points):
        msg = f"metric.{name}: {part.measure} must return a number of points, not {points!r}"
        raise EvalError(msg)
    return min(max(points, 0.0), part.points)


def _problem_of(found: object, name: str) -> Problem | None:
    if found is None or isinstance(found, Problem):
        return found
    raise EvalError(f"task {name}: check must return a Problem or None, not {found!r}")


def _only_stored(name: str) -> ConfigError:
    why = "code that only a stored run names is never run; give --task FILE"
    return ConfigError(f"task {name}: {why}")
