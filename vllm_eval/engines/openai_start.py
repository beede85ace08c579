"""What a server serves, and the proof that it serves it: asked at start and after every loss."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_eval.engines import canary, openai_wire
from vllm_eval.engines.openai_wire import FaultError, faults
from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from openai import AsyncOpenAI

    from vllm_eval.config import Config
    from vllm_eval.records import Arm

    Rows = list[dict[int, float]]

LOG_PROBABILITIES = (canary.TOP_TOKENS, 5)
"""How many of the likeliest tokens a server is asked for: vLLM's limit, then OpenAI's."""
TEXT_TOKENS = 32
"""Length of the canary's answers where a server gives no log probabilities."""
COMPANION_TOKENS = 1024
HINTS = {
    "forbidden": "; set VLLM_API_KEY or OPENAI_API_KEY",
    "missing": "; is it the address of an OpenAI-compatible API, as http://HOST:8000/v1?",
}
TOKEN_PREFIX = "token_id:"  # noqa: S105  vLLM's spelling of a token by its number


@dataclass(frozen=True, slots=True)
class Served:
    """What one server said of itself and has proved."""

    models: Mapping[str, str]
    """Name of the model of each arm."""
    vllm: str | None
    """Release of vLLM; None where the server is another one or does not tell."""
    max_model_len: int | None
    canary: str
    """What the arms were proved by."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of a server's list."""

    parent: str | None
    """The base of an adapter, where the server tells."""
    max_model_len: int | None


async def prepare(client: AsyncOpenAI, config: Config, arms: Sequence[Arm]) -> Served:
    """Find the arms' models, load the adapters that are missing, have the arms prove themselves.

    Raises:
        FaultError: the server could not be asked now.
        EngineError: it does not serve the arms, or not as it says.
    """
    try:
        listed = await list_models(client)
        absent = missing_arms(listed, config, arms)
        if absent and config.load_adapters:
            for arm in absent:
                await _load(client, arm, _path_of(arm, config, arms))
            listed = await list_models(client)
        models = name_models(listed, config, arms, str(client.base_url))
        version = await _version(client)
        prover = _Prover(client, config, models, vllm=version is not None)
        proved_by = await prover.prove()
    except FaultError as fault:
        if fault.kind in ("refused", "forbidden", "missing"):
            msg = f"{client.base_url}: {fault.words}{HINTS.get(fault.kind, '')}"
            raise EngineError(msg) from fault
        raise
    lengths = [entry.max_model_len for entry in listed.values() if entry.max_model_len]
    return Served(models, version, min(lengths, default=None), proved_by)


async def list_models(client: AsyncOpenAI) -> dict[str, Listed]:
    """The models of a server by name.

    Raises:
        FaultError: it could not be asked.
    """
    with faults():
        page = await client.models.list()
    if not isinstance(data := getattr(page, "data", None), list):
        raise FaultError("missing", "the list of models is none")
    found = {}
    for model in data:
        more = model.model_extra or {}
        parent, length = more.get("parent"), more.get("max_model_len")
        found[str(model.id)] = Listed(
            parent if isinstance(parent, str) else None, length if type(length) is int else None
        )
    return found


def missing_arms(listed: Mapping[str, Listed], config: Config, arms: Sequence[Arm]) -> list[Arm]:
    """The students whose models a server does not list."""
    return [arm for arm in arms if arm.name != BASELINE and _model(config, arm.name) not in listed]


def name_models(
    listed: Mapping[str, Listed], config: Config, arms: Sequence[Arm], url: str
) -> dict[str, str]:
    """The model of each arm: as configured, else by the arm's name, else as the list tells.

    Raises:
        EngineError: one is not listed, or it cannot be told which is the base.
    """
    names = {arm.name: _model(config, arm.name) for arm in arms if arm.name != BASELINE}
    for arm, model in names.items():
        if model not in listed:
            msg = (
                f"{url}: serves no model {model!r} (it lists {', '.join(listed) or 'none'}); start "
                f"it with --lora-modules {arm}=PATH, give -c served_models.{arm}=NAME, or "
                "--load-adapters where the server allows it"
            )
            raise EngineError(msg)
    base = config.served_models.get(BASELINE) or _find_base(listed, config, set(names.values()))
    if base is None or base not in listed:
        msg = (
            f"{url}: which of {', '.join(listed) or 'no models'} is the bare base "
            f"{'cannot be told' if base is None else f'was configured as {base!r}'}; "
            f"give -c served_models.{BASELINE}=NAME"
        )
        raise EngineError(msg)
    return {BASELINE: base} | names


def _find_base(listed: Mapping[str, Listed], config: Config, students: set[str]) -> str | None:
    parents = {listed[model].parent for model in students} - {None}
    if len(parents) == 1 and (parent := parents.pop()) in listed:
        return parent
    if config.base_model in listed:
        return config.base_model
    bare = [name for name, entry in listed.items() if name not in students and not entry.parent]
    if BASELINE in bare:
        return BASELINE
    return bare[0] if len(bare) == 1 else None


def _model(config: Config, arm: str) -> str:
    return config.served_models.get(arm, arm)


def _path_of(arm: Arm, config: Config, arms: Sequence[Arm]) -> str:
    """Where the server finds an adapter: the folder read here, else what was given, as it is."""
    if arm.adapter is not None:
        return str(arm.adapter.path)
    return config.adapters[[other.name for other in arms].index(arm.name) - 1]


