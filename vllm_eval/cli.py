"""The program: calls a command, and ends with an exit code whatever happens."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.completion import shell_complete

from vllm_eval.commands import BAD_INPUT, COULD_NOT_EVALUATE, INTERRUPTED, MODULE, app
from vllm_eval.config.flags import SCRIPT
from vllm_eval.errors import EvalError

if TYPE_CHECKING:
    from collections.abc import Sequence

IMPOSSIBLE_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ)
"""Errors of the file system that only a name given by the user can bring about."""


def main(argv: Sequence[str] | None = None) -> None:
    """The program: never returns, exits with one of the documented codes."""
    # The interpreter's last collections would go through all that torch and vLLM made: seconds.
    atexit.register(gc.freeze)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # closes engines, as Ctrl-C does
    code = COULD_NOT_EVALUATE
    try:
        code = _call(sys.argv[1:] if argv is None else list(argv))
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f"\n{context.command_path} --help lists the options" if context else ""
        _fail(f"{error.format_message()}{hint}", BAD_INPUT)
    except KeyboardInterrupt:
        _fail("interrupted; the run's journal has everything that had finished", INTERRUPTED)
    except EvalError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # a full disk, a folder taken away: no defect of ours
        code = BAD_INPUT if error.errno in IMPOSSIBLE_NAMES else COULD_NOT_EVALUATE
        _fail(f"{error.filename or 'files'}: {error.strerror or error}", code)
    except Exception as error:  # noqa: BLE001  the one place where the unforeseen ends
        traceback.print_exc()
        _fail(f"this is a defect of vllm_eval: {error!r}", COULD_NOT_EVALUATE)
    sys.exit(code)


def _call(arguments: list[str]) -> int:
    """Call a command. Not by typer's own `main`, which has other exit codes."""
    name = MODULE if Path(sys.argv[0]).name == "__main__.py" else SCRIPT
    group = typer.main.get_command(app)
    variable = "_VLLM_EVAL_COMPLETE"
    if asked := os.environ.get(variable):
        return shell_complete(group, {}, SCRIPT, variable, asked)
    try:
        with group.make_context(name, arguments) as context:
            code = group.invoke(context)
    except typer.Exit as leave:
        return leave.exit_code
    return int(code)


def _fail(text: str, code: int) -> None:
    from vllm_eval.report.terminal import show_error

    show_error(text)
    sys.exit(code)
