"""Writes all files of a report into the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_eval.conclude.conclude import concluded
from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import EvalError, InputError
from vllm_eval.records import Watcher
from vllm_eval.report.stored_run import HTML, JUNIT, MARKDOWN, SUMMARY, StoredRun
from vllm_eval.store.folder import RunFolder, find_run, timestamp_of, write_text, write_zip


def write_reports(run: StoredRun) -> list[Path]:
    """Render a run: report.html, report.md, plots and files for other tools; returns their paths.

    Raises:
        InputError: the folder holds a damaged run.
    """
    from vllm_eval.report.html import write_html
    from vllm_eval.report.junit import write_junit
    from vllm_eval.report.markdown import render_summary, write_markdown
    from vllm_eval.report.plots import write_plots

    folder = run.folder
    return [
        write_html(run, folder / HTML),
        *write_plots(run.comparison, folder),
        write_junit(run, folder / JUNIT),
        write_text(folder / SUMMARY, render_summary(run)),
        write_markdown(run, folder / MARKDOWN),  # lists the others
    ]


def render(
    names: Sequence[str],
    watcher: Watcher,
    output_dir: str = "results",
    output: Path | None = None,
    mlflow: str | None = None,
) -> None:
    """Write each run's report and ZIP again and, for several runs, one page over time.

    A run that was interrupted is concluded first, from what it has. `watcher` is told what was
    written, and what a partial run lacks.

    `names` are folders of runs, or their names in `output_dir`; `output` is the page over time, by
    default `history.html` in `output_dir`; `mlflow` is a store's address that gets the runs too.

    Raises:
        InputError: runs are missing, damaged or cannot be written to, which is said once all others
            are done; or the page cannot be written, or MLflow cannot be used.
    """
    from vllm_eval.report.history import FILE, write_history
    from vllm_eval.report.mlflow_log import log_run

    written: dict[Path, tuple[StoredRun, list[Path]]] = {}
    bad: dict[str, None] = {}
    for name in names:
        try:
            folder = find_run(name, output_dir)
            if folder.resolve() not in written:
                run = StoredRun(folder, concluded(folder))
                files = write_reports(run)
                archive = write_zip(RunFolder(folder, timestamp_of(folder, run.environment)))
                written[folder.resolve()] = run, [*files, archive]
        except EvalError as error:  # also of a journal: here it is input
            bad[str(error)] = None
        except OSError as error:
            bad[f"{error.filename2 or error.filename or name}: {error.strerror or error}"] = None
    runs = [run for run, _ in written.values()]
    for run, files in written.values():
        folder, pending = run.folder, run.comparison["pending"]
        if run.comparison["partial"]:
            watcher.stage(f"{folder}: partial, {pending:,} answers are pending: --resume {folder}")
        watcher.stage(f"{folder / HTML}")
        if mlflow:
            watcher.stage(f"logged to {mlflow} as {log_run(run, mlflow, files)}")
    if len(runs) > 1 or output:
        path = output or resolve_path(output_dir) / FILE
        watcher.stage(str(write_history(runs, path)))
    if bad:
        raise InputError("\n".join(bad))
