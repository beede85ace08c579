"""Several runs on one page: score and validity over time, per adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.report.charts import Series
from vllm_eval.report.html import render_page
from vllm_eval.report.plots import history_svg
from vllm_eval.report.stored_run import HTML, StoredRun
from vllm_eval.store.folder import write_text

FILE = "history.html"


@dataclass(frozen=True, slots=True)
class PastArm:
    """One arm of one run."""

    begun: datetime
    run: str
    link: str
    """To the run's own report, from the page's folder."""
    arm: str
    line: str
    """The line of the plot it belongs to."""
    verdict: str | None
    """None for the baseline."""
    summary: Mapping[str, Any]
    ratio: float | None
    partial: bool
    look: Mapping[str, Any] | None
    """Which one at its cases; None for the baseline."""
    data: str
    """First characters of the data set's hash."""


def write_history(runs: Sequence[StoredRun], path: Path) -> Path:
    """One page over all runs, oldest first, with links to each one's report.

    Raises:
        InputError: the page cannot be written there.
    """
    every = (row for run in runs for row in _rows(run, path.parent))
    rows = sorted(every, key=lambda row: row.begun)
    lines = dict.fromkeys((row.arm != BASELINE, row.line) for row in rows)
    ordered = sorted(lines, key=lambda line: line[0])  # the baselines first
    page = render_page(
        "history.html.j2",
        rows=rows,
        runs=len(runs),
        mixed=len({row.data for row in rows}) > 1,
        plot=Markup(history_svg([_line(line, rows) for line in ordered])),  # noqa: S704  drawn by us
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_text(path, page)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; give --output") from error


def _rows(run: StoredRun, place: Path) -> list[PastArm]:
    comparison, about = run.comparison, run.environment
    verdicts = {verdict["arm"]: verdict for verdict in comparison["verdicts"]}
    base = about["base_model"]
    link = os.path.relpath((run.folder / HTML).resolve(), place.resolve())
    return [
        PastArm(
            begun=datetime.fromisoformat(about["started_at"]),
            run=run.folder.name,
            link=link.replace(os.sep, "/"),
            arm=arm,
            line=arm if arm in verdicts or base is None else f"{arm} {base.rpartition('/')[2]}",
            verdict=verdicts[arm]["verdict"] if arm in verdicts else None,
            summary=summary,
            ratio=_ratio(verdicts.get(arm)),
            partial=comparison["partial"],
            look=comparison["looks"].get(arm),
            data=about["identity"]["dataset"][:8],
        )
        for arm, summary in comparison["arms"].items()
    ]


def _ratio(verdict: Mapping[str, Any] | None) -> float | None:
    """The value of the gate's rule on it."""
    rules = verdict["rules"] if verdict else ()
    return next((rule["value"] for rule in rules if rule["kind"] == "ratio"), None)


def _line(line: tuple[bool, str], rows: Sequence[PastArm]) -> Series:
    """Of students or baselines, as the first half of its key says."""
    mine = [row for row in rows if (row.arm != BASELINE, row.line) == line]
    return Series(
        line[1],
        [row.begun for row in mine],
        [row.summary["mean"] for row in mine],
        [row.summary["valid_rate"] if row.summary["total"] else None for row in mine],
    )
