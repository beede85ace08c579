"""An adapter's files from the hub."""

from __future__ import annotations

from pathlib import Path

from vllm_eval.errors import AdapterError


def download(hub_id: str, hint: str) -> Path:
    """The folder of an adapter's files, downloaded if they are not here.

    Raises:
        AdapterError: they cannot be had; the message ends with `hint`.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        msg = f"adapter {hub_id!r}: a hub id needs the extra 'hub': pip install 'vllm_eval[hub]'"
        raise AdapterError(msg) from error
    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=["*.json", "*.jinja", "*.safetensors"])
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = str(error).rstrip(".")
        msg = f"adapter {hub_id!r}: not a local folder, and not available from the hub: {why}"
        raise AdapterError(f"{msg}; {hint}" if hint else msg) from error
