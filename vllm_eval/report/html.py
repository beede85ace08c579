"""`report.html`: one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from vllm_eval.diagnose.diagnosis import pattern_line, recovered, retried
from vllm_eval.diagnose.example import Blocks
from vllm_eval.records import BASELINE, Attempt
from vllm_eval.report import many, words
from vllm_eval.report.plots import ARM_COLOURS, TITLES, inline_svgs
from vllm_eval.report.stored_run import CaseDetail, StoredRun, read_details
from vllm_eval.report.verdicts import VERDICTS
from vllm_eval.store.folder import write_text

PACKAGE = "vllm_eval.report"
STYLE = "report.css"
SCRIPTS = ("text.js", "diff.js", "table.js", "case.js", "report.js")
"""Joined in this order into one script, so that a single hash allows it and nothing else."""
NOTES = {
    "curve": "Bands are the intervals of the table; all losses drawn are in comparison.json.",
    "paired": "Each mark is a case in the table below.",
    "distribution": "Mean, deviation and ends are in the table of arms.",
    "tiers": "The same figures are in the table of tiers.",
    "attempts": "The same shares are in the table by attempt.",
    "failures": "The same counts are with the failures below.",
    "throughput": "All arms share one batch; totals are under timing.",
}
"""For each plot: where to find its numbers as text."""
CHUNK_BYTES = 256 * 1024
"""Bytes of texts compressed together: enough to shrink well, few enough to open at once."""
SEARCHED = 160
"""Characters of an error that the search covers."""
_ONCE = ("arm", "concept_id", "tier")
"""Keys of an attempt that its case or column already has."""


def write_html(run: StoredRun, path: Path) -> Path:
    """Write the page, whole or not at all; it opens from disk and loads nothing from the network.

    Text from a model, a data set or an adapter is always escaped.
    """
    index, chunks = _page_data(run)
    script = "\n".join(["'use strict';", *map(asset, SCRIPTS)])
    page = render_page(
        "report.html.j2",
        run=run,
        c=run.comparison,
        arms=run.arms,
        colours=_colours(run),
        tiers=words.tiers_of(run.comparison),
        head=_head(run),
        figures=_figures(run.comparison),
        script=Markup(script),  # noqa: S704  our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        index=words.json_in_script(index),
        chunks=chunks,
        listed={row["id"] for row in index["cases"]},
    )
    return write_text(path, page)


def render_page(template: str, **values: object) -> str:
    """A page from one of our templates, with the shared style sheet."""
    style = Markup(asset(STYLE))  # noqa: S704  our own file
    return _templates().get_template(template).render(style=style, **values)


def _colours(run: StoredRun) -> dict[str, int]:
    """Colours of the arms and, after them, of the constrained variants."""
    names = dict.fromkeys((*run.arms, *run.comparison["attempts"]))
    return {arm: number % len(ARM_COLOURS) for number, arm in enumerate(names)}


def _head(run: StoredRun) -> list[tuple[str, str]]:
    """What was evaluated and on what, in a few words each."""
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
    """A hub id unchanged, or the last two parts of a folder's path."""
    return None if model is None else "/".join(PurePath(model).parts[-2:])


def _figures(comparison: Mapping[str, Any]) -> list[tuple[str, str, str, Markup]]:
    """Name, title, note and drawing of each plot."""
    return [
        (name, TITLES[name], NOTES[name], Markup(svg))  # noqa: S704  drawn by us, its text escaped
        for name, svg in inline_svgs(comparison).items()
    ]


@cache
def _templates() -> jinja2.Environment:
    loader, strict = jinja2.PackageLoader(PACKAGE), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, undefined=strict, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    own = (words.visible, words.ticked, words.facts, words.tone, words.span)
    shared = (recovered, retried, pattern_line)
    environment.filters |= (
        VERDICTS | many.FILTERS | words.NUMBERS | {make.__name__: make for make in (*own, *shared)}
    )
    return environment


def asset(name: str) -> str:
    """The text of one of our style sheets or scripts."""
    return (files(PACKAGE) / "templates" / name).read_text(encoding="utf-8")


def _page_data(run: StoredRun) -> tuple[dict[str, Any], list[str]]:
    """The data for the page's script: an index of the cases, and chunks of their texts.

    Each chunk is a JSON list of cases, deflated (RFC 1950), then base64. Every attempt is read
    once, one case at a time; memory holds what the page will.
    """
    samples = run.environment["identity"]["samples_per_case"]
    cells = {
        row["concept_id"]: {arm: _cell(cell, samples) for arm, cell in row["arms"].items()}
        for row in run.comparison["cases"]
    }
    blocks = run.task.blocks
    rows: list[dict[str, Any]] = []
    chunks: list[str] = []
    waiting: list[bytes] = []
    for detail in read_details(run):
        row = _row(detail, cells.get(detail.concept_id, {}))
        rows.append(row | {"chunk": len(chunks), "place": len(waiting)})
        attempts = [[_attempt(one, blocks) for one in made] for made in detail.attempts.values()]
        waiting.append(orjson.dumps({"asked": detail.asked, "arms": attempts}))
        if sum(map(len, waiting)) > CHUNK_BYTES:
            chunks.append(_pack(waiting))
            waiting = []
    if waiting:
        chunks.append(_pack(waiting))
    index = {"arms": run.arms, "baseline": BASELINE, "samples": samples, "cases": rows}
    return index, chunks


def _cell(cell: Mapping[str, Any], samples: int) -> Mapping[str, Any]:
    """As in `comparison.json`; not finished if answers of the case are still pending."""
    return cell if cell["samples"] >= samples else {**cell, "status": "unfinished"}


def _row(detail: CaseDetail, cells: Mapping[str, Any]) -> dict[str, Any]:
    """A case as the table shows, filters and searches it, from `comparison.json`."""
    arms = []
    for arm, attempts in detail.attempts.items():
        failed = [attempt for attempt in attempts if attempt.reason or attempt.error]
        reasons = {attempt.reason or attempt.status: None for attempt in failed}
        errors = {(attempt.error or "")[:SEARCHED]: None for attempt in failed}
        cell = dict(cells.get(arm) or {"status": "unfinished"})
        arms.append(cell | {"reasons": list(reasons), "errors": list(errors)})
    return {"id": detail.concept_id, "tier": detail.tier, "arms": arms}


def _attempt(attempt: Attempt, blocks: Blocks) -> dict[str, Any]:
    """The journal's line, and the place of each block in the raw text."""
    line = {key: value for key, value in asdict(attempt).items() if key not in _ONCE}
    raw = attempt.raw_response
    places = {label: _place(raw, label, text) for label, text in blocks(raw).items()}
    return line | {"blocks": places}


def _place(raw: str, label: str, text: str) -> tuple[int, int]:
    """Start and length of a block, in the units of the browser's strings (UTF-16)."""
    start = raw.find(text)
    while start >= 0 and not raw[max(0, start - 80) : start].rstrip().lower().endswith(label):
        start = raw.find(text, start + 1)
    start = max(start, 0)
    return _units(raw[:start]), _units(text)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _pack(cases: Sequence[bytes]) -> str:
    return base64.b64encode(zlib.compress(b"[" + b",".join(cases) + b"]", 6)).decode()
