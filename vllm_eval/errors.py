"""The exception tree, drawn once; each kind knows the exit code it ends the program with.

A model's bad answer is never one of these: it is a `records.Problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class EvalError(Exception):
    """Our own failure, with a message that says what is wrong, where, and what to do."""

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
    """The engine could not be started, or cannot go on; starting it again would not help."""


class EngineDiedError(EngineError):
    """The engine ended in the middle of its work; it may be started again with what is pending."""


@contextmanager
def foreign(ours: Callable[[Exception], Exception]) -> Iterator[None]:
    """Turn whatever other people's code raises into what `ours` makes of it, except our errors."""
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
    """The message of another library's error on one line, or its kind where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
