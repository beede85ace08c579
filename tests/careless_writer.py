"""Answers written from data: well, as a library does, or as carelessly as models do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    import random

    Data = dict[str, dict[str, object]]

PLAIN = ("plots", "seeds", "tools", "and", "hours", "of", "help", "are", "shared", "town", "a")
ODD = ("cost:", "team's", "(both)", "'small'", "http://a.example/b", "50%", "a/b", "- or", "rest:")
FIRST = ("**bold**", "*all*", "@ops", "%age", "!now", "> 90", "| bar", "[FR009]", "{both}", '"big"')
VISION = ("product_name", "product_summary", "target_users", "non_goals", "last_updated")
REVIEW = ("status", "summary", "requirements_alignment", "recommended_actions", "narrative")
WIDTH = 40
"""Columns from which a careless writer begins a new line."""


def make_data(rng: random.Random) -> Data:
    """Two blocks of texts, lists of texts, and a mapping of lists of texts with ids."""

    def text(least: int = 2) -> str:
        words = [rng.choice(PLAIN) for _ in range(rng.randint(least, 18))]
        for _ in range(rng.choice((0, 0, 1, 2))):
            words.insert(rng.randint(1, len(words) - 1), rng.choice(ODD))
        if rng.random() < 0.1:
            words.insert(0, rng.choice(FIRST))
        return " ".join(words)

    def items(least: int = 0) -> list[object]:
        return [text() for _ in range(rng.randint(least, 3))]

    alignment = {
        bucket: [{f"FR{rng.randint(1, 999):03}": text()} for _ in range(rng.randint(0, 3))]
        for bucket in ("aligned", "gaps", "conflicts")
    }
    return {
        "VISION": dict(zip(VISION, (text(), text(8), items(1), items(), text()), strict=True)),
        "REVIEW": dict(zip(REVIEW, (text(), items(1), alignment, items(2), text(8)), strict=True)),
    }


def write_well(data: Data, rng: random.Random) -> str:
    """Both blocks as a library writes them."""
    width, style = rng.choice((30, 80, 1000)), rng.choice((None, None, "'", '"', ">"))
    blocks = (
        f"```yaml {label}\n{yaml.safe_dump(block, width=width, default_style=style)}```\n"
        for label, block in data.items()
    )
    return "".join(blocks)


def write_carelessly(data: Data, rng: random.Random) -> str:
    """Both blocks as YAML that nobody quotes, with lines that go on anywhere, tabs, odd fences."""
    margin = rng.random() < 0.3
    blocks = {label: "".join(_lines(block, 0, rng, margin=margin)) for label, block in data.items()}
    if rng.random() < 0.1:
        blocks = {label: _with(block, "  ", "\t") for label, block in blocks.items()}
    if rng.random() < 0.1:
        blocks = {label: _with(block, "  ", "\xa0\xa0") for label, block in blocks.items()}
    opening = rng.choice(("```yaml {}", "```yaml {}", "```yaml {}", "```yml {}", "## {}\n```yaml"))
    text = "".join(f"{opening.format(label)}\n{b}```\n" for label, b in blocks.items())
    return text.removesuffix("```\n") if rng.random() < 0.1 and not margin else text


def flat(value: object) -> object:
    """Data with its texts' white space evened out; a mapping of one key as it was written."""
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, text),) = value.items()
            return f"{key}: {flat(text)}"
        return {key: flat(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [flat(item) for item in value]
    return " ".join(str(value).split())


def _lines(block: dict[str, object], depth: int, rng: random.Random, *, margin: bool) -> list[str]:
    found = []
    pad = "  " * depth
    for key, value in block.items():
        if isinstance(value, dict):
            found += [f"{pad}{key}:\n", *_lines(value, depth + 1, rng, margin=margin)]
        elif not isinstance(value, list):
            found.append(_wrapped(f"{pad}{key}: {value}", pad + "  ", rng, margin=margin))
        elif not value:
            found.append(f"{pad}{key}: []\n")
        else:
            items = (flat(item) for item in value)
            found.append(f"{pad}{key}:\n")
            found += [_wrapped(f"{pad}- {i}", pad + "    ", rng, margin=margin) for i in items]
    return found


def _wrapped(line: str, pad: str, rng: random.Random, *, margin: bool) -> str:
    """A text over several lines; none of them begins with what looks like a key or an item."""
    lines, length = [""], 0
    for word in line.split(" "):
        breaks = length > WIDTH and word.isalpha() and lines[-1][-1:].isalpha()
        if breaks:
            lines.append("" if margin and rng.random() < 0.3 else pad)
            length = 0
        lines[-1] += word if not length else f" {word}"
        length += len(word) + 1
    return "\n".join(lines) + "\n"


def _with(block: str, spaces: str, odd: str) -> str:
    """The indentation of the items and keys of a block, written with other characters."""
    lines = block.split("\n")
    for number, line in enumerate(lines):
        depth = len(line) - len(line.lstrip(" "))
        lines[number] = odd * (depth // len(spaces)) + line.lstrip(" ")
    return "\n".join(lines)
