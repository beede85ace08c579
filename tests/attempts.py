"""Attempts as a journal holds them, made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_eval.diagnose.survey import Survey
from vllm_eval.records import Attempt, Status
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_eval.diagnose.example import Blocks
    from vllm_eval.records import Case
    from vllm_eval.tasks import Task


def attempt(case: str = "K1", number: int = 1, **changes: Any) -> Attempt:
    """A valid attempt with some fields replaced."""
    status: Status = "success"
    fields: dict[str, Any] = {
        "arm": "pupil",
        "concept_id": case,
        "tier": "simple",
        "sample": 0,
        "attempt": number,
        "final": True,
        "status": status,
        "score": 0.8,
        "parts": {},
        "output_tokens": 10,
        "total_s": 0.5,
        "truncated": False,
        "raw_response": "",
    }
    empty = ("reason", "error", "block", "line", "column", "finish_reason")
    zero = ("seed", "prompt_tokens", "cached_tokens", "queued_s", "ttft_s", "finished_at")
    fields |= dict.fromkeys(empty) | dict.fromkeys(zero, 0)
    return Attempt(**(fields | changes))


def failed(case: str = "K1", number: int = 1, reason: str = "no_ids", **changes: Any) -> Attempt:
    return attempt(case, number, status="format_error", reason=reason, **changes)


def graded(task: Task, case: Case, text: str, **changes: Any) -> Attempt:
    """The failed attempt that an answer is."""
    problem = task.grade(case, text).problem
    assert problem is not None
    place = {key: getattr(problem, key) for key in ("block", "line", "column", "key")}
    given: dict[str, Any] = place | {"error": problem.message, "raw_response": text}
    return failed(reason=problem.reason, **(given | changes))


def surveyed(attempts: Iterable[Attempt], blocks: Blocks | None = None) -> Survey:
    """All attempts counted; `blocks` splits an answer, as the product owner's task by default."""
    task = open_task("product_owner")
    found = Survey(blocks or task.blocks, task.declaration)
    for attempt in attempts:
        found.take(attempt)
    return found
