"""Canned answers from a file, for tests, fault drills and trying a task without a model."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllm_eval.config.settings import resolve_path
from vllm_eval.engines.base_canary import BaseAnswers
from vllm_eval.errors import ConfigError, DatasetError, EngineDiedError
from vllm_eval.records import Completion, Request

ANY = "*"
CAPACITY = 256
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("concept_id", "arm", "text", "error"), (str,)),
    "attempt": (int,),
    "seconds": (int, float),
    "deaths": (int,),
}
"""The keys of a line, and what each may hold."""


@dataclass(frozen=True, slots=True)
class ScriptLine:
    """One line of a script: an answer, and the requests that it answers."""

    concept_id: str
    """`*` for every case."""
    arm: str | None = None
    """None for any arm."""
    attempt: int | None = None
    """None for any attempt."""
    text: str = ""
    seconds: float = 0.0
    """How long the answer takes; many can be in flight."""
    error: str | None = None
    """An engine error instead of an answer."""
    deaths: int = 0
    """In how many of its lives, from the first, the engine dies when this answer is due."""


class ScriptedEngine:
    """Answers each request with the most specific line of the script that fits it.

    A named case beats `*`, then a named arm beats any, then a numbered attempt beats any; of equals
    the first in the file counts. Tokens are words separated by white space.
    """

    def __init__(self, lines: Sequence[ScriptLine], life: int = 0) -> None:
        self._life = life
        self._lines: dict[tuple[str, str | None, int | None], ScriptLine] = {}
        for line in lines:
            self._lines.setdefault((line.concept_id, line.arm, line.attempt), line)
        self._due: list[tuple[float, int, Completion | None]] = []
        self._submitted = 0

    @classmethod
    def open(cls, script: str | None, life: int = 0) -> ScriptedEngine:
        """Read the script.

        Raises:
            ConfigError: none is configured.
            DatasetError: the file or one of its lines cannot be used.
        """
        if script is None:
            raise ConfigError("script: the scripted engine needs one; give --script FILE.jsonl")
        return cls(list(_read_script(resolve_path(script))), life)

    @property
    def capacity(self) -> int:
        """How many requests are worth holding in flight."""
        return CAPACITY

    @property
    def about(self) -> Mapping[str, str | int]:
        """Name and size of the script."""
        return {"engine": "scripted", "lines": len(self._lines)}

    @property
    def base(self) -> Sequence[BaseAnswers | None]:
        """A script has no weights."""
        return ()

    def refusal(self, prompt: str) -> str | None:  # noqa: ARG002  any prompt will do
        """Nothing is too long for a script."""
        return None

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, each due after its line's seconds."""
        now = time.monotonic()
        for request in requests:
            line = self._find(request)
            self._submitted += 1
            dies = line is not None and self._life < line.deaths
            completion = None if dies else _complete(request, line)
            due = now + (line.seconds if line else 0.0)
            heapq.heappush(self._due, (due, self._submitted, completion))

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._due)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Wait for the next due answer, at most `timeout` seconds; return all that are due."""
        if not self._due:
            return []
        wait = max(0.0, self._due[0][0] - time.monotonic())
        in_time = timeout is None or wait <= timeout
        time.sleep(wait if in_time else timeout or 0.0)
        now = max(time.monotonic(), self._due[0][0]) if in_time else 0.0
        finished: list[Completion] = []
        while self._due and self._due[0][0] <= now:
            completion = self._due[0][2]
            if completion is None and finished:
                break  # return what has finished first
            heapq.heappop(self._due)
            if completion is None:
                raise EngineDiedError("the engine died, as its script says")
            finished.append(completion)
        return finished

    def close(self) -> None:
        """Drop what is still due."""
        self._due.clear()

    def _find(self, request: Request) -> ScriptLine | None:
        keys = (
            (case, arm, attempt)
            for case in (request.case_id, ANY)
            for arm in (request.arm, None)
            for attempt in (request.attempt, None)
        )
        return next((self._lines[key] for key in keys if key in self._lines), None)


def _complete(request: Request, line: ScriptLine | None) -> Completion:
    if line is None:
        what = f"{request.case_id}, {request.arm}, attempt {request.attempt}"
        return Completion(request.id, error=f"the script has no line for {what}")
    if line.error is not None:
        return Completion(request.id, error=line.error)
    return Completion(
        request.id,
        text=line.text,
        finish_reason="stop",
        prompt_tokens=len(request.prompt.split()),
        output_tokens=len(line.text.split()),
        ttft_s=line.seconds,
        total_s=line.seconds,
    )


def _read_script(path: Path) -> Iterator[ScriptLine]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _read_line(f"{path}, line {number}", raw)
    except OSError as error:
        raise DatasetError(f"{path}: cannot read the script: {error.strerror}") from error


def _read_line(where: str, raw: bytes) -> ScriptLine:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise DatasetError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("concept_id"), str):
        raise DatasetError(f"{where}: must be an object with a concept_id ('{ANY}' for every case)")
    if unknown := sorted(fields.keys() - _TYPES.keys()):
        raise DatasetError(f"{where}: unknown key {unknown[0]!r}; the keys are {sorted(_TYPES)}")
    given: dict[str, Any] = {key: found for key, found in fields.items() if found is not None}
    for key, value in given.items():
        if not isinstance(value, _TYPES[key]):
            raise DatasetError(f"{where}: {key!r} has the wrong type")
        least, most = int(key == "attempt"), 10**6
        if str not in _TYPES[key] and (isinstance(value, bool) or not least <= value <= most):
            raise DatasetError(f"{where}: {key!r} must be a number from {least} to {most}")
    if "text" not in given and "error" not in given:
        raise DatasetError(f"{where}: needs a 'text' or an 'error'")
    return ScriptLine(**given | {"seconds": float(given.get("seconds", 0))})
