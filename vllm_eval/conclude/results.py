"""Result files: one arm's answers in data set order, with the predecessor's keys."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.store.folder import written_whole
from vllm_eval.store.journal import open_journal, read_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm_eval.compare.summary import Summary

METRICS = ("mean", "std", "min", "max", "mean_all")


CASE_KEYS = ("arm", "concept_id", "tier")
"""Keys of an attempt that its case states once."""


def write_results(
    path: Path,
    journal: Path,
    order: Mapping[str, int],
    head: Mapping[str, Any],
    summary: Summary,
    about: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Path:
    """One arm's result file, its cases in data set order, with all their attempts.

    The structure is the predecessor's (`design.md`, "The run folder") with more in it: what `about`
    makes of a last attempt is added to its result. Memory holds one case at a time: its attempts
    are fetched from the journal by their places.
    """
    places: dict[tuple[int, int], array[int]] = {}
    ended: list[tuple[int, int]] = []
    for place, attempt in read_journal(journal):
        if attempt.arm == head["arm"]:
            key = (order[attempt.concept_id], attempt.sample)
            places.setdefault(key, array("q")).append(place)
            if attempt.final:  # an interrupted run has begun more than it has ended
                ended.append(key)
    top = {
        **head,
        "total_samples": summary.total,
        "valid_samples": summary.valid,
        "failed_samples": summary.failed,
        "error_samples": summary.errors,
        "first_attempt_valid_samples": summary.first_valid,
        "metrics": {key: getattr(summary, key) for key in METRICS},
    }
    with written_whole(path) as out, open_journal(journal) as line_at:
        out.write(orjson.dumps(top)[:-1] + b',"results":[')
        for number, key in enumerate(sorted(ended)):
            attempts = [orjson.loads(line_at(place)) for place in places[key]]
            out.write(b",\n" if number else b"\n")
            out.write(orjson.dumps(_result(attempts, about)))
        out.write(b"\n]}\n")
    return path


def _result(
    attempts: Sequence[dict[str, Any]], about: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    last = attempts[-1]
    keys = ("concept_id", "tier", "sample", "status", "score", "parts", "reason", "error")
    return {
        **{key: last[key] for key in keys},
        "truncated": last["truncated"],
        "attempts": len(attempts),
        **about(last),
        "raw_response": last["raw_response"],
        "history": [
            {key: value for key, value in attempt.items() if key not in CASE_KEYS}
            for attempt in attempts
        ],
    }
