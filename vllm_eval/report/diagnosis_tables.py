"""Why answers failed, as tables and lines for a terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from vllm_eval.compare.summary import NO_TIER
from vllm_eval.diagnose.diagnosis import pattern_line, recovered, retried
from vllm_eval.report.tables import new_table, place_of
from vllm_eval.text import plain

MOST_CLUSTERS = 12
"""Groups shown; `comparison.json` has all of them."""
MOST_EXAMPLES = 3
"""Of those, groups shown with an excerpt."""


def diagnosis_tables(diagnosis: Mapping[str, Any]) -> Iterator[Table | Text]:
    """Why answers failed, what would help, and what to change in training or prompt."""
    if not diagnosis["attempts"]:
        yield Text("no attempt failed")
        return
    yield _clusters(diagnosis["clusters"])
    if (left := len(diagnosis["clusters"]) - MOST_CLUSTERS) > 0:
        yield Text(f"  and {left} more in comparison.json")
    yield from _examples(diagnosis["clusters"])
    if diagnosis["remedies"]:
        yield _remedies(diagnosis["remedies"])
        for remedy in diagnosis["remedies"]:
            line = f"{remedy['setting']}, {remedy['arm']}: {remedy['basis']}"
            yield Text(f"  {plain(line)}", style="dim")
    elif not diagnosis["outcomes"]:
        yield Text("no answer stayed a failure\n")
    yield Text("For training and prompt", style="italic")
    for pattern in diagnosis["patterns"]:
        yield Text(f"  {plain(pattern['arm'])}: {plain(pattern_line(pattern))}")


def _clusters(groups: Sequence[Mapping[str, Any]]) -> Table:
    numbers = ("attempts", "final", "truncated", "after a retry")
    table = new_table("Why answers failed", "what", "arm", "tier", right=numbers)
    table.add_column("first example", overflow="fold")
    for group in groups[:MOST_CLUSTERS]:
        words = (group["what"], group["arm"], group["tier"] or NO_TIER)
        counts = (str(group[key]) for key in ("attempts", "outcomes", "truncated"))
        place = Text(place_of(group["example"]))
        table.add_row(*(Text(plain(text)) for text in words), *counts, retried(group), place)
    return table


def _examples(groups: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """The first example with a text of each of the most frequent clusters."""
    seen: set[str] = set()
    for group in groups:
        example = group["example"]
        if group["cluster"] in seen or not example["excerpt"] or len(seen) == MOST_EXAMPLES:
            continue
        seen.add(group["cluster"])
        yield Text(f"  {plain(group['what'])}: {place_of(example)}")
        yield from (Text(f"  {plain(line)}", style="dim") for line in example["excerpt"])


def _remedies(remedies: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table("What would help", "setting", "arm", right=("failures", "recovers", "valid"))
    table.add_column("gate")
    for remedy in remedies:
        valid = "-" if remedy["valid_rate"] is None else f"{remedy['valid_rate']:.1%}"
        word = {True: Text("PASS", "green"), False: Text("not PASS", "red")}.get(
            remedy["passes"], "-"
        )
        words = (Text(plain(remedy["setting"])), Text(plain(remedy["arm"])))
        table.add_row(*words, str(remedy["addressed"]), recovered(remedy), valid, word)
    return table
