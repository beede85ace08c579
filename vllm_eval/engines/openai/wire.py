"""One request on the wire: how the stream is read, and what can go wrong.

The stream is read line by line, without the official client's reader: that makes a record of every
chunk, which takes 0.25 ms of the driver's time per token, eight times as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import orjson

from vllm_eval.config.settings import Config

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

PLAIN_SAMPLING = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
PLAIN_SAMPLING |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Parameters that vLLM takes from generation_config.json if a request does not set them."""

KEYS = ("VLLM_API_KEY", "OPENAI_API_KEY")
"""Variables that may hold the API key; the first one set counts. The key is never stored."""
NO_KEY = "EMPTY"
"""The key to send if there is none, because the client requires one."""
Kind = Literal[
    "busy", "failed", "timeout", "lost", "unreachable", "missing", "forbidden", "refused"
]
"""Of a fault. `busy`: ask for less; `missing`: no such model; `refused`: it would only recur."""
CHARACTERS_PER_TOKEN = 200
"""More than any token has; a server that sends more ignores `max_tokens`."""
LONGEST_LINE = 4 * 2**20
WORDS, REASON = 400, 100
"""Characters kept of a server's message, and of a finish reason."""
END_S = 1.0
"""Seconds a body may continue after `[DONE]`; once it has ended, the connection is reused."""
TOO_LONG = ("context length", "max_model_len", "too long", "leave room for")


class FaultError(Exception):
    """A request failed; never leaves the engine."""

    def __init__(
        self, kind: Kind, words: str, wait_s: float | None = None, code: int | None = None
    ) -> None:
        """`wait_s`: the pause that the server asks for; `code`: the HTTP status, if any."""
        super().__init__(words)
        self.kind, self.words, self.wait_s, self.code = kind, words, wait_s, code

    @property
    def too_long(self) -> bool:
        """Whether the server refuses the prompt for its length, and would again."""
        named = self.code in (400, 422) and any(words in self.words for words in TOO_LONG)
        return named or self.code == 413


@dataclass(slots=True)
class Answer:
    """What has arrived of one answer; times are of `time.monotonic`."""

    parts: list[str] = field(default_factory=list)
    characters: int = 0
    """Characters of the text, and of reasoning, which is not kept."""
    chunks: int = 0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    """The server's token counts; empty if it sends none."""
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.parts)

    def tokens(self, kind: str) -> int:
        """`prompt` or `completion` tokens as counted by the server; 0 if it does not count."""
        return _whole(self.usage.get(f"{kind}_tokens"))

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens from the prefix cache, if the server reports them."""
        details = self.usage.get("prompt_tokens_details")
        return _whole(details.get("cached_tokens")) if isinstance(details, dict) else 0


async def ask(
    client: AsyncOpenAI,
    config: Config,
    body: dict[str, Any],
    heard: Callable[[], None] = lambda: None,
) -> Answer:
    """Send one request and read its answer to the end; `heard` is called when it begins.

    Raises:
        FaultError: there is no complete answer.
    """
    calls: Any = client.completions if config.prompt_format == "raw" else client.chat.completions
    answer = Answer()
    with faults():
        async with (
            # Bytes alone are not progress: a gateway may send pings for ever.
            asyncio.timeout(config.request_timeout_s) as patience,
            calls.with_streaming_response.create(**body) as response,
            contextlib.aclosing(_lines(response.iter_bytes())) as lines,
        ):
            async for line in lines:
                if not line.startswith(b"data:"):
                    continue
                if (data := line[5:].strip()) == b"[DONE]":
                    break
                seen = (answer.last_at, answer.usage)
                _read_event(answer, data)
                if answer.characters > CHARACTERS_PER_TOKEN * body["max_tokens"]:
                    raise FaultError("refused", "the server sends more than max_tokens allows")
                if seen[0] == 0.0 < answer.last_at:
                    heard()
                if seen != (answer.last_at, answer.usage):
                    now = asyncio.get_running_loop().time()
                    patience.reschedule(now + config.request_timeout_s)
            patience.reschedule(None)
            await _end(lines)
    if answer.finish_reason in (None, "abort", "error"):  # as when a server is shut down
        raise FaultError("lost", "the stream ended before the answer did")
    return answer


def api_key() -> str | None:
    """The key from the environment; configurations cannot hold one, because they are stored."""
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), None)


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Turn whatever the client or the library below it raises into a `FaultError`."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _of_status(error.status_code, error.message, _retry_after(error)) from error
    except openai.APITimeoutError as error:
        kind: Kind = "unreachable" if _connecting(error) else "timeout"
        raise FaultError(kind, "no answer in time") from error
    except openai.APIConnectionError as error:
        kind = "unreachable" if _connecting(error) else "lost"
        raise FaultError(kind, _words(error.__cause__ or error)) from error
    except openai.OpenAIError as error:
        raise FaultError("failed", _words(error)) from error
    except json.JSONDecodeError as error:  # raised by the client if a body is not JSON
        raise FaultError("failed", f"the answer is not JSON: {_words(error)}") from error
    except TimeoutError as error:
        raise FaultError("timeout", "no answer in time") from error
    except _transport_errors() as error:
        kind = "timeout" if "Timeout" in type(error).__name__ else "lost"
        raise FaultError(kind, _words(error)) from error


def _read_event(answer: Answer, data: bytes) -> None:
    """Add one event; anything else is the server's failure."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise FaultError("failed", "the stream has a line that is not JSON") from error
    if not isinstance(event, dict):
        raise FaultError("failed", "the stream has an invalid event")
    if fault := event.get("error"):
        code = fault.get("code") if isinstance(fault, dict) else None
        words = fault.get("message") if isinstance(fault, dict) else fault
        raise _of_status(code if isinstance(code, int) else 500, str(words), None)
    if isinstance(usage := event.get("usage"), dict):
        answer.usage = usage
    choices = event.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        _read_choice(answer, choices[0])


