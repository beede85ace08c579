"""From an adapter's name to its folder and what is known of it without loading a weight."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_eval.config import resolve_path
from vllm_eval.errors import AdapterError
from vllm_eval.records import BASELINE, Adapter, Arm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_eval.config import Config

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def open_arms(config: Config) -> tuple[Arm, ...]:
    """The baseline and one arm per configured adapter, with names that can name files.

    Raises:
        AdapterError: none is configured, one cannot be found or used, or two share a name.
    """
    if not config.adapters:
        msg = "adapters: none given, so there is nothing to compare; give --adapter NAME"
        raise AdapterError(msg)
    arms = [Arm(BASELINE)]
    for given in config.adapters:
        name = _UNSAFE.sub("_", given.rstrip("/").rpartition("/")[2].rpartition(":")[2])
        if name in {arm.name for arm in arms}:
            msg = f"adapters: two arms would be called {name!r}; rename a folder"
            raise AdapterError(msg)
        if config.engine == "scripted":  # only a label: no adapter file is read
            arms.append(Arm(name))
        else:
            arms.append(Arm(name, read_adapter(name, find_adapter(given, config.adapter_dirs))))
    return tuple(arms)


def base_of(arms: Sequence[Arm], given: str | None) -> str:
    """The base model all arms share: `given`, or what the adapters were trained on.

    Raises:
        AdapterError: no base is known, or the adapters name different ones.
    """
    if given is not None:
        return _local_or_hub(given)
    bases = {arm.adapter.base_model for arm in arms if arm.adapter}
    if len(bases) == 1 and (base := bases.pop()):
        return _local_or_hub(base)
    said = "; ".join(f"{a.name}: {a.adapter.base_model}" for a in arms if a.adapter)
    msg = f"base_model: the adapters do not agree on one ({said}); give --base-model"
    raise AdapterError(msg)


def find_adapter(given: str, adapter_dirs: Sequence[str]) -> Path:
    """The folder of an adapter: a path, a name in one of `adapter_dirs`, or a hub id.

    Raises:
        AdapterError: nothing of that name; lists where it was looked for.
    """
    places = [resolve_path(given), *(resolve_path(folder) / given for folder in adapter_dirs)]
    for place in places:
        if place.is_dir():
            return place.resolve()
    if _HUB_ID.fullmatch(given):
        return _download(given)
    looked = ", ".join(str(place) for place in places)
    msg = f"adapter {given!r}: no such folder (looked for {looked}); give a folder or a hub id"
    raise AdapterError(msg)


def read_adapter(name: str, folder: Path) -> Adapter:
    """What an adapter's folder says of it; its weights are hashed, not loaded.

    Raises:
        AdapterError: a file is missing or unreadable, or it is no LoRA in safetensors.
    """
    settings, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not settings.is_file():
        msg = f"adapter {folder}: has no {CONFIG_FILE}; is this a PEFT adapter's folder?"
        raise AdapterError(msg)
    if not weights.is_file():
        msg = f"adapter {folder}: has no {WEIGHTS_FILE}; save it with safe_serialization=True"
        raise AdapterError(msg)
    try:
        fields = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{settings}: not readable as JSON: {error}"
        raise AdapterError(msg) from error
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        msg = f"{settings}: peft_type must be LORA; other adapters cannot be served"
        raise AdapterError(msg)
    pattern = fields.get("rank_pattern") or {}
    ranks = [fields.get("r"), *(pattern.values() if isinstance(pattern, dict) else [])]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        msg = f"{settings}: r and rank_pattern must be positive whole numbers"
        raise AdapterError(msg)
    digest = hashlib.sha256(settings.read_bytes())
    with weights.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    base = fields.get("base_model_name_or_path")
    return Adapter(name, folder, base or None, max(ranks), digest.hexdigest())


def _local_or_hub(model: str) -> str:
    """Absolute where the folder exists: a relative path would be taken for a hub id."""
    path = resolve_path(model)
    return str(path.resolve()) if path.is_dir() else model


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        msg = f"adapter {hub_id!r}: a hub id needs the extra 'hub': pip install 'vllm_eval[hub]'"
        raise AdapterError(msg) from error
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        msg = f"adapter {hub_id!r}: neither a local folder nor to be had from the hub: {error}"
        raise AdapterError(msg) from error
