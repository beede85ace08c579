"""Servers on loopback for the tests of the openai engine: one that only speaks the protocol, and
a proxy that stands before any server and gets in its way."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
from aiohttp import web

from tests.loopback import Loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

BASE, STUDENT = "base", "pupil"
LONGEST = 3072


@dataclass
class FakeServer:
    """Speaks vLLM's protocol; what it answers is a hash, or what `answer` makes of a request."""

    models: dict[str, str | None] = field(default_factory=lambda: {BASE: None, STUDENT: BASE})
    """Name to parent."""
    answer: Callable[[Mapping[str, Any]], str] = lambda body: hash_words(body)  # noqa: PLW0108  defined below
    seconds: float = 0.02
    room: int = 10**6
    """More requests at a time are answered with 429."""
    retry_after: str | None = None
    version: str | None = "0.32.0"
    log_probabilities: bool = True
    same: bool = False
    """All models answer alike."""
    other_base: float = 0.0
    """How far the base's log probabilities are from those of another server's base, in nats."""
    loads: bool = False
    cut: int = LONGEST
    """The most words of an answer."""
    first: str | None = None
    """Put before every prompt, unless a request says not to."""
    key: str | None = None
    status: int | None = None
    """Of every answer, instead of one."""
    odd: dict[str, str] = field(default_factory=dict)
    """Bodies by path, said instead of an answer."""
    version_fails: int = 0
    """So often."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Every streamed request that was let in."""
    in_flight: int = 0
    busiest: int = 0
    turned_away: int = 0

    def __post_init__(self) -> None:
        routes = web.RouteTableDef()
        routes.get("/v1/models")(self._models)
        routes.get("/version")(self._version)
        routes.post("/tokenize")(self._tokenize)
        routes.post("/v1/load_lora_adapter")(self._load)
        routes.post("/v1/completions")(self._complete)
        routes.post("/v1/chat/completions")(self._complete)
        self.loopback = Loopback(routes)
        self.loopback.start()

    @property
    def url(self) -> str:
        return self.loopback.url

    def _instead(self, request: web.Request) -> web.Response | None:
        if self.status:
            return _refuse(self.status, "not now")
        text = self.odd.get(request.path)
        return None if text is None else web.Response(text=text, content_type="application/json")

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            given = request.headers.get("Authorization", "")
            return _refuse(401, f"wrong key: {given}")
        if instead := self._instead(request):
            return instead
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "test",
                "parent": parent,
                "max_model_len": None if parent else LONGEST,
            }
            for name, parent in self.models.items()
        ]
        return web.json_response({"object": "list", "data": data})

    async def _version(self, request: web.Request) -> web.Response:
        if self.version_fails:
            self.version_fails -= 1
            return _refuse(500, "not yet")
        return web.json_response({"version": self.version}) if self.version else _refuse(404, "no")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        words = body["prompt"].split()
        if self.first and body.get("add_special_tokens", True):
            words = [self.first, *words]
        texts = words if body.get("return_token_strs") else None
        return web.json_response({"count": len(words), "token_strs": texts})

    async def _load(self, request: web.Request) -> web.Response:
        if not self.loads:
            return _refuse(404, "Not Found")
        body = await request.json()
        self.models[body["lora_name"]] = BASE
        self.bodies.append(body)
        return web.Response(text="loaded")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] not in self.models:
            return _refuse(404, f"The model `{body['model']}` does not exist.")
        if not body.get("stream"):
            return self._instead(request) or self._likeliest(body)
        if self.status:
            return _refuse(self.status, "not now")
        if self.in_flight >= self.room:
            self.turned_away += 1
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            return _refuse(429, "too many requests", headers)
        self.bodies.append(body)
        self.in_flight += 1
        self.busiest = max(self.busiest, self.in_flight)
        try:
            return await self._stream(request, body)
        finally:
            self.in_flight -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        words = self.answer(body).split(" ")
        room = min(LONGEST - len(_prompt(body).split()), self.cut)
        pieces = [word if n == 0 else f" {word}" for n, word in enumerate(words)][:room]
        await asyncio.sleep(self.seconds)
        chat = "messages" in body
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            reason = None if not last else "length" if len(pieces) < len(words) else "stop"
            text = {"delta": {"content": piece}} if chat else {"text": piece}
            await _event(response, {"choices": [text | {"index": 0, "finish_reason": reason}]})
        usage = {"prompt_tokens": len(_prompt(body).split()), "completion_tokens": len(pieces)}
        await _event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _likeliest(self, body: dict[str, Any]) -> web.Response:
        if not self.log_probabilities:
            return _refuse(400, "logprobs are not supported")
        likelier = -0.5 if self.same or self.models[body["model"]] is None else -1.5
        likelier -= 0.0 if self.same else len(body["model"]) / 100
        likelier -= self.other_base if self.models[body["model"]] is None else 0.0
        top = {"token_id:1": likelier, "token_id:2": -3.0}
        choices = [
            {"index": number, "text": "x", "finish_reason": "length", "logprobs": logprobs}
            for number, logprobs in enumerate([{"top_logprobs": [top]}] * len(body["prompt"]))
        ]
        return web.json_response({"id": "1", "object": "text_completion", "choices": choices})


