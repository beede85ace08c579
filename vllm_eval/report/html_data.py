"""What the page carries for its script: a light index of the cases, and their texts compressed."""

from __future__ import annotations

import base64
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.records import BASELINE
from vllm_eval.report.stored_run import read_details

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.diagnose.example import Blocks
    from vllm_eval.records import Attempt
    from vllm_eval.report.stored_run import CaseDetail, StoredRun

CHUNK_BYTES = 256 * 1024
"""Texts compressed together: enough to shrink well, little enough to open at once."""
SEARCHED = 160
"""Characters of an error that the search looks at."""
_ONCE = ("arm", "concept_id", "tier")
"""What a case or its column already says of an attempt."""


@dataclass(frozen=True, slots=True)
class PageData:
    """Both halves of it."""

    index: Mapping[str, Any]
    chunks: Sequence[str]
    """Each a JSON list of cases, deflated (RFC 1950), then base64."""


def page_data(run: StoredRun) -> PageData:
    """Read every attempt once, one case at a time; memory holds what the page will."""
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
        waiting.append(orjson.dumps(_texts(detail, blocks)))
        if sum(map(len, waiting)) > CHUNK_BYTES:
            chunks.append(_pack(waiting))
            waiting = []
    if waiting:
        chunks.append(_pack(waiting))
    index = {
        "arms": run.arms,
        "baseline": BASELINE,
        "samples": samples,
        "cases": rows,
    }
    return PageData(index, chunks)


def _cell(cell: Mapping[str, Any], samples: int) -> Mapping[str, Any]:
    """As `comparison.json` has it; not finished where answers of the case are still pending."""
    return cell if cell["samples"] >= samples else {**cell, "status": "unfinished"}


def _row(detail: CaseDetail, cells: Mapping[str, Any]) -> dict[str, Any]:
    """A case as the table shows, filters and searches it: the cells of `comparison.json`."""
    arms = []
    for arm, attempts in detail.attempts.items():
        failed = [attempt for attempt in attempts if attempt.reason or attempt.error]
        reasons = {attempt.reason or attempt.status: None for attempt in failed}
        errors = {(attempt.error or "")[:SEARCHED]: None for attempt in failed}
        cell = dict(cells.get(arm) or {"status": "unfinished"})
        arms.append(cell | {"reasons": list(reasons), "errors": list(errors)})
    return {"id": detail.concept_id, "tier": detail.tier, "arms": arms}


def _texts(detail: CaseDetail, blocks: Blocks) -> dict[str, Any]:
    attempts = [[_attempt(one, blocks) for one in rows] for rows in detail.attempts.values()]
    return {"asked": detail.asked, "arms": attempts}


def _attempt(attempt: Attempt, blocks: Blocks) -> dict[str, Any]:
    """The journal's line, and where each block lies in the raw text."""
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
