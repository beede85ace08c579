"""A run as the result of a notebook's cell."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.config.settings import resolve_path
from vllm_eval.report.html import page_templates
from vllm_eval.report.html_text import score, signed
from vllm_eval.report.markdown import render_summary
from vllm_eval.report.plots import TITLES, slide_svgs
from vllm_eval.report.stored_run import HTML, StoredRun, load_run
from vllm_eval.store.folder import find_run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A stored run that notebooks render richly and consoles in a few lines."""

    run: StoredRun

    def __repr__(self) -> str:
        comparison = self.run.comparison
        lines = [f"run {self.run.folder}{', partial' if comparison['partial'] else ''}"]
        for verdict in comparison["verdicts"]:
            failed = [rule["name"] for rule in verdict["rules"] if not rule["passed"]]
            lines.append(f"{verdict['verdict']}  {verdict['arm']}  {'; '.join(failed)}".rstrip())
        for arm, summary in comparison["arms"].items():
            lines.append(
                f"{arm}: {summary['valid']} of {summary['total']} valid, "
                f"mean {score(summary['mean'])}, std {score(summary['std'])}"
            )
        for arm, paired in comparison["students"].items():
            lines.append(f"{arm} less the baseline: {signed(paired['difference']['value'])}")
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        return render_summary(self.run)

    def _repr_html_(self) -> str:
        return (
            page_templates()
            .get_template("show.html.j2")
            .render(
                name=self.run.folder.name,
                c=self.run.comparison,
                plots=_images(self.run.comparison),
                page=self.run.folder / HTML,
            )
        )


def show(run: str | Path, output_dir: str = "results") -> ShownRun:
    """A run to look at: verdict, comparison, gate and plots.

    Args:
        run: its folder, or its name in `output_dir`. One that was cut off is concluded first.
        output_dir: where runs lie.

    Raises:
        InputError: there is no such run, or a damaged one.
    """
    return ShownRun(load_run(find_run(str(resolve_path(str(run))), output_dir)))


def _images(comparison: Mapping[str, object]) -> list[tuple[str, str]]:
    """Title and address of each plot; as images, since several cells may show the same ids."""
    return [
        (TITLES[name], f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")
        for name, svg in slide_svgs(comparison).items()
    ]
