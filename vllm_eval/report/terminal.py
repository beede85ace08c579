"""The terminal: live progress, the tables at the end, messages."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import orjson
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from vllm_eval.conclude.results import Finished
from vllm_eval.preflight.finding import Finding
from vllm_eval.preflight.reused import reused_to_json
from vllm_eval.records import BASELINE, Progress
from vllm_eval.report.curve import curve_tables
from vllm_eval.report.run_tables import counted, run_tables, shown
from vllm_eval.report.tables import COLOURS, selected_lines, timing_lines, verdict_lines
from vllm_eval.report.words import look_note, reused_note, settled_note
from vllm_eval.text import plain

PLAIN_INTERVAL_S = 10.0
"""Seconds between progress lines if the output is not a terminal."""
PLAIN_WIDTH = 120
"""Columns of a table if the output is not a terminal."""


class UnbreakableConsole(Console):
    """Continues silently if the reader of the output has left: the run matters more."""

    def on_broken_pipe(self) -> None:
        """Rich would end the program with exit code 1, which means FAIL."""
        self.quiet = True


class Terminal(contextlib.AbstractContextManager["Terminal"]):
    """Shows a run's progress; keeps the terminal while an engine takes over the output."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Keep a private copy of the stream, because the engine redirects it to its log.

        It is standard output by default, or standard error where that is for JSON alone.
        """
        self._stream = stream or sys.stdout
        self._out = _private(self._stream)
        width = None if self._out.isatty() else PLAIN_WIDTH
        self.console = UnbreakableConsole(file=self._out, highlight=False, emoji=False, width=width)
        self._bar: Bar | None = None
        self._last_line = 0.0

    def __exit__(self, *_: object) -> None:
        """Remove the live display."""
        self._stop()
        if self._out is not self._stream:
            with contextlib.suppress(BrokenPipeError):
                self._out.close()

    def stage(self, text: str) -> None:
        """Announce a new stage."""
        self._stop()
        self.console.print(Text(plain(text)), soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        """Show progress."""
        late = time.monotonic() - self._last_line >= PLAIN_INTERVAL_S
        if self._out.isatty():  # in Jupyter, rich takes a pipe for a terminal
            self._show_bar(progress)
        elif late or progress.done == progress.total:
            self._last_line = time.monotonic()
            line = f"  {progress.done}/{progress.total} done, {_detail(progress)}"
            self.console.print(Text(line), soft_wrap=True)

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Show tables and lines."""
        for part in parts:
            self.console.print(part)

    def finished(self, finished: Finished) -> None:
        """Show the tables, the verdicts and the place of the files."""
        self._stop()
        self.show(run_tables(finished))
        best = "" if finished.pending else finished.ranking[0].arm
        self.show(curve_tables(finished.curves, best))
        for line in timing_lines(finished.timing):
            self.console.print(Text(line), soft_wrap=True)
        self.console.print(Text(f"files in {plain(str(finished.folder))}"), soft_wrap=True)
        if finished.pending:
            text = f"interrupted, {finished.pending} outcomes pending; --resume {finished.folder}"
            self.console.print(Text(plain(text), style="bold yellow"), soft_wrap=True)
            return
        self._verdicts(finished)
        for arm, found in finished.looks.items():
            if arm in shown(finished) and (note := look_note(asdict(found))):
                self.stage(f"{arm}: {note}")
        for why in finished.unread:
            self.stage(f"not counted among the looks at these cases: {why}")
        if finished.word != "PASS" and finished.diagnosis.attempts:
            folder = shlex.quote(str(finished.folder))
            hint = f"why, and what would help: python -m vllm_eval diagnose {folder}"
            self.console.print(Text(plain(hint)), soft_wrap=True)

    def _verdicts(self, finished: Finished) -> None:
        for note in _what_counts(finished):
            self.stage(note)
        if finished.select == "best":
            for said in selected_lines(finished.word, finished.selected):
                self.console.print(said, soft_wrap=True)
        elif len(finished.verdicts) > len(shown(finished)):
            which = "selected one" if finished.selected else "best"
            counts = f"{finished.word}  {counted(finished)}. The {which}:"
            self.console.print(Text(counts, f"bold {COLOURS[finished.word]}"), soft_wrap=True)
        for verdict in (v for v in finished.verdicts if v.arm in shown(finished)):
            so = "  (every answer constrained to the task's grammar)"
            only = so if finished.constrained.mode == "only" else ""
            for said in verdict_lines(verdict, f"{_base(finished.quantization)}{only}"):
                self.console.print(said, soft_wrap=True)

    def _show_bar(self, progress: Progress) -> None:
        if self._bar is None:
            what, detail = TextColumn("{task.description}"), TextColumn("{task.fields[detail]}")
            columns = (what, BarColumn(), MofNCompleteColumn(), detail)
            # The standard streams are the engine's, and belong into its log.
            self._bar = Bar(
                *columns, console=self.console, redirect_stdout=False, redirect_stderr=False
            )
            self._bar.add_task("cases", total=progress.total, detail="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=progress.done, detail=_detail(progress))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def only_json() -> Iterator[TextIO]:
    """Keeps standard output free for JSON; yields standard error, for everything else.

    What libraries or an engine's native code print meanwhile goes to standard error too.
    """
    with contextlib.ExitStack() as stack:
        other = sys.stderr or stack.enter_context(Path(os.devnull).open("w"))
        try:
            ours, place = sys.stdout.fileno(), other.fileno()
        except (OSError, ValueError, AttributeError):  # a stream without a file, as in a test
            stack.enter_context(contextlib.redirect_stdout(other))
            yield other
            return
        sys.stdout.flush()
        kept = os.dup(ours)
        os.dup2(place, ours)
        try:
            yield other
        finally:
            sys.stdout.flush()
            os.dup2(kept, ours)
            os.close(kept)


def write_out(text: str) -> None:
    """Plain text to standard output; where its reader has left, to nowhere.

    Click would end the program with exit code 1, which is our word for FAIL.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def show_json(data: Sequence[object] | Mapping[str, Any]) -> None:
    """One JSON value on standard output."""
    write_out(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode() + "\n")


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """What the preflight found: a line each, or one JSON array."""
    if as_json:
        keys = ("level", "where", "what", "todo")
        show_json([{key: getattr(finding, key) for key in keys} for finding in findings])
        return
    console = UnbreakableConsole(highlight=False, emoji=False)
    styles = {"error": "red", "warning": "yellow", "ok": ""}
    for finding in findings:
        console.print(Text(finding.line, style=styles[finding.level]), soft_wrap=True)


def _what_counts(finished: Finished) -> Iterator[str]:
    """Which answers the verdict is about, where not simply all that the run asked."""
    if finished.settled:
        yield settled_note(finished.settled)
    if reused := reused_to_json(finished.reused):
        yield f"{BASELINE}: {reused_note(reused)}"


def _base(quantization: str) -> str:
    """A note for the verdict line on the base that all arms use."""
    if quantization == "none":
        return ""
    if quantization == "unknown":
        return "  (the server does not say whether its base is quantised)"
    return f"  (all arms on a base quantised by {plain(quantization)})"


def _private(stream: TextIO) -> TextIO:
    try:
        number = os.dup(stream.fileno())
    except (OSError, ValueError, AttributeError):  # a stream without a file, as in a test
        return stream
    return os.fdopen(number, "w", buffering=1, encoding=stream.encoding, errors="replace")


def _detail(progress: Progress) -> str:
    speed = progress.output_tokens / progress.seconds if progress.seconds else 0.0
    parts = [
        f"{progress.valid} valid",
        f"{progress.failed} failed",
        f"{progress.running} running, {progress.retries} of them retries",
        f"{speed:.0f} tokens/s",
    ]
    answered = progress.done - progress.reused
    if answered and progress.done < progress.total:
        left = progress.seconds / answered * (progress.total - progress.done)
        parts.append(f"about {left:.0f} s left")
    return ", ".join(parts)
