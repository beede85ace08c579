"""A stored diagnosis for a terminal. Nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vllm_eval.diagnose.words import pattern_line, recovered, retried
from vllm_eval.stats import NO_TIER
from vllm_eval.tables import new_table, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MOST_CLUSTERS = 12
"""Groups shown; the file has all of them."""
MOST_EXAMPLES = 3
"""Of those, with a look into the text."""


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
    numbers = ("attempts", "final", "cut", "asked again")
    table = new_table("Why answers failed", "what", "arm", "tier", right=numbers)
    table.add_column("first example")
    for group in groups[:MOST_CLUSTERS]:
        words = (group["what"], group["arm"], group["tier"] or NO_TIER)
        counts = (str(group[key]) for key in ("attempts", "outcomes", "truncated"))
        place = Text(plain(_place(group["example"])))
        table.add_row(*(Text(plain(text)) for text in words), *counts, retried(group), place)
    return table


def _place(example: Mapping[str, Any]) -> str:
    parts = [example["concept_id"], example["block"] or ""]
    if example["line"] is not None:
        parts.append(f"{example['line']}:{example['column']}")
    return " ".join(part for part in (*parts, example["key"] or "") if part)


def _examples(groups: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """The first example of each of the most frequent clusters that has a text."""
    seen: set[str] = set()
    for group in groups:
        example = group["example"]
        if group["cluster"] in seen or not example["excerpt"] or len(seen) == MOST_EXAMPLES:
            continue
        seen.add(group["cluster"])
        yield Text(f"  {plain(group['what'])}: {plain(_place(example))}")
        yield from (Text(f"  {plain(line)}", style="dim") for line in example["excerpt"])


def _remedies(remedies: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table("What would help", "setting", "arm", right=("failures", "recovers", "valid"))
    table.add_column("gate")
    for remedy in remedies:
        valid = "-" if remedy["valid_rate"] is None else f"{remedy['valid_rate']:.1%}"
        word = {True: Text("PASS", "green"), False: Text("FAIL", "red")}.get(remedy["passes"], "-")
        words = (Text(plain(remedy["setting"])), Text(plain(remedy["arm"])))
        table.add_row(*words, str(remedy["addressed"]), recovered(remedy), valid, word)
    return table
