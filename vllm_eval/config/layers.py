"""Profile, files, `-c` settings and flags become one configuration.

Each layer is validated by itself, so that an error can name the layer it came from; then the
layers are laid over each other: defaults, profile, files in order, `-c` settings, flags.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from vllm_eval.config import machine, profiles
from vllm_eval.config.settings import (
    LAYER,
    PACKAGE,
    RETIRED,
    Config,
    GateConfig,
    Record,
    resolve_path,
)
from vllm_eval.errors import ConfigError

_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True, slots=True)
class Layers:
    """Where a configuration comes from: the arguments of `load_config`."""

    files: Sequence[str]
    settings: Sequence[str]
    flags: dict[str, Any]
    source: str = "command line"

    def load(self, context: str | None = None) -> Config:
        """The configuration; in the context `LAYER`, keys need not fit together yet."""
        return load_config(self.files, self.settings, self.flags, self.source, context)

    def over(self, setting: str) -> Layers:
        """With `KEY.PATH=VALUE` on top of everything, so that a swept value applies."""
        return replace(self, flags=merge(self.flags, setting_layer(setting)))


def load_config(
    files: Sequence[str] = (),
    settings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    source: str = "command line",
    context: str | None = None,
) -> Config:
    """Resolve the configuration; later layers win, mappings are merged key by key.

    `files` are YAML files or names of shipped profiles, lowest first; `settings` are pairs
    `key.path=value`, the value in YAML; `source` is the name of the `flags` in messages. `context`
    is that of `validated`.

    Raises:
        ConfigError: unknown key, wrong type, missing file; names the layer and the key.
    """
    layers = [(name, read_layer(name)) for name in files]
    layers += [(f"-c {setting}", setting_layer(setting)) for setting in settings]
    layers.append((source, dict(flags or {})))
    for where, layer in layers:
        validated(Config, layer, where, LAYER)
    profile = next((la["profile"] for _, la in reversed(layers) if "profile" in la), "auto")
    if profile == "auto":
        engine = next((la["engine"] for _, la in reversed(layers) if "engine" in la), "vllm")
        for_cpu = machine.installed().leaves_gpus(engine)
        profile = profiles.choose(machine.detect(), for_cpu=for_cpu).profile
    merged: dict[str, Any] = {}
    for layer in [*_profile_layers(profile), *(layer for _, layer in layers)]:
        merged = merge(merged, layer)
    return validated(Config, merged | {"profile": profile}, "configuration", context)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads to the same record."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def profile_names() -> list[str]:
    """The shipped profiles."""
    return sorted(path.stem for path in _profile_dir().glob("*.yaml"))


def read_layer(name: str, *, shipped_only: bool = False) -> dict[str, Any]:
    """The mapping in a shipped profile or in a YAML file.

    Raises:
        ConfigError: there is no such profile or file, or it is not a mapping.
    """
    path = _profile_dir() / f"{name}.yaml" if name in profile_names() else Path(name)
    if not path.is_file() or (shipped_only and name not in profile_names()):
        near = difflib.get_close_matches(name, profile_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        msg = f"{name}: no such file; the profiles are {', '.join(profile_names())}{hint}"
        raise ConfigError(msg)
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        msg = f"{path}: must hold a mapping of keys to values, not a {type(data).__name__}"
        raise ConfigError(msg)
    return {key: value for key, value in data.items() if key not in RETIRED}


def _profile_layers(name: str) -> list[dict[str, Any]]:
    """A shipped profile, after the one that it builds on, if any."""
    layers: list[dict[str, Any]] = []
    while name != "none":
        layers.insert(0, read_layer(name, shipped_only=True))
        validated(Config, layers[0], f"profile {name}", LAYER)
        name = layers[0].get("profile", "none")
    return layers


def _profile_dir() -> Path:
    """In the wheel the profiles are inside the package, in a checkout beside it."""
    packaged = resolve_path(f"{PACKAGE}configs")
    return packaged if packaged.is_dir() else packaged.parents[1] / "configs"


def setting_layer(setting: str) -> dict[str, Any]:
    """The layer of one `-c KEY.PATH=VALUE`; ConfigError if it is anything else."""
    path, equals, text = setting.partition("=")
    if not equals or not path.strip("."):
        raise ConfigError(f"-c {setting}: must be KEY.PATH=VALUE, for example gate.min_ratio=0.85")
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"-c {setting}: the value is not valid YAML") from error
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Two layers as one: `high` wins, mappings key by key."""
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def validated(
    model: type[_R], layer: dict[str, Any], source: str, context: str | None = None
) -> _R:
    """The layer as a record; in the context `LAYER`, keys need not fit together yet.

    Raises:
        ConfigError: unknown key or unusable value; names `source` and the key.
    """
    for key, value in layer.items():
        try:
            json.dumps(value, default=str)
        except (TypeError, ValueError, RecursionError) as error:  # such as an alias to itself
            msg = f"{source}: {key}: not a value that an option can have: {error}"
            raise ConfigError(msg) from error
    text = json.dumps({str(key): value for key, value in layer.items()}, default=str)
    try:
        # Through JSON, since strict validation of Python objects refuses a list for a tuple.
        return model.model_validate_json(text, context=context)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            msg = f"{source}: unknown key {path!r}{_nearest(model, first['loc'])}"
        elif first["type"] == "value_error":
            msg = ": ".join(filter(None, (source, path, str(first["ctx"]["error"]))))
        else:
            secret = first["loc"][0] == "base_url"  # it may hold a password
            given = "" if secret else f", not {first['input']!r}"
            msg = f"{source}: {path}: {first['msg'].lower()}{given}"
        raise ConfigError(msg) from error


def _nearest(model: type[Record], location: Iterable[int | str]) -> str:
    *parents, wrong = (str(part) for part in location)
    fields = GateConfig.model_fields if parents == ["gate"] else model.model_fields
    near = difflib.get_close_matches(wrong, fields, n=1, cutoff=0.4)
    return f"; did you mean {'.'.join((*parents, near[0]))!r}?" if near else ""
