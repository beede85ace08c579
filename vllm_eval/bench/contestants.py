"""Who is timed: an engine's configuration and a way of asking it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
import yaml

from vllm_eval.config.settings import dump_config, load_config, merge, setting_layer
from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_eval.config.settings import Config

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


Way = Literal["mixed", "arms", "barrier", "generate"]
"""`mixed`: our loop, all arms in one batch. `arms`: one arm after the other. `barrier`: no retry
before its round is over. `generate`: bare `LLM.generate`, nothing graded or kept."""
WAYS: tuple[Way, ...] = get_args(Way)
TRANSFORMERS = {"transformers": 1, "transformers-batched": 8}
"""Contestants on the transformers engine, and their batch size where none is configured."""
REFERENCE: Way = "mixed"
FIXED = {
    "max_new_tokens": "--output-len says it for all contestants",
    "ignore_eos": "every answer runs to its forced length",
    "retries": "--retries says it for all contestants, with --fail-rate",
    "seed": "--seed says it for all contestants",
    "samples_per_case": "each arm answers each case once",
}
"""Keys the benchmark sets itself, so that a sweep of them would change nothing; and what does."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the table."""

    name: str
    way: Way
    config: Config

    @property
    def mixes_arms(self) -> bool:
        """Whether sequences of several arms share a step; transformers switches adapters."""
        return self.way != "arms" and self.config.engine != "transformers"


@dataclass(frozen=True, slots=True)
class Layers:
    """Where configurations come from: the layers of `config.load_config`."""

    files: Sequence[str]
    settings: Sequence[str]
    flags: dict[str, Any]

    def load(self) -> Config:
        """The configuration."""
        return load_config(self.files, self.settings, self.flags)

    def over(self, setting: str) -> Layers:
        """With `KEY.PATH=VALUE` over everything, flags too: a swept value must take effect."""
        return replace(self, flags=merge(self.flags, setting_layer(setting)))


def choose(
    layers: Layers, names: str | None, sets: Sequence[str], *, fails: bool
) -> list[Contestant]:
    """The contestants in the order asked for; a setting's values follow the one they change.

    Args:
        layers: the configuration all start from.
        names: with commas between them; by default all that fit the engine and the work.
        sets: `KEY.PATH=VALUE,VALUE`, each value in YAML.
        fails: whether attempts are made to fail, without which a barrier is none.

    Raises:
        ConfigError: there is no such contestant or key, two are the same, or the benchmark sets
            the key itself.
    """
    base = layers.load()
    if names is None:
        chosen = _default(base, fails=fails, sweeps=bool(sets))
    else:
        chosen = [name.strip() for name in names.split(",")]
    found = [_contestant(layers, base, name) for name in chosen]
    for setting in sets:
        key, values = _read_set(setting)
        found += [
            Contestant(
                f"{key.rpartition('.')[2]}={value}", REFERENCE, layers.over(f"{key}={value}").load()
            )
            for value in values
        ]
    counted = [contestant.name for contestant in found]
    if twice := {name for name in counted if counted.count(name) > 1}:
        msg = f"--contestants, --set: {min(twice)!r} is there twice"
        raise ConfigError(msg)
    return found


def group(contestants: Sequence[Contestant]) -> list[tuple[Contestant, ...]]:
    """Those that can share one engine, together."""
    groups: dict[str, list[Contestant]] = {}
    for contestant in contestants:
        groups.setdefault(dump_config(contestant.config), []).append(contestant)
    return [tuple(members) for members in groups.values()]


def _default(base: Config, *, fails: bool, sweeps: bool) -> list[str]:
    if sweeps:
        return [REFERENCE]
    names = [REFERENCE, "arms", *(["barrier"] if fails else [])]
    return [*names, "generate", *TRANSFORMERS] if base.engine == "vllm" else names


def _contestant(layers: Layers, base: Config, name: str) -> Contestant:
    if name in TRANSFORMERS:
        size = TRANSFORMERS[name]
        if size > 1 and base.batch_size > 1:
            size = base.batch_size
        flags = layers.flags | {"engine": "transformers", "batch_size": size}
        return Contestant(name, REFERENCE, Layers(layers.files, layers.settings, flags).load())
    for way in WAYS:
        if way == name:
            if base.engine != "vllm" and way == "generate":
                msg = f"--contestants: {name!r} needs the vllm engine, not {base.engine!r}"
                raise ConfigError(msg)
            return Contestant(name, way, base)
    msg = f"--contestants: there is no {name!r}; there are {', '.join((*WAYS, *TRANSFORMERS))}"
    raise ConfigError(msg)


def _read_set(setting: str) -> tuple[str, list[str]]:
    """The key, and each value as YAML on one line."""
    key, equals, text = setting.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        msg = f"--set {setting}: the values are not valid YAML"
        raise ConfigError(msg) from error
    if not equals or not key.strip(".") or not isinstance(values, list) or not values:
        msg = f"--set {setting}: must be KEY.PATH=VALUE,VALUE, for example temperature=0,0.7"
        raise ConfigError(msg)
    if key in FIXED:
        msg = f"--set {setting}: the benchmark sets {key} itself: {FIXED[key]}"
        raise ConfigError(msg)
    return key, [
        yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        for value in values
    ]


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
