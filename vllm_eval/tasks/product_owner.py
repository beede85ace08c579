"""The Product Owner task: its prompt, its contract and how the two make a judgement.

Source: `product_owner.md`, sections "Output contract" and "Metric"; the order of the checks
and the reasons' names are fixed there.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment

from vllm_eval.errors import ConfigError
from vllm_eval.records import Case, Judgement, Problem
from vllm_eval.tasks.product_owner_metric import BUCKETS, score_blocks
from vllm_eval.tasks.yaml_blocks import Parsed, extract_block, parse_block

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "1"
LABELS = ("VISION", "REVIEW")
ALIGNMENT = "requirements_alignment"
REVIEW_KEYS = ("status", "summary", ALIGNMENT, "recommended_actions", "narrative")
MIN_ACTIONS = 2
MAX_NARRATIVE_WORDS = 120
REASONS = frozenset(
    (
        *("missing_yaml_blocks", "no_requirement_ids", "alignment_not_dict"),
        *("insufficient_recommended_actions", "narrative_length_exceeded"),
        *(f"invalid_{label.lower()}_yaml" for label in LABELS),
        *(f"{label.lower()}_not_mapping" for label in LABELS),
        *("vision_missing_product_name", "vision_missing_product_summary"),
        *(f"review_missing_{key}" for key in REVIEW_KEYS),
        *(f"alignment_missing_{bucket}" for bucket in BUCKETS),
        *(f"alignment_{bucket}_not_list" for bucket in BUCKETS),
    )
)
"""Every reason for which an answer breaks the contract."""

TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What an expression in a template can raise besides Jinja2's own."""
_REQUIREMENT_ID = re.compile(r"\b(?:FR|NFR|REQ|C|CON)\d{2,}\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ProductOwner:
    """The task with one prompt template."""

    template: jinja2.Template
    takes_reminder: bool
    """Whether the template places the reminder itself; else it is put after the prompt."""
    prompt_sha256: str
    name: str = "product_owner"
    version: str = VERSION

    @classmethod
    def with_template(cls, path: Path | None = None) -> ProductOwner:
        """The task with the template at `path`, or with the shipped one.

        A template may use `concept_id`, `concept`, `requirements_yaml`, `tier` and `reminder`
        (empty on the first attempt).

        Raises:
            ConfigError: the file cannot be read, or is no valid template.
        """
        where = path if path is not None else files("vllm_eval.tasks") / "product_owner.j2"
        environment = SandboxedEnvironment(  # the values are data, and no HTML is made of them
            undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
        )
        try:
            source = where.read_text(encoding="utf-8")
            template = environment.from_string(source)
            template.filename = str(where)
            names = meta.find_undeclared_variables(environment.parse(source))
        except OSError as error:
            msg = f"prompt_template: cannot read {where}: {error.strerror}"
            raise ConfigError(msg) from error
        except (UnicodeDecodeError, jinja2.TemplateError) as error:
            line = getattr(error, "lineno", None)
            place = f"{where}, line {line}" if line else str(where)
            msg = f"prompt_template: {place} is not a usable template: {error}"
            raise ConfigError(msg) from error
        known = {"concept_id", "concept", "requirements_yaml", "tier", "reminder"}
        if unknown := sorted(names - known):
            msg = f"prompt_template: {where} uses {unknown[0]!r}; there is only {sorted(known)}"
            raise ConfigError(msg)
        sha256 = hashlib.sha256(source.encode()).hexdigest()
        return cls(template, takes_reminder="reminder" in names, prompt_sha256=sha256)

    def prompt(self, case: Case, problem: Problem | None = None) -> str:
        """The text put to the model; with `problem`, a retry that names what was wrong."""
        reminder = reminder_for(problem) if problem else ""
        if case.prompt is None:
            text = self._render(case, reminder)
            if self.takes_reminder:
                return text
        else:
            text = case.prompt
        return f"{text}\n\nREMINDER: {reminder}\n" if reminder else text

    def _render(self, case: Case, reminder: str) -> str:
        try:
            return self.template.render(
                concept_id=case.id,
                concept=case.concept,
                requirements_yaml=case.requirements_yaml.strip(),
                tier=case.tier or "",
                reminder=reminder,
            )
        except (jinja2.TemplateError, *TEMPLATE_ERRORS) as error:
            msg = f"prompt_template: {self.template.filename} fails on case {case.id!r}: {error}"
            raise ConfigError(msg) from error

    def judge(self, case: Case, text: str) -> Judgement:
        """Parse, check and score one answer. Never raises for any answer."""
        blocks = self.blocks(text)
        if missing := [label for label in LABELS if label.lower() not in blocks]:
            message = f"the fenced {' and '.join(missing)} block is missing, empty or not closed"
            return Judgement(Problem("missing_yaml_blocks", message), None, {})
        vision, review = (parse_block(blocks[label.lower()]) for label in LABELS)
        score, parts = score_blocks(
            _mapping(vision.data), _mapping(review.data), case.requirements_yaml
        )
        return Judgement(check(vision, review), score, parts)

    def blocks(self, text: str) -> dict[str, str]:
        """The raw text of each block that is there, by its label in lower case."""
        found = {label.lower(): extract_block(text, label) for label in LABELS}
        return {label: block for label, block in found.items() if block is not None}


def reminder_for(problem: Problem) -> str:
    """The sentence that a retry adds to the prompt."""
    return (
        f"Your previous answer was rejected: {problem.message}. "
        "Answer again with both complete YAML blocks and nothing else."
    )


def check(vision: Parsed, review: Parsed) -> Problem | None:
    """The first rule of the contract that the two parsed blocks break, or None."""
    return (
        _check_parsed("VISION", vision)
        or _check_parsed("REVIEW", review)
        or _check_mapping("VISION", vision)
        or _check_mapping("REVIEW", review)
        or _check_vision(_mapping(vision.data))
        or _check_review(_mapping(review.data))
    )


def _check_parsed(label: str, block: Parsed) -> Problem | None:
    if block.error is None:
        return None
    place = f"line {block.line}: " if block.line else ""
    message = f"the {label} block is not valid YAML ({place}{block.error})"
    return Problem(f"invalid_{label.lower()}_yaml", message, label, block.line, block.column)


def _check_mapping(label: str, block: Parsed) -> Problem | None:
    if isinstance(block.data, dict):
        return None
    message = f"the {label} block must be a mapping of keys to values"
    return Problem(f"{label.lower()}_not_mapping", message, label)


def _check_vision(vision: dict[object, object]) -> Problem | None:
    for key in ("product_name", "product_summary"):
        if not vision.get(key):
            return Problem(f"vision_missing_{key}", f"VISION lacks a `{key}`", "VISION", key=key)
    return None


def _check_review(review: dict[object, object]) -> Problem | None:
    for key in REVIEW_KEYS:
        if key not in review:
            message = f"REVIEW lacks the key `{key}`"
            return Problem(f"review_missing_{key}", message, "REVIEW", key=key)
    alignment = review[ALIGNMENT]
    if not isinstance(alignment, dict):
        message = f"`{ALIGNMENT}` must be a mapping of aligned, gaps and conflicts"
        return Problem("alignment_not_dict", message, "REVIEW", key=ALIGNMENT)
    return (
        _check_buckets(alignment)
        or _check_actions(review["recommended_actions"])
        or _check_narrative(review["narrative"])
    )


def _check_buckets(alignment: dict[object, object]) -> Problem | None:
    for bucket in BUCKETS:
        items = alignment.get(bucket)
        key = f"{ALIGNMENT}.{bucket}"
        if items is None:
            message = f"`{key}` is missing; write [] where there is nothing"
            return Problem(f"alignment_missing_{bucket}", message, "REVIEW", key=key)
        if not isinstance(items, list):
            message = f"`{key}` must be a list"
            return Problem(f"alignment_{bucket}_not_list", message, "REVIEW", key=key)
    for bucket in BUCKETS:
        items = alignment[bucket]
        if isinstance(items, list) and any(_REQUIREMENT_ID.search(str(i)) for i in items):
            return None
    message = f"no item of `{ALIGNMENT}` names a requirement id such as FR001"
    return Problem("no_requirement_ids", message, "REVIEW", key=ALIGNMENT)


def _check_actions(actions: object) -> Problem | None:
    if isinstance(actions, list) and len(actions) >= MIN_ACTIONS:
        return None
    key = "recommended_actions"
    message = f"`{key}` must be a list of at least {MIN_ACTIONS} items"
    return Problem("insufficient_recommended_actions", message, "REVIEW", key=key)


def _check_narrative(narrative: object) -> Problem | None:
    if isinstance(narrative, str) and len(narrative.split()) <= MAX_NARRATIVE_WORDS:
        return None
    key = "narrative"
    message = f"`{key}` must be one text of at most {MAX_NARRATIVE_WORDS} words"
    return Problem("narrative_length_exceeded", message, "REVIEW", key=key)


def _mapping(data: object) -> dict[object, object]:
    return data if isinstance(data, dict) else {}
