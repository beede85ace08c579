"""A task made of its declaration: the one implementation of the Task protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.errors import ConfigError, EvalError
from vllm_eval.records import Grade, Problem
from vllm_eval.tasks.check import compile_contract
from vllm_eval.tasks.parse import extract_block, parse_block
from vllm_eval.tasks.prompt import read_prompt
from vllm_eval.tasks.score import BUILT_IN
from vllm_eval.tasks.sources import Grading, grade_by, open_grading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_eval.records import Case
    from vllm_eval.tasks.check import Contract
    from vllm_eval.tasks.declaration import Declaration, Part
    from vllm_eval.tasks.prompt import Prompt
    from vllm_eval.tasks.score import Blocks
    from vllm_eval.tasks.sources import Source


@dataclass(frozen=True, slots=True)
class DeclaredTask:
    """A declaration with its contract, and with prompt and metric where they may be used."""

    declaration: Declaration
    contract: Contract
    template: Prompt | None = None
    grading: Grading | None = None
    dataset: Path | None = None
    """Its own cases, used where none are given."""

    @property
    def name(self) -> str:
        """As declared."""
        return self.declaration.name

    @property
    def version(self) -> str:
        """Changes whenever the same answer could be graded differently."""
        return self.grading.version if self.grading else self.declaration.version

    @property
    def prompt_sha256(self) -> str:
        """Identifies what is put to the model, apart from the case."""
        return self.template.sha256 if self.template else ""

    @property
    def grades(self) -> bool:
        """Whether answers can be graded: not where that would run code only a stored run names."""
        return self.grading is not None

    def prompt(self, case: Case, problem: Problem | None = None) -> str:
        """The text put to the model; with `problem`, a retry that names what was wrong."""
        if self.template is None:
            raise _only_stored(self.name)
        return self.template.fill(case, problem)

    def grade(self, case: Case, text: str) -> Grade:
        """Parse, check and score one answer. No answer makes it raise.

        Raises:
            EvalError: the task's own module failed.
        """
        if self.grading is None:
            raise _only_stored(self.name)
        found = self.blocks(text)
        if missing := self.contract.missing(found):
            return Grade(missing, None, {})
        parsed = {label: parse_block(found[label.lower()]) for label in self.declaration.blocks}
        blocks = {
            label: block.data if isinstance(block.data, dict) else {}
            for label, block in parsed.items()
        }
        score, parts = _score(self.declaration, self.grading, blocks, case)
        problem = self.contract.check(parsed)
        if problem is None and self.grading.rule is not None:
            problem = _problem_of(self.grading.rule(blocks, case), self.name)
        return Grade(problem, score, parts)

    def blocks(self, text: str) -> dict[str, str]:
        """The raw text of each block that is there, by its label in lower case."""
        found = {label.lower(): extract_block(text, label) for label in self.declaration.blocks}
        return {label: block for label, block in found.items() if block is not None}


def open_declared(source: Source, template: Path | None = None) -> DeclaredTask:
    """The task of a declaration, ready to ask and to grade; its module is run.

    Raises:
        ConfigError: template, module or data set cannot be used.
    """
    declared = source.declaration
    if template is not None:
        prompt = read_prompt(template, declared, "prompt_template")
    else:
        path = source.beside("prompt", declared.prompt)
        prompt = read_prompt(path, declared, f"{source.path}: prompt")
    dataset = source.beside("dataset", declared.dataset) if declared.dataset else None
    grading = open_grading(source)
    return DeclaredTask(declared, compile_contract(declared), prompt, grading, dataset)


def outline(declaration: Declaration) -> DeclaredTask:
    """What a declaration alone says: no template is read and no module run.

    Answers can be shown, and graded where that takes no module.
    """
    whole = all(part.measure in BUILT_IN for part in declaration.metric.values())
    grading = grade_by(declaration) if whole and not declaration.module else None
    return DeclaredTask(declaration, compile_contract(declaration), grading=grading)


def _score(
    declaration: Declaration, grading: Grading, blocks: Blocks, case: Case
) -> tuple[float, Mapping[str, float]]:
    """The metric in [0, 1], and the points of each of its parts."""
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
    msg = f"task {name}: check must return a Problem or None, not {found!r}"
    raise EvalError(msg)


def _only_stored(name: str) -> ConfigError:
    return ConfigError(
        f"task {name}: its code is not run on the word of a stored run; give --task FILE"
    )
