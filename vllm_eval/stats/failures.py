"""What went wrong and what it cost, from every attempt in one pass."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vllm_eval.records import Attempt

    Blocks = Callable[[str], Mapping[str, str]]

MAX_EXAMPLES = 3
"""Examples kept of each kind of failure; the journal holds all of them."""
BEFORE = 1
"""Lines shown before an offending one."""
TAIL = 3
"""Lines shown from the end where no line is to blame."""
WIDTH = 100
"""Columns shown of a line."""
MAX_MESSAGE = 300
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what counts as one in YAML
_KEY = re.compile(r"""^[\s-]*["']?([A-Za-z_][\w-]*)["']?\s*:""")


@dataclass(frozen=True, slots=True)
class Example:
    """One failed attempt, with the place to look at."""

    concept_id: str
    sample: int
    attempt: int
    message: str | None
    block: str | None
    line: int | None
    """Inside the block, counted from 1, as is the column."""
    column: int | None
    key: str | None
    truncated: bool
    excerpt: tuple[str, ...]
    """The offending lines with their numbers, a caret under the column; else the text's end."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The failed attempts of one arm and tier with one reason."""

    reason: str
    tier: str | None
    arm: str
    attempts: int
    outcomes: int
    """Of the attempts, those after which none was left: the answer stayed a failure."""
    truncated: int
    """Of the attempts, those cut at the token limit."""
    examples: tuple[Example, ...]
    """The first few, each of another case."""


@dataclass(frozen=True, slots=True)
class AttemptScores:
    """All attempts of one arm with the same number."""

    attempt: int
    """Counted from 1."""
    made: int
    valid: int
    valid_share: float
    """Of those made."""
    mean: float | None
    """Score of the valid ones."""
    valid_by_then: float
    """Share of all answers that were valid after at most so many attempts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What some attempts took."""

    attempts: int
    output_tokens: int
    seconds: float
    """Summed over the attempts; they ran side by side, so the run took less."""


@dataclass(frozen=True, slots=True)
class ArmAttempts:
    """Score and cost of one arm by number of the attempt; over answers, not over cases."""

    by_attempt: tuple[AttemptScores, ...]
    all: Cost
    retries: Cost
    """Every attempt but the first."""
    counts: Literal["last"] = "last"
    """The attempt that makes the outcome."""


@dataclass(frozen=True, slots=True)
class Account:
    """All attempts of a run."""

    failures: tuple[FailureGroup, ...]
    """Most frequent first."""
    attempts: Mapping[str, ArmAttempts]
    """By arm."""


def take_account(attempts: Iterable[Attempt], blocks: Blocks) -> Account:
    """Group the failures and add up the costs, with one attempt in memory at a time.

    Args:
        attempts: of all arms, in the order of the journal.
        blocks: gives the text of each block of an answer, by its label in lower case.
    """
    groups: dict[tuple[str, str | None, str], _Group] = {}
    tallies: dict[str, dict[int, _Tally]] = {}
    for attempt in attempts:
        numbers = tallies.setdefault(attempt.arm, {})
        _count(numbers.setdefault(attempt.attempt, _Tally()), attempt)
        if attempt.status != "success":
            key = (attempt.reason or attempt.status, attempt.tier, attempt.arm)
            _collect(groups.setdefault(key, _Group()), attempt, blocks)
    found = [
        FailureGroup(*key, group.attempts, group.outcomes, group.truncated, tuple(group.examples))
        for key, group in groups.items()
    ]
    found.sort(key=lambda g: (-g.attempts, -g.outcomes, g.reason, g.tier or "", g.arm))
    return Account(tuple(found), {arm: _sum_up(numbers) for arm, numbers in tallies.items()})


def make_example(attempt: Attempt, blocks: Blocks) -> Example:
    """A failed attempt with the place to look at."""
    return Example(
        concept_id=attempt.concept_id,
        sample=attempt.sample,
        attempt=attempt.attempt,
        message=attempt.error and attempt.error[:MAX_MESSAGE],
        block=attempt.block,
        line=attempt.line,
        column=attempt.column,
        key=attempt.key or _key_at(attempt, blocks),
        truncated=attempt.truncated,
        excerpt=excerpt(attempt, blocks),
    )


def split_lines(text: str) -> list[str]:
    """The lines of a text as YAML counts them."""
    return _LINE_END.split(text)


def excerpt(attempt: Attempt, blocks: Blocks) -> tuple[str, ...]:
    """The lines to look at, with their numbers: in the block to blame, else in the whole answer.

    With a place, that line, the one before and a caret; with a key, its line and the next; else
    the last lines, where an answer breaks off.
    """
    if not attempt.raw_response.strip():
        return ()
    text = blocks(attempt.raw_response).get((attempt.block or "").lower(), attempt.raw_response)
    lines = _LINE_END.split(text.rstrip())
    line = attempt.line if attempt.line is not None else _line_of(attempt.key, lines)
    if line is None:
        numbers = range(max(0, len(lines) - TAIL), len(lines))
        return tuple(_show(number, lines[number]) for number in numbers)
    place = min(line, len(lines)) - 1
    if attempt.line is None:
        return tuple(_show(n, lines[n]) for n in range(place, min(place + 2, len(lines))))
    shown = [_show(n, lines[n]) for n in range(max(0, place - BEFORE), place)]
    column = attempt.column
    if column is None:
        return (*shown, _show(place, lines[place]))
    start = max(0, column - WIDTH // 2) if len(lines[place]) > WIDTH else 0
    return (*shown, _show(place, lines[place], start), f"{'^':>{column - start + 7}}")


@dataclass(slots=True)
class _Group:
    attempts: int = 0
    outcomes: int = 0
    truncated: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    made: int = 0
    valid: int = 0
    score: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def _collect(group: _Group, attempt: Attempt, blocks: Blocks) -> None:
    group.attempts += 1
    group.outcomes += attempt.final
    group.truncated += attempt.truncated
    if len(group.examples) >= MAX_EXAMPLES or any(
        example.concept_id == attempt.concept_id for example in group.examples
    ):
        return
    group.examples.append(make_example(attempt, blocks))


def _count(tally: _Tally, attempt: Attempt) -> None:
    tally.made += 1
    tally.tokens += attempt.output_tokens
    tally.seconds += attempt.total_s
    if attempt.status == "success":
        tally.valid += 1
        tally.score += attempt.score or 0.0


def _sum_up(numbers: Mapping[int, _Tally]) -> ArmAttempts:
    answers = max(tally.made for tally in numbers.values())
    rows, valid = [], 0
    for number, tally in sorted(numbers.items()):
        valid += tally.valid
        mean = tally.score / tally.valid if tally.valid else None
        share, by_then = tally.valid / tally.made, valid / answers
        rows.append(AttemptScores(number, tally.made, tally.valid, share, mean, by_then))
    return ArmAttempts(
        by_attempt=tuple(rows),
        all=_cost(numbers.values()),
        retries=_cost(tally for number, tally in numbers.items() if number > 1),
    )


def _cost(tallies: Iterable[_Tally]) -> Cost:
    rows = list(tallies)
    return Cost(
        sum(row.made for row in rows),
        sum(row.tokens for row in rows),
        sum(row.seconds for row in rows),
    )


def _key_at(attempt: Attempt, blocks: Blocks) -> str | None:
    """The key in whose value a parser stopped: the nearest one at or above the line."""
    text = blocks(attempt.raw_response).get((attempt.block or "").lower())
    if text is None or attempt.line is None:
        return None
    for line in reversed(_LINE_END.split(text)[: attempt.line]):
        if found := _KEY.match(line):
            return found[1]
    return None


def _line_of(key: str | None, lines: list[str]) -> int | None:
    """The number, from 1, of the line that holds the last part of a key's path."""
    name = (key or "").rpartition(".")[2]
    for number, line in enumerate(lines, start=1):
        found = _KEY.match(line)
        if name and found and found[1] == name:
            return number
    return None


def _show(index: int, line: str, start: int = 0) -> str:
    return f"{index + 1:>4} | {line[start : start + WIDTH]}"
