"""The `report` command: stored runs rendered again, several of them as a history as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vllm_eval.config import resolve_path
from vllm_eval.errors import EvalError, InputError
from vllm_eval.report.write import HTML, write_reports
from vllm_eval.store import find_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vllm_eval.report.stored_run import StoredRun


class Teller(Protocol):
    """Whoever shows how it goes."""

    def stage(self, text: str) -> None:
        """A line."""


def render(
    names: Sequence[str],
    teller: Teller,
    output_dir: str = "results",
    output: Path | None = None,
    mlflow: str | None = None,
) -> None:
    """Write each run's report anew and, for several runs, one page over time.

    Args:
        names: folders of runs, or their names in `output_dir`.
        teller: is told what was written, and what a partial run lacks.
        output_dir: where runs lie.
        output: the page over time; by default `history.html` in `output_dir`.
        mlflow: address of an MLflow store that gets the runs too.

    Raises:
        InputError: runs are missing, damaged or cannot be written to, which is said once all others
            are done; or the page cannot be written, or MLflow cannot be used.
    """
    from vllm_eval.report.history import FILE, write_history
    from vllm_eval.report.mlflow_log import log_run
    from vllm_eval.report.stored_run import load_run

    written: dict[Path, tuple[StoredRun, list[Path]]] = {}
    bad: dict[str, None] = {}
    for name in names:
        try:
            folder = find_run(name, output_dir)
            if folder.resolve() not in written:
                files = write_reports(folder)
                written[folder.resolve()] = load_run(folder), files
        except EvalError as error:  # also of a journal: here it is input
            bad[str(error)] = None
        except OSError as error:
            bad[f"{error.filename2 or error.filename or name}: {error.strerror or error}"] = None
    runs = [run for run, _ in written.values()]
    for run, files in written.values():
        folder, owed = run.folder, run.comparison["owed"]
        if run.comparison["partial"]:
            teller.stage(f"{folder}: partial, {owed:,} answers are owed: --resume {folder}")
        teller.stage(f"{folder / HTML}")
        if mlflow:
            teller.stage(f"logged to {mlflow} as {log_run(run, mlflow, files)}")
    if len(runs) > 1 or output:
        path = output or resolve_path(output_dir) / FILE
        teller.stage(str(write_history(runs, path)))
    if bad:
        raise InputError("\n".join(bad))