Refusal = Literal["busy", "later", "at once", "broken", "filter", "absent"]
Fault = Refusal | Literal["pass", "slow", "cut", "drop", "garbage", "endless", "pings", "open"]
REFUSALS = {"busy": 429, "later": 429, "at once": 429, "broken": 500, "filter": 403, "absent": 404}
RETRY_AFTER = {"later": "0.2", "at once": "0"}


@dataclass
class FaultProxy:
    """Forwards to `target`, but for what `fault` says of the n-th streamed request."""

    target: str
    fault: Callable[[int, Mapping[str, Any]], Fault] = lambda number, body: "pass"
    seconds: float = 0.3
    """Of a slow answer."""
    seen: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        routes = web.RouteTableDef()
        routes.route("*", "/{path:.*}")(self._forward)
        self.loopback = Loopback(routes)
        self.loopback.start()

    @property
    def url(self) -> str:
        return self.loopback.url

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else {}
        fault: Fault = "pass"
        if body.get("stream"):
            fault = self.fault(len(self.seen), body)
            self.seen.append(fault)
        if code := REFUSALS.get(fault):
            headers = {"Retry-After": RETRY_AFTER[fault]} if fault in RETRY_AFTER else {}
            return _refuse(code, f"as planned: {fault}", headers)
        if fault == "drop":
            return await _hang_up(request)
        if fault == "slow":
            await asyncio.sleep(self.seconds)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if fault in ("garbage", "endless", "pings"):
            await response.prepare(request)
            if fault == "garbage":
                await response.write(b"data: {what is this\n\n")
            while fault == "endless":
                await _event(response, {"choices": [{"index": 0, "text": "x" * 10_000}]})
            while fault == "pings":
                await _event(response, {"choices": [{"index": 0, "text": ""}]})
                await asyncio.sleep(0.05)
            return response
        await self._pass_on(request, raw, response, cut=fault == "cut")
        while fault == "open":
            await response.write(b": still here\n\n")
            await asyncio.sleep(0.05)
        return response

    async def _pass_on(
        self, request: web.Request, raw: bytes, response: web.StreamResponse, *, cut: bool
    ) -> web.StreamResponse:
        url = self.target.removesuffix("/v1") + request.path
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.request(request.method, url, data=raw, headers=request.headers) as answer,
            ):
                response.set_status(answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if cut:  # the first chunk may be the whole answer
                        await response.write(chunk[: len(chunk) // 2])
                        return await _hang_up(request)
                    await response.write(chunk)
        except aiohttp.ClientError:
            return await _hang_up(request)
        return response


async def _hang_up(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


async def _event(response: web.StreamResponse, event: Mapping[str, Any]) -> None:
    """One event; whoever has hung up ends the answer, as on any server."""
    try:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    except ConnectionResetError as gone:
        raise asyncio.CancelledError from gone


def _refuse(code: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    error = {"error": {"message": message, "type": "Error", "code": code}}
    return web.json_response(error, status=code, headers=headers)


def _prompt(body: Mapping[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


def hash_words(body: Mapping[str, Any]) -> str:
    """Two words that depend on everything an answer depends on."""
    key = f"{body['model']}|{body['seed']}|{body['temperature']}|{_prompt(body)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{digest[:8]} {digest[8:16]}"


def running(*servers: FakeServer | FaultProxy) -> Iterator[None]:
    """Stop the servers at the end."""
    try:
        yield
    finally:
        for server in servers:
            server.loopback.stop()
