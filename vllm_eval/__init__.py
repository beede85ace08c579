"""Decide whether a LoRA adapter is good enough to ship: base and students in one vLLM engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.report.display import ShownRun

__version__ = "0.1.0"


def show(run: str | Path, output_dir: str = "results") -> ShownRun:
    """A stored run, rendered by notebooks with verdict, tables and plots.

    Args:
        run: its folder, or its name in `output_dir`.
        output_dir: where runs lie.

    Raises:
        InputError: there is no such run, or a damaged one.
    """
    from vllm_eval.report import display

    return display.show(run, output_dir)
