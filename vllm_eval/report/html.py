"""One page that needs nothing but itself: `report.html`."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from vllm_eval.compare.summary import NO_TIER
from vllm_eval.diagnose.words import pattern_line, recovered, retried
from vllm_eval.records import BASELINE
from vllm_eval.report import html_text
from vllm_eval.report.html_data import page_data
from vllm_eval.report.plots import ARM_COLOURS, TITLES, inline_svgs
from vllm_eval.store.folder import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_eval.report.stored_run import StoredRun

PACKAGE = "vllm_eval.report"
STYLE = "report.css"


SCRIPTS = ("text.js", "diff.js", "table.js", "case.js", "report.js")
"""In the order they are joined: one script, so that one hash allows it and nothing else."""
NOTES = {
    "paired": "Each mark is a case of the table below.",
    "distribution": "Mean, deviation and ends are in the table of arms.",
    "tiers": "The same figures are in the table of tiers.",
    "attempts": "The same shares are in the table by attempt.",
    "failures": "The same counts stand with the failures below.",
    "throughput": "All arms share one batch; totals are under timing.",
}
"""Of each plot: where a reader who does not see it finds its numbers."""


def write_html(run: StoredRun, path: Path) -> Path:
    """Write the page, whole or not at all; it opens from disk and asks the network for nothing."""
    return write_text(path, render_html(run))


def render_html(run: StoredRun) -> str:
    """The page as text. What a model, a data set or an adapter wrote is escaped throughout."""
    data = page_data(run)
    script = _script()
    return (
        page_templates()
        .get_template("report.html.j2")
        .render(
            run=run,
            c=run.comparison,
            arms=run.arms,
            colours=_colours(run),
            tiers=_tiers(run.comparison),
            head=_head(run),
            figures=_figures(run.comparison),
            style=Markup(style()),  # noqa: S704  our own file, as is the script
            script=Markup(script),  # noqa: S704
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            index=html_text.json_in_script(data.index),
            chunks=data.chunks,
            listed={row["id"] for row in data.index["cases"]},
        )
    )


def _colours(run: StoredRun) -> dict[str, int]:
    """Of the arms and, after them, of constrained variants: whoever made an attempt."""
    names = dict.fromkeys((*run.arms, *run.comparison["attempts"]))
    return {arm: number % len(ARM_COLOURS) for number, arm in enumerate(names)}


def _script() -> str:
    parts = "\n".join(asset(name) for name in SCRIPTS)
    return f"'use strict';\n{parts}"


def _tiers(comparison: Mapping[str, Any]) -> list[str]:
    """Every arm's tiers; none where the cases have none."""
    found = dict.fromkeys(tier for tiers in comparison["tiers"].values() for tier in tiers)
    return [] if set(found) == {NO_TIER} else sorted(found)


def _head(run: StoredRun) -> list[tuple[str, str]]:
    """What was evaluated, on what, in a few words each."""
    about = run.environment
    identity, engine, machine = about["identity"], about.get("engine", {}), about["machine"]
    cases = run.comparison["arms"][BASELINE]["cases"]
    name = str(engine.get("engine", identity["engine"]))
    release = engine.get(name, "")
    gpus = machine.get("gpus") or []
    device = ", ".join(str(gpu.get("name", "GPU")) for gpu in gpus) or f"{machine['cpus']} CPUs"
    pairs = (
        ("base", _short(about.get("base_model"))),
        ("quantisation", engine.get("quantization", "4-bit" if identity["load_4bit"] else "none")),
        ("engine", f"{name} {release}".strip()),
        ("type", engine.get("dtype")),
        ("on", device),
        ("task", identity["task"]),
        ("cases", f"{cases:,} of {about['dataset']['records']:,}"),
        ("temperature", identity["temperature"]),
        ("retries", identity["retries"]),
        ("seed", identity["seed"]),
        ("begun", str(about["started_at"])[:16].replace("T", " ")),
    )
    return [(key, str(value)) for key, value in pairs if value is not None]


def _short(model: str | None) -> str | None:
    """A hub id as it is; of a folder the last two parts of its path."""
    return None if model is None else "/".join(PurePath(model).parts[-2:])


def _figures(comparison: Mapping[str, Any]) -> list[tuple[str, str, str, Markup]]:
    """Name, title, note and drawing of each plot there is."""
    return [
        (name, TITLES[name], NOTES[name], Markup(svg))  # noqa: S704  drawn by us, its text escaped
        for name, svg in inline_svgs(comparison).items()
    ]


@cache
def page_templates() -> jinja2.Environment:
    """With the filters that make words of numbers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": html_text.visible,
        "ticked": html_text.ticked,
        "recovered": recovered,
        "retried": retried,
        "pattern_line": pattern_line,
        "score": html_text.score,
        "signed": html_text.signed,
        "percent": html_text.percent,
        "count": html_text.count,
        "seconds": html_text.seconds,
        "chance": html_text.chance,
        "facts": html_text.facts,
        "tone": html_text.tone,
        "span": html_text.span,
    }
    return environment


def style() -> str:
    """The style sheet of all pages."""
    return asset(STYLE)


def asset(name: str) -> str:
    """The text of a style sheet or script of ours."""
    return (files(PACKAGE) / "templates" / name).read_text(encoding="utf-8")
