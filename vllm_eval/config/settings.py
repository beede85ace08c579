"""Profile, files and flags become one frozen, validated record.

Each layer is validated by itself, so that an error can name the layer it came from; then the
layers are laid over each other: defaults, profile, files in order, `-c` settings, flags.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_eval.config import machine, profiles
from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PACKAGE = "package:"
"""Prefix of a path inside the installed package, as the demo profile uses it."""
_HERE = Path(__file__).parents[1]
ENGINE_ENV = "^(VLLM|OMP|MKL|TORCH(DYNAMO)?|PYTORCH|CUDA|NCCL|TRITON|HF|TOKENIZERS)_[A-Z0-9_]+$"
"""Names of variables a configuration may set: it may come with somebody else's run folder."""
SERVER_URL = r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$"
"""No user and password: the configuration is stored. The key comes from the environment."""
RETIRED = frozenset(("journal_part_mib",))
"""Keys in files of earlier versions, also in the `config.yaml` of their runs; without effect."""
_Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GateConfig(_Record):
    """Thresholds of the gate; defaults of `product_owner.md`, "Aggregates and gate"."""

    min_valid_rate: _Share = 0.90
    """Least share of valid cases in each arm."""
    min_baseline_mean: _Share = 0.75
    """Least mean score of the baseline."""
    min_ratio: Annotated[float, Field(ge=0)] = 0.90
    """Least student mean as a share of the baseline mean."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Where set, the lower end of the ratio's interval at this level must reach `min_ratio` too."""
    min_student_mean: _Share | None = None
    """Least student mean."""
    max_student_std: Annotated[float, Field(ge=0)] | None = None
    """Largest standard deviation of the student's cases."""
    min_case_score: _Share | None = None
    """Least score of every valid case of the student; the valid rate holds the others."""
    max_abs_difference: Annotated[float, Field(ge=0)] | None = None
    """Largest distance of the two means, whichever is higher."""


class Config(_Record):
    """Everything a run depends on; stored with it and good to run again."""

    profile: str = "auto"
    """A shipped profile as the lowest layer: its name, `auto` by machine, or `none`."""
    task: str = "product_owner"
    engine: Literal["vllm", "transformers", "openai", "ray", "scripted"] = "vllm"
    ray_address: str | None = None
    """Ray cluster of the ray engine, `auto` or HOST:6379; one of this machine alone by default."""
    replicas: Annotated[int, Field(gt=0)] | None = None
    """Engines the ray engine keeps; by default as many as the cluster's nodes hold."""
    base_url: tuple[Annotated[str, Field(pattern=SERVER_URL)], ...] = ()
    """Where servers of the openai engine answer, as http://HOST:8000/v1; all serve the same."""
    served_models: dict[str, str] = {}
    """By arm, the model's name on the servers; the arm's own, or what they tell of the base."""
    load_adapters: bool = False
    """Have the servers load, at run time, the adapters they do not serve yet."""
    max_concurrency: Annotated[int, Field(gt=0)] = 256
    """Most requests a server is given at a time; fewer while it says it is too much."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a server may send nothing of an answer."""
    server_patience_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds of nothing but failures until the openai engine gives up, or of no ray replica."""
    script: str | None = None
    """Answers of the scripted engine, JSON lines."""
    adapters: tuple[str, ...] = ()
    """Folders, names looked up in `adapter_dirs`, or hub ids."""
    adapter_dirs: tuple[str, ...] = ("artifacts/models", "adapters")
    base_model: str | None = None
    """Folder or hub id; by default what the adapter says it was trained on."""
    tag: str | None = None
    """Label of the run, first part of its folder's name; by default the adapter's name."""
    dataset_path: str = "artifacts/synthetic/product_owner/product_owner_val.jsonl"
    output_dir: str = "results"
    max_samples: Annotated[int, Field(gt=0)] | None = None
    """How many cases are drawn; all where absent."""
    samples_per_case: Annotated[int, Field(gt=0)] = 1
    """Answers drawn from each arm for each case, each with a seed of its own."""
    seed: int = 42
    prompt_template: str | None = None
    prompt_format: Literal["raw", "chat"] = "raw"
    temperature: Annotated[float, Field(ge=0)] = 0.2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(gt=0)] = 1024
    ignore_eos: bool = False
    """Every answer runs to `max_new_tokens`, as vLLM calls it: equal work for timing."""
    batch_size: Annotated[int, Field(gt=0)] = 1
    """Cases the transformers engine answers at a time; 1 is one after the other."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a first one that failed."""
    load_4bit: bool = False
    bnb_compute_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    max_engine_restarts: Annotated[int, Field(ge=0)] = 2
    """How often an engine that died is started again with what is pending."""
    engine_args: dict[str, Any] = {}
    """Options of vLLM's `EngineArgs`, by their own names."""
    engine_env: dict[Annotated[str, Field(pattern=ENGINE_ENV)], str] = {}
    """Environment of the engine, where a variable is not set already."""
    gate: GateConfig = GateConfig()
    constrain: Literal["none", "beside", "only"] = "none"
    """Decoding by the task's grammar: not, as a variant beside each arm, or in every arm."""
    repair: bool = False
    """Whether result files show what failed answers are worth with their text repaired."""
    report: bool = True
    """Whether a run ends with its report; `report RUN` makes it at any time."""

    @property
    def answering(self) -> str:
        """The engine that answers: within a replica, where the engine is ray."""
        if self.engine == "ray":
            return "scripted" if self.script else "vllm"
        return self.engine

    @property
    def dtype(self) -> str:
        """The type vLLM computes in: `bnb_compute_dtype`, else the one a profile may name."""
        return self.bnb_compute_dtype or str(self.engine_args.get("dtype") or "auto")


