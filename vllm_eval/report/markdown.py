"""`report.md`, for a pull request or a document, and `summary.md` for CI pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import jinja2

from vllm_eval.diagnose.diagnosis import pattern_line, recovered, retried
from vllm_eval.report import many
from vllm_eval.report.next_steps import next_steps
from vllm_eval.report.stored_run import StoredRun, read_failures
from vllm_eval.report.verdicts import VERDICTS
from vllm_eval.report.words import (
    NUMBERS,
    Md,
    code,
    ends,
    facts,
    fence,
    finalize,
    percent,
    sentence,
    tiers_of,
    words,
)
from vllm_eval.store.folder import write_text

MOST_CASES = 30
"""Failed cases in the table."""
MOST_EXCERPTS = 10
"""Of those, cases shown with the place in the raw answer."""
MOST_GROUPS = 10
"""Kinds of failure."""
HASH = 12
"""Characters of a hash; the manifest has the whole hash."""


@dataclass(frozen=True, slots=True)
class FailedCase:
    """A case for which an arm did not answer validly in all samples."""

    concept_id: str
    tier: str | None
    arm: str
    status: str
    reason: str | None
    attempts: int


def write_markdown(run: StoredRun, path: Path) -> Path:
    """The report: verdict and next step first, then the evidence."""
    failed = failed_cases(run.comparison)
    first = {(case.concept_id, case.arm): case for case in failed[:MOST_EXCERPTS]}
    examples = read_failures(run, first)
    page = _render(
        "report.md.j2",
        run,
        failed=failed[:MOST_CASES],
        more_failed=max(0, len(failed) - MOST_CASES),
        shown=[(case, examples[key]) for key, case in first.items() if key in examples],
        tiers=tiers_of(run.comparison),
        environment=_environment_facts(run.environment),
        files=list(_files(run.folder)),
    )
    return write_text(path, page)


def render_summary(run: StoredRun) -> str:
    """A few lines for the page of a CI job."""
    return _render("summary.md.j2", run)


def failed_cases(comparison: Mapping[str, Any]) -> list[FailedCase]:
    """Every arm's failed cases, students before the baseline."""
    found = [
        FailedCase(
            row["concept_id"], row["tier"], arm, cell["status"], cell["reason"], cell["attempts"]
        )
        for row in comparison["cases"]
        for arm, cell in row["arms"].items()
        if cell["status"] != "success"
    ]
    places = {arm: place for place, arm in enumerate(comparison["arms"])}
    return sorted(found, key=lambda case: (places[case.arm] - 1) % len(places))


def _render(name: str, run: StoredRun, **more: object) -> str:
    groups = run.comparison["failures"]
    template = _templates().get_template(name)
    return template.render(
        run=run,
        c=run.comparison,
        name=run.folder.name,
        steps=next_steps(run),
        clusters=run.comparison["diagnosis"]["clusters"][:MOST_GROUPS],
        groups=groups[:MOST_GROUPS],
        more_groups=max(0, len(groups) - MOST_GROUPS),
        **more,
    )


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701  no HTML: `finalize` makes text of what it is
        loader=jinja2.PackageLoader("vllm_eval.report"),
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    own: dict[str, Callable[..., str]] = {"interval": _interval, "md": str}
    own |= NUMBERS | {"recovered": recovered, "retried": retried}
    environment.filters |= {name: _trusted(make) for name, make in own.items()}
    shared = (code, fence, words, sentence, pattern_line)
    environment.filters |= VERDICTS | many.FILTERS | {make.__name__: make for make in shared}
    return environment


def _trusted(make: Callable[..., str]) -> Callable[..., Md]:
    return lambda *values: Md(make(*values))


def _interval(interval: Mapping[str, Any], form: str = "score") -> str:
    """An interval's value and ends with its level, or why there are none."""
    if interval["value"] is None:
        return f"unknown ({code(interval['reason'])})"
    value = NUMBERS[form](interval["value"])
    level = f"at {percent(interval['confidence'])} ({interval['method']})"
    return f"{value} {ends(interval, form)} {level}"


def _environment_facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware and hashes of a manifest, in a few words each."""
    identity, machine, engine = about["identity"], about["machine"], about.get("engine", {})
    gpus = "; ".join(", ".join(w for _, w in facts(gpu)) for gpu in machine["gpus"])
    rows = [
        ("begun", about["started_at"]),
        ("vllm_eval", about["vllm_eval"]),
        ("Python", machine["python"]),
        *facts(engine),
        ("4-bit base (bitsandbytes)", "yes" if identity["load_4bit"] else None),
        ("system", machine["system"]),
        ("GPU", gpus or "none"),
        ("CPUs, memory", f"{machine['cpus']}, {machine['memory_mib']:,} MiB"),
        ("base model", _place(about["base_model"], identity["base_model"])),
        ("data set", _place(about["dataset"]["path"], identity["dataset"])),
        ("task", identity["task"]),
        ("prompt", identity["prompt"][:HASH]),
        ("sampling", f"temperature {identity['temperature']}, top-p {identity['top_p']}"),
        ("seed", identity["seed"]),
        ("retries", str(identity["retries"])),
        ("longest answer", f"{identity['max_new_tokens']:,} tokens"),
    ]
    for arm, digest in identity["adapters"].items():
        adapter = about["adapters"].get(arm, {})
        rank = f", rank {adapter['rank']}" if adapter else ""
        rows.append((f"adapter {arm}", f"{_place(adapter.get('path'), digest) or 'none'}{rank}"))
    return [(key, str(value)) for key, value in rows if value]


def _place(path: str | None, digest: str | None) -> str | None:
    """The last parts of a path or a hub id, and the start of its content's hash."""
    if path is None:
        return None
    short = "/".join(PurePath(path).parts[-2:])
    return short if digest in (None, path) else f"{short}, {str(digest)[:HASH]}"


def _files(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Name, time and bytes of each of a run's files, except this one and the archive."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        made_after = name == "report.md" or path.suffix == ".zip"
        if path.is_file() and not path.name.startswith(".") and not made_after:
            about = path.stat()
            written = datetime.fromtimestamp(about.st_mtime).astimezone()
            yield name, written.isoformat(sep=" ", timespec="seconds"), about.st_size
