"""What a journal has brought to an end, what it has begun, and whether that is all of it."""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING

from vllm_eval.errors import EvalError
from vllm_eval.records import Begun, Key, Ledger, Outcome, Problem
from vllm_eval.store.journal import read_journal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllm_eval.records import Attempt


def read_outcomes(path: Path) -> list[Outcome]:
    """One outcome for each arm, case and sample that the journal has brought to an end."""
    first_valid: dict[Key, bool] = {}  # of those that are begun and not yet ended
    outcomes = []
    for _, attempt in read_journal(path):
        key = _key(attempt)
        first = first_valid.setdefault(key, attempt.status == "success")
        if attempt.final:
            del first_valid[key]
            outcomes.append(
                Outcome(
                    arm=key[0],
                    concept_id=key[1],
                    tier=attempt.tier and intern(attempt.tier),
                    sample=attempt.sample,
                    status=attempt.status,
                    reason=attempt.reason and intern(attempt.reason),
                    score=attempt.score,
                    attempts=attempt.attempt,
                    first_valid=first,
                )
            )
    return outcomes


def read_ledger(path: Path) -> Ledger:
    """What the journal at `path` has brought to an end, and what it has begun."""
    done: set[Key] = set()
    begun: dict[Key, Begun] = {}
    attempts = valid = tokens = 0
    seconds = 0.0
    for _, attempt in read_journal(path):
        key = _key(attempt)
        attempts += 1
        valid += attempt.status == "success"
        tokens += attempt.output_tokens
        seconds = max(seconds, attempt.finished_at)
        if attempt.final:
            done.add(key)
            begun.pop(key, None)
        else:
            graded = attempt.status == "format_error"
            place = (attempt.block, attempt.line, attempt.column)
            problem = Problem(attempt.reason or "", attempt.error or "", *place) if graded else None
            begun[key] = Begun(attempt.attempt, problem)
    return Ledger(done, begun, valid, attempts, tokens, seconds)


def _key(attempt: Attempt) -> Key:
    """Of names that many attempts share, so that each stands in memory once."""
    return intern(attempt.arm), intern(attempt.concept_id), attempt.sample


def check_complete(
    outcomes: Iterable[Outcome], expected: Iterable[Key], *, partial: bool = False
) -> None:
    """Exactly one outcome for each expected arm, case and sample, and no other.

    With `partial` some may still be pending, but none may be there twice.

    Raises:
        EvalError: one is missing, twice there or foreign; no verdict can stand on that.
    """
    pending = set(expected)
    for outcome in outcomes:
        key = (outcome.arm, outcome.concept_id, outcome.sample)
        if key not in pending:
            msg = f"the journal holds an outcome twice, or one nobody asked for: {key}"
            raise EvalError(msg)
        pending.remove(key)
    if pending and not partial:
        msg = f"the journal lacks {len(pending)} outcomes, for example {min(pending)}"
        raise EvalError(msg)