def load_config(
    files: Sequence[str] = (),
    settings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    source: str = "command line",
) -> Config:
    """Resolve the configuration; later layers win, mappings are merged key by key.

    Args:
        files: YAML files or names of shipped profiles, lowest first (`--config`).
        settings: `key.path=value` pairs, the value in YAML (`-c`).
        flags: values given on the command line, by configuration key.
        source: what errors call those.

    Raises:
        ConfigError: unknown key, wrong type, missing file; names the layer and the key.
    """
    layers = [(name, read_layer(name)) for name in files]
    layers += [(f"-c {setting}", setting_layer(setting)) for setting in settings]
    layers.append((source, dict(flags or {})))
    for where, layer in layers:
        _validate(layer, where)
    profile = next((la["profile"] for _, la in reversed(layers) if "profile" in la), "auto")
    if profile == "auto":
        engine = next((la["engine"] for _, la in reversed(layers) if "engine" in la), "vllm")
        for_cpu = machine.installed().leaves_gpus(engine)
        profile = profiles.choose(machine.detect(), for_cpu=for_cpu).profile
    merged: dict[str, Any] = {}
    for layer in [*_profile_layers(profile), *(layer for _, layer in layers)]:
        merged = merge(merged, layer)
    return _validate(merged | {"profile": profile}, "configuration")


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads to the same record."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve_path(text: str) -> Path:
    """A configured path: `package:` is the installed package, `~` the home folder.

    Raises:
        ConfigError: no file system can hold such a path.
    """
    if "\0" in text:
        msg = f"{text!r}: a path cannot hold a NUL character"
        raise ConfigError(msg)
    if text.startswith(PACKAGE):
        return _HERE / text.removeprefix(PACKAGE)
    return Path(text).expanduser()


def file_name(text: str) -> str:
    """`text` as part of a file's name: whatever could lead elsewhere becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def profile_names() -> list[str]:
    """The shipped profiles."""
    return sorted(path.stem for path in _profile_dir().glob("*.yaml"))


def read_layer(name: str, *, shipped_only: bool = False) -> dict[str, Any]:
    """The mapping in a shipped profile or in a YAML file.

    Raises:
        ConfigError: there is no such profile or file, or it holds no mapping.
    """
    path = _profile_dir() / f"{name}.yaml" if name in profile_names() else Path(name)
    if not path.is_file() or (shipped_only and name not in profile_names()):
        near = difflib.get_close_matches(name, profile_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        msg = f"{name}: no such file, and the profiles are {', '.join(profile_names())}{hint}"
        raise ConfigError(msg)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"{path}: cannot be read as YAML: {error}"
        raise ConfigError(msg) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        msg = f"{path}: must hold a mapping of keys to values, not a {type(data).__name__}"
        raise ConfigError(msg)
    return {key: value for key, value in data.items() if key not in RETIRED}


def _profile_layers(name: str) -> list[dict[str, Any]]:
    """A shipped profile, after the one it builds on where it names one."""
    layers: list[dict[str, Any]] = []
    while name != "none":
        layers.insert(0, read_layer(name, shipped_only=True))
        _validate(layers[0], f"profile {name}")
        name = layers[0].get("profile", "none")
    return layers


def _profile_dir() -> Path:
    """In the wheel the profiles lie inside the package, in a checkout beside it."""
    packaged = _HERE / "configs"
    return packaged if packaged.is_dir() else _HERE.parent / "configs"


def setting_layer(setting: str) -> dict[str, Any]:
    """The layer that one `-c KEY.PATH=VALUE` is.

    Raises:
        ConfigError: it is none.
    """
    path, equals, text = setting.partition("=")
    if not equals or not path.strip("."):
        msg = f"-c {setting}: must be KEY.PATH=VALUE, for example gate.min_ratio=0.85"
        raise ConfigError(msg)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        msg = f"-c {setting}: the value is not valid YAML"
        raise ConfigError(msg) from error
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


def _validate(layer: dict[str, Any], source: str) -> Config:
    for key, value in layer.items():
        try:
            json.dumps(value, default=str)
        except (TypeError, ValueError, RecursionError) as error:  # an alias to itself, say
            msg = f"{source}: {key}: holds what no option can be: {error}"
            raise ConfigError(msg) from error
    text = json.dumps({str(key): value for key, value in layer.items()}, default=str)
    try:
        # Through JSON, since strict validation of Python objects refuses a list for a tuple.
        return Config.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            msg = f"{source}: unknown key {path!r}{_nearest(first['loc'])}"
        else:
            secret = first["loc"][0] == "base_url"  # it may hold a password
            given = "" if secret else f", not {first['input']!r}"
            msg = f"{source}: {path}: {first['msg'].lower()}{given}"
        raise ConfigError(msg) from error


def _nearest(location: Iterable[int | str]) -> str:
    *parents, wrong = (str(part) for part in location)
    fields = GateConfig.model_fields if parents == ["gate"] else Config.model_fields
    near = difflib.get_close_matches(wrong, fields, n=1, cutoff=0.4)
    return f"; did you mean {'.'.join((*parents, near[0]))!r}?" if near else ""


def gpus_of(config: Config) -> int:
    """GPUs that one engine takes: tensor times pipeline parallelism."""
    args = config.engine_args
    return whole(args.get("tensor_parallel_size")) * whole(args.get("pipeline_parallel_size"))


def quantization_of(config: Config) -> str | None:
    """The method asked for at load time."""
    given = config.engine_args.get("quantization")
    return str(given) if given else "bitsandbytes" if config.load_4bit else None


def whole(value: object, default: int = 1) -> int:
    """A positive whole number; what else was given is the engine's to refuse."""
    return value if type(value) is int and value > 0 else default