def _read_choice(answer: Answer, choice: dict[str, Any]) -> None:
    delta = choice.get("delta")
    said = delta if isinstance(delta, dict) else {}
    text = said.get("content") if delta is not None else choice.get("text")
    thought = said.get("reasoning_content") or said.get("reasoning")
    reason = choice.get("finish_reason")
    if isinstance(reason, str):
        answer.finish_reason = reason[:REASON]
    if isinstance(text, str) and text:
        answer.parts.append(text)
        answer.characters += len(text)
        answer.chunks += 1
    if isinstance(thought, str):
        answer.characters += len(thought)
    if text or reason or thought:
        answer.last_at = time.monotonic()
    if text or reason:
        answer.first_at = answer.first_at or answer.last_at


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Lines of a stream, limited in length, because an endless one would fill the memory."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        first, *more = chunk.split(b"\n")
        held.append(first)
        size += len(first)
        for begun in more:
            yield b"".join(held)
            held, size = [begun], len(begun)
        if size > LONGEST_LINE:
            raise FaultError("refused", f"the server sends lines of more than {LONGEST_LINE} bytes")
    yield b"".join(held)


async def _end(lines: AsyncIterator[bytes]) -> None:
    """Let the body end; the answer is complete, whatever happens to the rest."""
    with contextlib.suppress(TimeoutError, FaultError, *_transport_errors()):
        async with asyncio.timeout(END_S):
            async for _ in lines:
                pass


def _of_status(code: int, message: str, wait_s: float | None) -> FaultError:
    words = f"{code}: {_without_key(message)}"
    named: dict[int, Kind] = {401: "forbidden", 403: "forbidden", 404: "missing", 429: "busy"}
    named |= {503: "busy", 408: "failed", 409: "failed", 425: "failed"}
    kind = named.get(code, "refused" if 400 <= code < 500 else "failed")
    return FaultError(kind, words, wait_s, code)


def _retry_after(error: APIStatusError) -> float | None:
    """Seconds to wait; ignores the rare form with a date, for which our own schedule is fine."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None


def _connecting(error: Exception) -> bool:
    return "Connect" in type(error.__cause__).__name__


def _words(error: BaseException) -> str:
    return _without_key(str(error)) or type(error).__name__


def _without_key(text: str) -> str:
    """A server's message without the key, which some repeat when they refuse it."""
    words = " ".join(text.split())
    return (words.replace(key, "***") if (key := api_key()) else words)[:WORDS]


def _whole(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0


@functools.cache
def _transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP library below this release of the client; a stream raises them as is."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


def held_to(grammar: str | None) -> dict[str, Any]:
    """The part of the body that makes vLLM apply a grammar; empty without one."""
    return {"structured_outputs": {"grammar": grammar}} if grammar else {}


def asked(config: Config, prompt: str) -> dict[str, Any]:
    """The part of the body that holds the prompt."""
    if config.prompt_format == "raw":
        return {"prompt": prompt}
    return {"messages": [{"role": "user", "content": prompt}]}


def untouched(config: Config, prompt: str, first: str | None) -> dict[str, Any]:
    """The part of the body that says how vLLM makes tokens of the prompt.

    `first` is what the server puts before every text, such as `<s>`; a raw prompt that begins with
    it is not given another.
    """
    if config.prompt_format == "raw":
        return {"add_special_tokens": False} if first and prompt.startswith(first) else {}
    given = config.chat_template_kwargs
    return {"chat_template_kwargs": given} if given else {}


def fields(
    config: Config, model: str, prompt: str, seed: int, *, vllm: bool, first: str | None = None
) -> dict[str, Any]:
    """A request's body as keywords of the client's `create`; `first` as in `untouched`."""
    extra = untouched(config, prompt, first) | (PLAIN_SAMPLING if vllm else {})
    if config.ignore_eos and vllm:
        extra |= {"ignore_eos": True, "min_tokens": config.max_new_tokens}
    return asked(config, prompt) | {
        "model": model,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_new_tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": extra,
    }
