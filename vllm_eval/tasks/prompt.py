"""The prompt: a Jinja2 template over a case's inputs, and the reminder of a retry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment

from vllm_eval.errors import ConfigError
from vllm_eval.records import Case, Problem
from vllm_eval.tasks.declaration import Declaration

TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What an expression in a template can raise, besides Jinja2's own errors."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One compiled template."""

    template: jinja2.Template
    source: str
    """The template's name in messages: a configuration key, or a key of a task's file."""
    takes_reminder: bool
    """Whether the template places the reminder itself; otherwise it follows the prompt."""
    sha256: str
    declaration: Declaration

    def fill(self, case: Case, problem: Problem | None) -> str:
        """The prompt; for a retry, `problem` adds what was wrong.

        Raises:
            ConfigError: the template fails on this case.
        """
        reminder = reminder_for(problem, len(self.declaration.blocks)) if problem else ""
        if case.prompt is None:
            text = self._render(case, reminder)
            if self.takes_reminder:
                return text
        else:
            text = case.prompt
        return f"{text}\n\nREMINDER: {reminder}\n" if reminder else text

    def _render(self, case: Case, reminder: str) -> str:
        inputs = {
            name: case.inputs[name].strip() if about.yaml else case.inputs[name]
            for name, about in self.declaration.inputs.items()
        }
        given = {"concept_id": case.id, "tier": case.tier or "", "reminder": reminder}
        try:
            return self.template.render(inputs | given)
        except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
            msg = f"{self.source}: {self.template.filename} fails on case {case.id!r}: {error}"
            raise ConfigError(msg) from error


def read_prompt(path: Path, declaration: Declaration, source: str) -> Prompt:
    """The Jinja2 template at `path`; `source` is the key that named it, for messages.

    It may use the names of the inputs, `concept_id`, `tier` and `reminder`, which is empty on the
    first attempt. YAML inputs are stripped of white space.

    Raises:
        ConfigError: the file cannot be read, or is not a valid template.
    """
    environment = SandboxedEnvironment(  # the result is text, not HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    try:
        text = path.read_text(encoding="utf-8")
        template = environment.from_string(text)
        template.filename = str(path)
        names = meta.find_undeclared_variables(environment.parse(text))
    except OSError as error:
        raise ConfigError(f"{source}: cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, jinja2.TemplateError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{source}: {place} is not a usable template: {error}") from error
    known = {*declaration.inputs, "concept_id", "tier", "reminder"}
    if unknown := sorted(names - known):
        raise ConfigError(f"{source}: {path} uses {unknown[0]!r}; it may only use {sorted(known)}")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(template, source, "reminder" in names, sha256, declaration)


def reminder_for(problem: Problem, blocks: int) -> str:
    """The sentence that a retry adds to the prompt of a task with `blocks` blocks."""
    counts = {1: "the complete YAML block", 2: "both complete YAML blocks"}
    asked = counts.get(blocks, f"all {blocks} complete YAML blocks")
    again = f"Answer again with {asked} and nothing else."
    return f"Your previous answer was rejected: {problem.message}. {again}"