async def _load(client: AsyncOpenAI, arm: Arm, path: str) -> None:
    body = {"lora_name": arm.name, "lora_path": path}
    try:
        with faults():
            await client.post("/load_lora_adapter", body=body, cast_to=object)
    except FaultError as fault:
        if fault.kind == "missing":
            what = (
                "it loads no adapters at run time; start it with "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or with --lora-modules {arm.name}={path}"
            )
        elif fault.kind == "refused" and "already been loaded" in fault.words:
            return  # by somebody else, just now
        elif fault.kind in ("refused", "failed"):
            what = f"cannot load {path}: {fault.words}"
        else:
            raise
        msg = f"{client.base_url}: adapter {arm.name!r}: {what}"
        raise EngineError(msg) from fault


async def _version(client: AsyncOpenAI) -> str | None:
    """The release of vLLM, whose `/version` lies beside `/v1`."""
    try:
        with faults():
            answer = await client.get(f"{root_of(client)}/version", cast_to=object)
    except FaultError as fault:
        if fault.kind in ("missing", "refused", "forbidden", "failed"):
            return None
        raise
    version = answer.get("version") if isinstance(answer, dict) else None
    return version[:100] if isinstance(version, str) else None


def root_of(client: AsyncOpenAI) -> str:
    """The server's address without `/v1`: vLLM's own routes lie there."""
    return str(client.base_url).rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class _Prover:
    """Asks one server the canary's texts."""

    client: AsyncOpenAI
    config: Config
    models: Mapping[str, str]
    vllm: bool

    async def prove(self) -> str:
        """Ask the base alone, then all arms while every adapter is at work; says by what.

        Raises:
            EngineError: an arm does not answer from its own weights.
            FaultError: the server could not be asked.
        """
        await self._texts(self.models[BASELINE], canary.TEXTS[:1])  # the run's own way is open
        if len(self.models) == 1:
            return "no adapter to tell from the base"
        most, alone = await self._find_way(self.models[BASELINE])
        async with contextlib.AsyncExitStack() as stack:
            students = (model for arm, model in self.models.items() if arm != BASELINE)
            for model in students:
                await stack.enter_async_context(self._companion(model))
            rows = await asyncio.gather(*(self._rows(m, most) for m in self.models.values()))
        canary.prove(alone, dict(zip(self.models, rows, strict=True)))
        return f"log probabilities of {most} tokens" if most else "texts"

    async def _find_way(self, model: str) -> tuple[int, Rows]:
        """How many log probabilities the server gives, 0 for none; and the first rows."""
        for most in LOG_PROBABILITIES:
            try:
                rows = await self._rows(model, most)
            except FaultError as fault:
                if fault.kind not in ("refused", "missing"):
                    raise
            else:
                if all(rows):
                    return most, rows
        return 0, await self._rows(model, 0)

    async def _rows(self, model: str, most: int) -> Rows:
        """For each text the likeliest next tokens; or, for lack of them, the answer as one."""
        if most == 0:
            return [{hash(text): 0.0} for text in await self._texts(model, canary.TEXTS)]
        # A salt of its own: a row that found its prompt cached would be another shape.
        extra = {"return_tokens_as_token_ids": True, "cache_salt": uuid.uuid4().hex}
        with faults():
            answer: Any = await self.client.completions.create(
                model=model,
                prompt=list(canary.TEXTS),
                max_tokens=1,
                temperature=0.0,
                logprobs=most,
                extra_body=extra | openai_wire.PLAIN_SAMPLING if self.vllm else None,
            )
        choices = sorted(getattr(answer, "choices", None) or (), key=lambda choice: choice.index)
        if len(choices) != len(canary.TEXTS):
            raise FaultError("refused", "several prompts in one request are not answered")
        return [_distribution(choice) for choice in choices]

    async def _texts(self, model: str, texts: Sequence[str]) -> list[str]:
        update = {"temperature": 0.0, "max_new_tokens": TEXT_TOKENS, "ignore_eos": False}
        config = self.config.model_copy(update=update)
        bodies = (openai_wire.fields(config, model, text, 0, vllm=self.vllm) for text in texts)
        asked = (openai_wire.ask(self.client, config, body) for body in bodies)
        return [answer.text for answer in await asyncio.gather(*asked)]

    @contextlib.asynccontextmanager
    async def _companion(self, model: str) -> AsyncIterator[None]:
        """Keep the server busy with one long answer: whoever is asked now shares its batch."""
        update = {"temperature": 1.0, "max_new_tokens": COMPANION_TOKENS, "ignore_eos": False}
        config = self.config.model_copy(update=update)
        body = openai_wire.fields(config, model, canary.TEXTS[0], 0, vllm=self.vllm)
        if self.vllm:
            body["extra_body"]["ignore_eos"] = True
        begun = asyncio.Event()

        async def listen() -> None:
            answer = openai_wire.Answer()
            async for _ in openai_wire.stream(self.client, config, body, answer):
                begun.set()

        task = asyncio.create_task(listen())
        try:
            first = asyncio.create_task(begun.wait())
            await asyncio.wait((task, first), return_when=asyncio.FIRST_COMPLETED)
            first.cancel()
            if task.done():
                task.result()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _distribution(choice: Any) -> dict[int, float]:
    """Log probability by token; a token spelled as text counts by its text."""
    listed = (choice.logprobs and choice.logprobs.top_logprobs) or [None]
    found = {}
    for token, value in (listed[0] or {}).items():
        number = token.removeprefix(TOKEN_PREFIX)
        named = number != token and number.isdecimal()
        if isinstance(value, float):
            found[int(number) if named else hash(token)] = value
    return found
