"""All that a report consists of, into the run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_eval import store
from vllm_eval.report.stored_run import load_run

if TYPE_CHECKING:
    from pathlib import Path

HTML, MARKDOWN, SUMMARY, JUNIT = "report.html", "report.md", "summary.md", "junit.xml"


def write_reports(folder: Path) -> list[Path]:
    """Render a run anew: report.html, report.md, plots and what other tools read; then the ZIP.

    A run that was cut off is concluded first, from what it has.

    Returns the files written.

    Raises:
        InputError: the folder holds no run of ours, or a damaged one.
    """
    from vllm_eval.report.html import write_html
    from vllm_eval.report.junit import write_junit
    from vllm_eval.report.markdown import write_markdown, write_summary
    from vllm_eval.report.plots import write_plots

    run = load_run(folder)
    timestamp = store.timestamp_of(folder, run.environment)
    files = [
        write_html(run, folder / HTML),
        *write_plots(run.comparison, folder),
        write_junit(run, folder / JUNIT),
        write_summary(run, folder / SUMMARY),
        write_markdown(run, folder / MARKDOWN),  # lists the others
    ]
    return [*files, store.write_zip(store.RunFolder(folder, timestamp))]
