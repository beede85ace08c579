"""Who is timed: an engine's configuration and a way of asking it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from vllm_eval.config.layers import Layers, dump_config
from vllm_eval.config.settings import Flag, Record
from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_eval.config.settings import Config

Way = Literal["mixed", "arms", "barrier", "generate"]
"""`mixed`: our loop, all arms in one batch. `arms`: one arm after the other. `barrier`: no retry
before its round is over. `generate`: bare `LLM.generate`, nothing graded or kept."""
WAYS: tuple[Way, ...] = get_args(Way)
TRANSFORMERS = {"transformers": 1, "transformers-batched": 8}
"""Contestants on the transformers engine, and their batch size if none is configured."""
REFERENCE: Way = "mixed"
BENCH = "Benchmark"
"""Help panel of the options."""
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


def choose(
    layers: Layers, names: str | None, sets: Sequence[str], *, fails: bool
) -> list[Contestant]:
    """The contestants in the order asked for, then one for each value of each setting.

    `names` are separated by commas, by default all that fit the engine and the work; `sets` are
    `KEY.PATH=VALUE,VALUE` with values in YAML. A barrier has an effect only if attempts can fail.

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
        for value in values:
            name, config = f"{key.rpartition('.')[2]}={value}", layers.over(f"{key}={value}").load()
            found.append(Contestant(name, REFERENCE, config))
    counted = [contestant.name for contestant in found]
    if twice := {name for name in counted if counted.count(name) > 1}:
        raise ConfigError(f"--contestants, --set: {min(twice)!r} is there twice")
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
    msg = f"--contestants: there is no {name!r}; choose from {', '.join((*WAYS, *TRANSFORMERS))}"
    raise ConfigError(msg)


def _read_set(setting: str) -> tuple[str, list[str]]:
    """The key, and each value as YAML on one line."""
    import yaml

    key, equals, text = setting.partition("=")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the values are not valid YAML") from error
    if not equals or not key.strip(".") or not isinstance(values, list) or not values:
        msg = f"--set {setting}: must be KEY.PATH=VALUE,VALUE, for example temperature=0,0.7"
        raise ConfigError(msg)
    if key in FIXED:
        raise ConfigError(f"--set {setting}: the benchmark sets {key} itself: {FIXED[key]}")
    dumped = (yaml.safe_dump(value, default_flow_style=True) for value in values)
    return key, [text.removesuffix("...\n").strip() for text in dumped]


class BenchOptions(Record):
    """How often, who, and how much work."""

    repeats: Annotated[int, Field(ge=1), Flag(BENCH)] = 3
    """Counted trials of each contestant."""
    warmup: Annotated[int, Field(ge=0), Flag(BENCH)] = 1
    """Trials of 8 cases before those that count."""
    contestants: Annotated[str | None, Flag(BENCH, "all that fit", metavar="LIST")] = None
    """Contestants: names with commas between them."""
    output_len: Annotated[str, Flag(BENCH, metavar="N|LOW-HIGH")] = "256"
    """Tokens of every answer, or the least and the most."""
    fail_rate: Annotated[float, Field(ge=0, le=0.95), Flag(BENCH)] = 0.0
    """Share of attempts that are made to fail."""
    sets: Annotated[tuple[str, ...], Flag(BENCH, names=("--set",), metavar="KEY.PATH=A,B")] = ()
    """Setting to sweep: a contestant for each value. Repeat for more settings."""
    load_format: Annotated[str | None, Flag(BENCH, "vLLM's own", metavar="FORMAT")] = None
    """vLLM: how weights are loaded; dummy needs a config.json and no weights."""
    rank: Annotated[int, Field(ge=1), Flag(BENCH)] = 16
    """Rank of a made-up adapter."""
    one_at_a_time: Annotated[bool, Flag(BENCH)] = False
    """Close each engine before the next one starts."""


def read_lengths(text: str) -> tuple[int, int]:
    """Least and most tokens of an answer, from `N` or `LOW-HIGH`.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ConfigError(f"--output-len {text}: must be a number of tokens, or two as in 500-1200")
    return least, most
