"""A concluded run in Python: verdicts, figures and tables; notebooks show it as a page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_eval.compare import ranking, selection, verdict
from vllm_eval.compare.ranking import Ranked
from vllm_eval.compare.selection import Selected
from vllm_eval.compare.summary import Comparison, comparison_from_json
from vllm_eval.compare.verdict import Verdict
from vllm_eval.conclude.conclude import concluded
from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import InputError
from vllm_eval.records import Attempt
from vllm_eval.report.html import render_page
from vllm_eval.report.markdown import render_summary
from vllm_eval.report.plots import TITLES, slide_svgs
from vllm_eval.report.stored_run import HTML, StoredRun
from vllm_eval.report.verdicts import beside, headline, selected_words
from vllm_eval.report.words import score, signed
from vllm_eval.store.export import COLUMNS, read_rows, read_table
from vllm_eval.store.folder import JOURNAL, find_run
from vllm_eval.store.journal import read_journal

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Result:
    """A concluded run, whole or partial; rich in a notebook, a few lines on a console."""

    run: StoredRun
    verdicts: tuple[Verdict, ...]
    """The gate's verdict on each student; in a partial run none has passed, whatever they say."""
    ranking: tuple[Ranked, ...]
    """The students, best first."""
    comparison: Comparison
    """Every arm's figures, and each student against the baseline, without the cases."""
    selected: Selected | None
    """The student that ships, with its `arm`, `path` and `step`; None if none passes, and in a
    partial run."""

    @property
    def folder(self) -> Path:
        """The folder with all files of the run."""
        return self.run.folder

    @property
    def word(self) -> str:
        """PASS if every student passes, FAIL if one fails, else UNDECIDED; or NOT FINISHED.

        With `gate.select: best`, PASS if any student passes and FAIL only if every one fails.
        """
        return self.run.word

    @property
    def passed(self) -> bool:
        """Whether the run is complete and `word` is PASS."""
        return self.word == "PASS"

    @property
    def pending(self) -> int:
        """Outcomes that a partial run lacks; 0 for a complete one."""
        return int(self.run.comparison["pending"])

    @property
    def report(self) -> Path | None:
        """`report.html`; None if there is none."""
        path = self.folder / HTML
        return path if path.is_file() else None

    def cases(self) -> Iterator[Attempt]:
        """The outcome of each arm, case and sample with its answer, read from the journal."""
        return (attempt for _, attempt in read_journal(self.folder / JOURNAL) if attempt.final)

    def to_arrow(self, *, attempts: bool = False) -> pa.Table:
        """The outcomes as a table, in the columns of `vllm_eval export`.

        `attempts` gives every attempt instead of the last one of each outcome.

        Raises:
            InputError: pyarrow is not installed.
        """
        return read_table(self.folder, attempts=attempts)

    def to_pandas(self, *, attempts: bool = False) -> pd.DataFrame:
        """The outcomes as a data frame, in the columns of `vllm_eval export`.

        `attempts` gives every attempt instead of the last one of each outcome.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            msg = "to_pandas: pandas is not installed; run: pip install 'vllm_eval[pandas]'"
            raise InputError(msg) from error
        rows = list(read_rows(self.folder, attempts=attempts))
        return pd.DataFrame.from_records(rows, columns=list(COLUMNS))

    def __repr__(self) -> str:
        comparison = self.run.comparison
        lines = [f"run {self.folder}{', partial' if comparison['partial'] else ''}"]
        if headline(comparison):
            lines += selected_words(self.word, self.selected)
        for found in comparison["verdicts"]:
            failed = [rule["name"] for rule in found["rules"] if not rule["passed"]]
            lines.append(f"{found['verdict']}  {found['arm']}  {'; '.join(failed)}".rstrip())
            lines += [f"  {sentence}" for sentence in beside(found)]
        for arm, summary in self.comparison.arms.items():
            scores = f"mean {score(summary.mean)}, std {score(summary.std)}"
            lines.append(f"{arm}: {summary.valid} of {summary.total} valid, {scores}")
        for arm, paired in self.comparison.students.items():
            lines.append(f"{arm} less the baseline: {signed(paired.difference.value)}")
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return render_summary(self.run)

    def _repr_html_(self) -> str:
        folder, c = self.folder, self.run.comparison
        plots, page = _images(c), folder / HTML
        return render_page("show.html.j2", name=folder.name, c=c, plots=plots, page=page)


def show(run: str | Path, output_dir: str | Path = "results") -> Result:
    """A stored run: its verdicts and figures; notebooks render it with tables and plots.

    `run` is its folder, or its name in `output_dir`. An interrupted run is concluded first.

    Raises:
        InputError: there is no such run, or a damaged one.
    """
    folder = find_run(str(resolve_path(str(run))), str(output_dir))
    return result_of(StoredRun(folder, concluded(folder)))


def result_of(stored: StoredRun) -> Result:
    """A run that has been read."""
    c = stored.comparison
    verdicts = verdict.from_json(c["verdicts"])
    return Result(
        run=stored,
        verdicts=verdicts,
        ranking=ranking.from_json(c["ranking"]),
        comparison=comparison_from_json(c),
        selected=selection.from_json(c["selected"]),
    )


def _images(comparison: Mapping[str, object]) -> list[tuple[str, str]]:
    """Title and address of each plot, as images, because several cells may show the same ids."""
    return [
        (TITLES[name], f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")
        for name, svg in slide_svgs(comparison).items()
    ]
