"""The exception tree; each kind has the exit code that it ends the program with.

A model's bad answer is never one of these: it is a `records.Problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class EvalError(Exception):
    """Our own failure; the message says what is wrong, where, and what to do."""

    exit_code: ClassVar[int] = 3


class InputError(EvalError):
    """Bad usage or input: a flag, a configuration file, a data set, an adapter folder."""

    exit_code: ClassVar[int] = 2


class ConfigError(InputError):
    """A configuration key or value that cannot be used; the message names its path."""


class DatasetError(InputError):
    """A data set that cannot be read; the message names file and line."""


class AdapterError(InputError):
    """An adapter that cannot be found or served; the message names folder and file."""


class EngineError(EvalError):
    """The engine could not start, or cannot continue; restarting it would not help."""


class EngineDiedError(EngineError):
    """The engine died; it may be restarted with what is pending."""


@contextmanager
def foreign(ours: Callable[[Exception], Exception]) -> Iterator[None]:
    """Turn errors of other people's code into ours by `ours`; our own pass unchanged."""
    try:
        yield
    except EvalError:
        raise
    except Exception as error:  # libraries and users' modules have no common error
        made = ours(error)
        if made is error:
            raise
        raise made from error


def one_line(error: BaseException, most: int = 400) -> str:
    """The message of another library's error on one line, or its type if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
