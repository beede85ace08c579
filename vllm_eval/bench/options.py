"""What `bench` takes beside the options of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How often, who, and how much work."""

    repeats: int = 3
    warmup: int = 1
    contestants: str | None = None
    """Names with commas between them; None leaves the choice to the rest."""
    output_len: str = "256"
    """Tokens of every answer, or `LEAST-MOST`."""
    fail_rate: float = 0.0
    sets: tuple[str, ...] = ()
    """`KEY.PATH=VALUE,VALUE`: a contestant for each value."""
    load_format: str | None = None
    rank: int = 16
    one_at_a_time: bool = False


_OPTIONS = (
    click.option("--repeats", type=click.IntRange(1), help="Counted trials of each.  [3]"),
    click.option("--warmup", type=click.IntRange(0), help="Trials before that, 8 cases.  [1]"),
    click.option("--contestants", metavar="LIST", help="Who: names with commas between them."),
    click.option("--output-len", metavar="N|LOW-HIGH", help="Forced tokens an answer.  [256]"),
    click.option("--fail-rate", type=click.FloatRange(0, 0.95), help="Failing attempts.  [0]"),
    click.option("--set", "sets", multiple=True, metavar="KEY.PATH=A,B", help="Sweep a setting."),
    click.option("--load-format", help="vLLM's own; dummy needs a config.json and no weights."),
    click.option("--rank", type=click.IntRange(1), help="Rank of a made-up adapter.  [16]"),
    click.option("--one-at-a-time", is_flag=True, default=None, help="Never two engines alive."),
)


def bench_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `BenchOptions`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_options(given: dict[str, Any]) -> BenchOptions:
    """The options that were given, taken out of `given`."""
    names = BenchOptions.__dataclass_fields__
    found = {name: given.pop(name) for name in names}
    return BenchOptions(**{name: value for name, value in found.items() if value is not None})


def read_lengths(text: str) -> tuple[int, int]:
    """Least and most tokens of an answer, from `N` or `LOW-HIGH`.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        msg = f"--output-len {text}: must be a number of tokens, or two as in 500-1200"
        raise ConfigError(msg)
    return least, most
