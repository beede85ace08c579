"""The live display, on a pseudo-terminal, and what may not reach a terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Answers, Bench

    Show = Callable[[], tuple[int, str]]


@pytest.fixture
def show(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Run the bench with standard output on a terminal; exit code and what it received."""

    def run() -> tuple[int, str]:
        received = bytearray()

        def drain() -> None:
            try:
                while chunk := os.read(ours, 4096):
                    received.extend(chunk)
            except OSError:  # the other end is closed
                pass

        ours, theirs = pty.openpty()
        reader = threading.Thread(target=drain)
        reader.start()
        with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "150")
            patch.setattr(sys, "stdout", terminal)
            code = bench.run().code
        reader.join(10)
        os.close(ours)
        return code, received.decode("utf-8")

    return run


def test_a_terminal_sees_the_cases_counted(bench: Bench, answers: Answers, show: Show) -> None:
    bench.dataset(2)
    bench.answers(
        {"text": answers.text()}, {"concept_id": "K2", "text": answers.text(), "seconds": 0.3}
    )
    code, shown = show()
    assert code == 0
    assert "2/4" in shown
    assert "4/4" in shown


def test_a_terminal_sees_the_verdict_and_how_sure_it_is_last(
    bench: Bench, answers: Answers, show: Show
) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    verdict, sure = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", show()[1]).splitlines()[-2:]
    assert verdict.split() == ["PASS", "pupil"]
    assert sure.endswith("`--certify 0.95` would say UNDECIDED.")


def test_a_terminal_gets_no_command_out_of_a_record(
    bench: Bench, answers: Answers, show: Show
) -> None:
    bench.dataset(2, tier="\x1b]0;owned\x07[bold]tier[/bold]\u202e")
    bench.answers({"text": answers.text()})
    shown = show()[1]
    assert "\x1b]0" not in shown
    assert "\u202e" not in shown
    assert "[bold]tier[/bold]" in shown
