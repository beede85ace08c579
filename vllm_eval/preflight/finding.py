"""Findings of a check: one line each, for a person or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vllm_eval.errors import EvalError

Level = Literal["ok", "warning", "error"]
"""`error`: the run would fail. `warning`: it can work, but look at this. `ok`: checked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    level: Level
    where: str
    """File, option or part of the machine."""
    what: str
    todo: str = ""
    """What to do; empty if there is nothing to do."""
    cause: EvalError | None = field(default=None, repr=False, compare=False)
    """The exception that the finding was made from."""

    @property
    def line(self) -> str:
        """Level and message."""
        return f"{self.level:<7}  {self.message}"

    @property
    def message(self) -> str:
        """`where: what; todo` in one line, with unprintable characters escaped."""
        text = f"{self.where}: {self.what}" + (f"; {self.todo}" if self.todo else "")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


class Findings(tuple[Finding, ...]):
    """All findings of a check, in order; shows itself as their lines."""

    __slots__ = ()

    @property
    def passed(self) -> bool:
        """Whether the run can start: no finding is an error."""
        return all(finding.level != "error" for finding in self)

    def __repr__(self) -> str:
        return "\n".join(finding.line for finding in self)


def ok(where: str, what: str) -> Finding:
    """Checked and in order."""
    return Finding("ok", where, what)


def warning(where: str, what: str, todo: str) -> Finding:
    """The run can go on."""
    return Finding("warning", where, what, todo)


def error(where: str, what: str, todo: str) -> Finding:
    """The run must not start."""
    return Finding("error", where, what, todo)


def from_error(failed: EvalError) -> Finding:
    """One of our own errors, whose messages read `where: what; what to do`."""
    where, colon, rest = str(failed).partition(": ")
    if not colon:
        where, rest = "configuration", where
    what, semicolon, todo = rest.rpartition("; ")
    if not semicolon:
        what, todo = rest, ""
    return Finding("error", where, what, todo, failed)


def counted(names: Sequence[str], noun: str) -> str:
    """The number, and the first name, escaped and shortened because it comes from a file."""
    shown = names[0] if len(names[0]) <= 80 else f"{names[0][:80]}..."
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} (first {shown!r})"
