"""The program: calls a command, and ends with an exit code whatever happens."""

from __future__ import annotations

import atexit
import contextlib
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
from vllm_eval.text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

DEFECT = "this is a defect of vllm_eval"
INTERRUPT = "interrupted; the run's journal has everything that had finished"
IMPOSSIBLE_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ)
"""Errors of the file system that only a name given by the user can bring about."""


def main(argv: Sequence[str] | None = None) -> None:
    """The program: never returns, exits with one of the documented codes."""
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    _open_closed_streams()
    # The interpreter's last collections would go through all that torch and vLLM made: seconds.
    atexit.register(gc.freeze)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, interrupt)
    try:
        code = _call(sys.argv[1:] if argv is None else list(argv))
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  where the unforeseen ends
        text, code = _explain(error)
        if interrupts and code != INTERRUPTED:
            # An interrupt amid an import comes out of it as whatever error the import makes of it.
            text, code = f"{INTERRUPT} (then: {text})", INTERRUPTED
        elif text.startswith(DEFECT):
            _say(traceback.format_exc())
        _say(f"error: {text}")
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give a closed standard stream a place to go: a file opened next would take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


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


def _explain(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "\n".join([INTERRUPT, *getattr(error, "__notes__", ())]), INTERRUPTED
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"\n{context.command_path} --help lists the options" if context else ""
        return f"{error.format_message()}{hint}", BAD_INPUT
    if isinstance(error, EvalError):
        return str(error), error.exit_code
    if isinstance(error, OSError):  # a full disk, a folder taken away: no defect of ours
        code = BAD_INPUT if error.errno in IMPOSSIBLE_NAMES else COULD_NOT_EVALUATE
        return f"{error.filename or 'files'}: {error.strerror or error}", code
    return f"{DEFECT}: {error!r}", COULD_NOT_EVALUATE


def _say(text: str) -> None:
    """A message on standard error, which may be closed or full: the exit code says enough.

    Imports nothing, since an import that an interrupt broke off may fail when it is tried again.
    """
    try:
        print(*map(plain, text.split("\n")), sep="\n", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        # What is left of it fails again as the interpreter ends, which would make the code 120.
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
