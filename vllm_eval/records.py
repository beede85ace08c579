"""The nouns of an evaluation: flat, and frozen but for `Ledger` and `Progress`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from annotated_types import Ge, Le

TOO_LONG = "prompt_too_long"
"""Reason of an outcome whose prompt was never sent to an engine."""


Key = tuple[str, str, int]
"""Arm, concept id and sample, which have exactly one outcome."""

_Count = Annotated[int, Ge(0)]
_Share = Annotated[float, Ge(0), Le(1)]


BASELINE = "baseline"
"""Name of the arm of the bare base model."""
CONSTRAINED = "+constrained"
"""Suffix of the name of an arm's constrained variant; names of adapters contain no `+`."""

Status = Literal["success", "format_error", "error"]
"""`format_error`: the model's answer broke the contract. `error`: there is no answer to grade."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a task, as read from one line of the data set."""

    id: str
    line: int
    """Line in the data set, counted from 1."""
    tier: str | None
    inputs: Mapping[str, str]
    """The texts that the task declares, by name; an absent optional one is empty."""
    prompt: str | None = None
    """The record's own prompt; used verbatim instead of the template."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on disk, from its JSON and safetensors headers alone."""

    name: str
    path: Path
    base_model: str | None
    """`base_model_name_or_path` of its `adapter_config.json`."""
    rank: int
    """The largest rank of any of its modules."""
    sha256: str
    """Hash over the configuration and the weights."""
    content: str
    """Hash over what it does: that of two copies is the same, whatever the order of their keys."""
    step: int | None = None
    """Training step at which it was saved, where its folder tells."""
    training: Path | None = None
    """Folder of the training run of which it is a checkpoint or the end; None if not known."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of the comparison: the bare base, or the base with one adapter."""

    name: str
    adapter: Adapter | None = None
    """None for the baseline, and for an arm that is only a label (scripted engine)."""
    given: str | None = None
    """What was configured for it, where no files of its adapter are here."""
    grammar: str | None = None
    """GBNF that constrains its answers; None if the model answers freely."""
    variant_of: str | None = None
    """The free arm of a constrained variant, with the same weights and prompts."""

    @property
    def model(self) -> str:
        """The name of its weights; a variant shares those of its free arm."""
        return self.variant_of or self.name


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the engine."""

    id: str
    arm: str
    case_id: str
    sample: int
    """Which of the samples of a case, counted from 0."""
    attempt: int
    """Counted from 1, with those that an engine error ended."""
    prompt: str
    seed: int
    engine_errors: int = 0
    """How many of the earlier attempts at this answer an engine error ended."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's result for one request."""

    request_id: str
    text: str = ""
    finish_reason: str | None = None
    """As in vLLM: `stop`, `length`, `abort`; None if the request failed."""
    error: str | None = None
    """Why there is no answer; None if there is one."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    queued_s: float = 0.0
    """Seconds from submission to the first scheduling."""
    ttft_s: float = 0.0
    """Seconds from submission to the first token (time to first token)."""
    total_s: float = 0.0
    """Seconds from submission to the last token."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an answer breaks the contract, in the words of `product_owner.md`."""

    reason: str
    message: str
    """One sentence for the model that names what was wrong."""
    block: str | None = None
    """The block to blame, such as `VISION`, if there is one."""
    line: int | None = None
    """Line inside the block, counted from 1."""
    column: int | None = None
    """Column inside the line, counted from 1."""
    key: str | None = None
    """Path of the key to blame, such as `requirements_alignment.gaps`, if there is one."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The task's grade of one answer. The task never learns which arm gave it."""

    problem: Problem | None
    """None for an answer that keeps the contract."""
    score: float | None
    """Metric in [0, 1] of what parsed; None if a block is missing."""
    parts: Mapping[str, float]
    """Points of each part of the metric, before division."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of the journal: a request, its completion and its grade."""

    arm: str
    concept_id: str
    tier: str | None
    sample: _Count
    attempt: _Count
    """Place among the lines of its arm, case and sample, counted from 1."""
    final: bool
    """Whether this attempt is the outcome of its arm, case and sample."""
    status: Status
    reason: str | None
    error: str | None
    """The problem's sentence or the engine's message."""
    block: str | None
    line: int | None
    column: int | None
    truncated: bool
    """The answer was truncated at the token limit."""
    score: _Share | None
    parts: Mapping[str, float]
    seed: int
    prompt_tokens: _Count
    output_tokens: _Count
    cached_tokens: _Count
    queued_s: float
    ttft_s: float
    total_s: float
    finish_reason: str | None
    finished_at: float
    """Seconds since the evaluation began."""
    raw_response: str
    key: str | None = None
    """The problem's key."""
    engine_errors: _Count = 0
    """Engine errors up to this line, of its arm, case and sample; 0 from earlier versions, which
    counted an engine error as an attempt of the model."""
    reused: bool = False
    """Whether it was copied from another run, which asked it: this run spent nothing on it."""

    @property
    def number(self) -> int:
        """Attempts of the model up to this line."""
        return self.attempt - self.engine_errors

    @property
    def uncounted(self) -> bool:
        """Whether an engine error ended it, so that it is no attempt of the model."""
        return self.status == "error" and self.engine_errors > 0


@dataclass(frozen=True, slots=True)
class Repair:
    """The grade of a failed answer after a repair of its text; it still counts as failed."""

    names: tuple[str, ...]
    """The repairs it takes."""
    score: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an arm, case and sample after its last attempt, without the text."""

    arm: str
    concept_id: str
    tier: str | None
    sample: int
    status: Status
    reason: str | None
    score: float | None
    attempts: int
    """Those of the model: an engine error is none."""
    first_valid: bool
    """Whether the first attempt already kept the contract."""
    repair: Repair | None = None
    """For an answer that broke the contract: a repair that makes it keep it, if there is one."""


@dataclass(frozen=True, slots=True)
class Begun:
    """An arm, case and sample whose last recorded attempt failed and needs another one."""

    attempts: int
    problem: Problem | None
    """Of its last answer; None if there was none."""
    engine_errors: int = 0
    """How many of the attempts an engine error ended."""


@dataclass(slots=True)
class Ledger:
    """What a journal holds; kept up to date while it grows."""

    done: set[Key]
    begun: dict[Key, Begun]
    valid: int = 0
    """Of those done, how many kept the contract."""
    reused: int = 0
    """Of those done, how many were copied from another run; what follows is without them."""
    attempts: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    """Evaluation time up to the last recorded attempt, over all sessions."""


@dataclass(slots=True)
class Progress:
    """The progress of an evaluation; updated in place."""

    total: int
    """Outcomes expected."""
    done: int = 0
    reused: int = 0
    """Of those done, how many were copied from another run."""
    valid: int = 0
    failed: int = 0
    running: int = 0
    retries: int = 0
    """Of the running ones, how many are not the model's first attempt."""
    attempts: int = 0
    """Over all sessions of the run, like the tokens and seconds."""
    output_tokens: int = 0
    seconds: float = 0.0
    grading_s: float = 0.0
    """Spent on parsing, checking and scoring in this session."""
    stopping: bool = False
    """Set it to end the evaluation early; nothing more is then submitted."""


class Watcher(Protocol):
    """Receives progress and messages, for example for a terminal."""

    def stage(self, text: str) -> None:
        """A stage begins, or there is a message about it."""

    def progress(self, progress: Progress) -> None:
        """There is progress; the record is the same one each time."""


def free_arms(arms: Iterable[str]) -> list[str]:
    """The arms that are not constrained variants."""
    return [arm for arm in arms if not arm.endswith(CONSTRAINED)]
