"""What a manifest says of a baseline whose answers were copied from another run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import orjson
from annotated_types import Ge, MaxLen
from pydantic import TypeAdapter, ValidationError

from vllm_eval.engines.base_canary import Proof
from vllm_eval.errors import InputError, one_line

FROM = "baseline_from"
"""Key of the manifest for a `Reused`."""
CANARY = "canary"
"""Key of the manifest for what the base answered the canary which the baseline's answers are of."""

_Count = Annotated[int, Ge(0)]
_Text = Annotated[str, MaxLen(4096)]


@dataclass(frozen=True, slots=True)
class Reused:
    """The run that asked the baseline, and how much of it was copied."""

    run: _Text
    """Name of its folder."""
    path: _Text
    """Its folder, where it was when it was copied."""
    started_at: _Text
    engine: Annotated[dict[_Text, str | int], MaxLen(100)]
    """Its engine's description of itself."""
    answers: _Count
    attempts: _Count
    cases: _Count
    proof: Proof | None = None
    """How far this engine's base is from the one that answered; None where there are no weights, or
    no engine has started yet."""


def read_reused(recorded: Mapping[str, Any]) -> Reused | None:
    """What a run's manifest says; None if its baseline is its own.

    Raises:
        InputError: it cannot be read.
    """
    found = recorded.get(FROM)
    if found is None:
        return None
    try:
        return reused_from_json(found)
    except InputError as error:
        msg = f"manifest.json: {FROM} is damaged ({error}); restore the file, or evaluate again"
        raise InputError(msg) from error


def reused_from_json(data: object) -> Reused:
    """A checked record.

    Raises:
        InputError: it is none.
    """
    try:
        return _reader().validate_json(orjson.dumps(data), strict=True)
    except (ValidationError, orjson.JSONEncodeError) as error:
        raise InputError(one_line(error)) from error


def reused_to_json(found: Reused | None) -> dict[str, Any] | None:
    """The same for a file."""
    return asdict(found) if found else None


@functools.cache
def _reader() -> TypeAdapter[Reused]:
    return TypeAdapter(Reused)
