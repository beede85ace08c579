"""What a run is made of: stored with it, and compared before anyone adds to it."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.compare.selection import Origin
from vllm_eval.config import machine
from vllm_eval.config.identity import CAPACITY_ARGS, NOT_IDENTITY
from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import InputError
from vllm_eval.inputs.adapters import loaded_adapters
from vllm_eval.inputs.training_log import read_logs
from vllm_eval.tasks.parse import loader
from vllm_eval.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from vllm_eval.inputs.plan import Plan
    from vllm_eval.records import Adapter

SCHEMA_VERSION = 1
FILE = "manifest.json"
LOADER_KEY = "yaml"
"""Key of the identity. Earlier runs lack it, so their loader is unknown, not another one."""
LONGEST = 500
"""Characters shown of a value that differs."""
_SAMPLE_BYTES = 2**20


def describe(plan: Plan, identity: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The manifest of a plan with its `identity`, before an engine is started."""
    return {
        "schema_version": SCHEMA_VERSION,
        "vllm_eval": __version__,
        "started_at": now.isoformat(),
        "identity": dict(identity),
        "base_model": plan.base_model,
        "dataset": {"path": str(plan.dataset.path), "records": plan.dataset.total},
        "adapters": {
            arm.name: _about(arm.adapter)
            for arm in plan.arms
            if arm.adapter and arm.variant_of is None
        },
        "training": {
            folder: asdict(log) for folder, log in read_logs(loaded_adapters(plan.arms)).items()
        },
        "machine": asdict(machine.detect()),
    }


def _about(adapter: Adapter) -> dict[str, Any]:
    training = str(adapter.training) if adapter.training else None
    rank, step = adapter.rank, adapter.step
    return {"path": str(adapter.path), "rank": rank, "step": step, "training": training}


def identify(plan: Plan) -> dict[str, Any]:
    """Everything that decides what the outcomes are, as JSON values."""
    settings = plan.config.model_dump(mode="json", exclude=set(NOT_IDENTITY))
    settings["engine_args"] = {
        key: value for key, value in plan.config.engine_args.items() if key not in CAPACITY_ARGS
    }
    if not settings["chat_template_kwargs"]:
        del settings["chat_template_kwargs"]  # earlier runs have no such key
    identity = settings | {
        LOADER_KEY: loader(),
        "task": f"{plan.task.name} {plan.task.version}",
        "prompt": plan.task.prompt_sha256,
        "dataset": plan.dataset.sha256,
        "base_model": _fingerprint(plan.base_model) if plan.base_model else None,
        "adapters": {
            arm.name: arm.adapter.sha256 if arm.adapter else None
            for arm in plan.arms[1:]
            if arm.variant_of is None
        },
        "grammar": _hash_grammar(plan),
        "script": _hash_file(plan.config.script) if plan.config.script else None,
    }
    return dict(orjson.loads(orjson.dumps(identity)))


def origins(recorded: Mapping[str, Any]) -> dict[str, Origin]:
    """Where the adapters of a manifest come from, by arm; what is not of its type is not known."""
    adapters = recorded.get("adapters")
    found: dict[str, Origin] = {}
    for arm, about in adapters.items() if isinstance(adapters, dict) else ():
        known = about if isinstance(about, dict) else {}
        path, step, training = (known.get(key) for key in ("path", "step", "training"))
        found[arm] = Origin(
            path=path if isinstance(path, str) else None,
            step=step if type(step) is int and step >= 0 else None,
            training=training if isinstance(training, str) else None,
        )
    return found


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        InputError: the folder holds no run, or one of another schema, or the manifest is damaged.
    """
    path = folder / FILE
    try:
        manifest = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        msg = f"{folder}: is not a run folder: {path.name} is missing or unreadable"
        raise InputError(msg) from error
    whole = isinstance(manifest, dict) and isinstance(manifest.get("identity"), dict)
    if not whole or manifest.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: written by another version of vllm_eval; start a new run")
    if odd := [key for key in ("engine", "adapters") if type(manifest.get(key, {})) is not dict]:
        raise InputError(f"{path}: damaged ({odd[0]}); restore it, or evaluate again")
    return dict(manifest)


def differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The keys in which two identities differ."""
    both = one.keys() | two.keys()
    if LOADER_KEY not in one or LOADER_KEY not in two:
        both -= {LOADER_KEY}
    return [key for key in sorted(both) if one.get(key) != two.get(key)]


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, one line each."""
    return [
        _other_adapters(recorded[key], now[key])
        if key == "adapters" and isinstance(recorded.get(key), dict) and key in now
        else f"{key} was {_shown(recorded.get(key))}, is {_shown(now.get(key))}"
        for key in differing(recorded, now)
    ]


def _shown(value: object) -> str:
    """A value of an identity, shortened, because anyone may have written it."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _other_adapters(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which are new, gone or changed: a training run's folder may hold more of them by now."""
    both = recorded.keys() & now.keys()
    names = {
        "new": sorted(now.keys() - both),
        "missing": sorted(recorded.keys() - both),
        "changed": sorted(name for name in both if recorded[name] != now[name]),
    }
    what = "; ".join(f"{how}: {', '.join(those)}" for how, those in names.items() if those)
    return f"adapters was {', '.join(recorded)}, is {', '.join(now)} ({what})"


def adapters_again(recorded: Mapping[str, Any]) -> str:
    """The option that names a run's adapters one by one, from its manifest; empty without any."""
    adapters = recorded.get("adapters")
    about = adapters.values() if isinstance(adapters, dict) else ()
    paths = [str(one.get("path")) for one in about if isinstance(one, dict)]
    return f"--adapter {shlex.join(paths)}" if paths else ""


def _hash_grammar(plan: Plan) -> str | None:
    """The hash of the grammar that constrains arms; None if all answer freely."""
    grammar = next((arm.grammar for arm in plan.arms if arm.grammar), None)
    return hashlib.sha256(grammar.encode()).hexdigest() if grammar else None


def _hash_file(script: str) -> str:
    path = resolve_path(script)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot read the script: {error.strerror}") from error


def _fingerprint(base_model: str) -> str:
    """A local model by its configuration and samples of its weights; a hub id as it is.

    All of a 15 GB checkpoint would take half a minute to hash; sizes and the first and last
    mebibyte of each file tell any two real checkpoints apart.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        return base_model
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()
