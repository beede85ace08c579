"""What a check found: one line each, for a person or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vllm_eval.errors import EvalError

Level = Literal["ok", "warning", "error"]
"""`error`: the run cannot go well. `warning`: it can, but look at this. `ok`: looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    where: str
    """File, option or part of the machine."""
    what: str
    todo: str = ""
    """What to do; empty where nothing has to be done."""

    @property
    def line(self) -> str:
        """All of it in one line; what came from a file and cannot be printed is escaped."""
        text = f"{self.where}: {self.what}" + (f"; {self.todo}" if self.todo else "")
        shown = (c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
        return f"{self.level:<7}  {''.join(shown)}"


class Findings(tuple[Finding, ...]):
    """All that a check found, in its order; shows itself as its lines."""

    __slots__ = ()

    @property
    def passed(self) -> bool:
        """Whether none of them is an error: the run can start."""
        return all(finding.level != "error" for finding in self)

    def __repr__(self) -> str:
        return "\n".join(finding.line for finding in self)


def ok(where: str, what: str) -> Finding:
    """Looked at and in order."""
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
    return error(where, what, todo) if semicolon else error(where, rest, "")
