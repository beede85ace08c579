"""What a server serves, and the proof that it does: checked at start and after every loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.config.settings import Config
from vllm_eval.engines.base_canary import BaseAnswers
from vllm_eval.engines.openai.canary import Prover
from vllm_eval.engines.openai.wire import FaultError, faults
from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE, Arm

if TYPE_CHECKING:
    from openai import AsyncOpenAI

HOPELESS = ("forbidden", "missing", "refused")
"""Faults that waiting does not fix, for a server that has not passed the canary yet."""
HINTS = {
    "forbidden": "; set VLLM_API_KEY or OPENAI_API_KEY",
    "missing": "; is it the address of an OpenAI-compatible API, as http://HOST:8000/v1?",
}


@dataclass(frozen=True, slots=True)
class Served:
    """What one server reported and has proved."""

    models: Mapping[str, str]
    """Model name by arm."""
    vllm: str | None
    """Release of vLLM; None if the server is a different kind or does not say."""
    max_model_len: int | None
    canary: str
    """What the canary compared."""
    unproven: str | None
    """What the canary could not show, if anything."""
    base: BaseAnswers | None
    """What the bare base answered it."""
    first: str | None = None
    """What it puts before every raw prompt, such as `<s>`, if that is known."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of a server's list."""

    parent: str | None
    """The base of an adapter, if the server says."""
    max_model_len: int | None


async def prepare(client: AsyncOpenAI, config: Config, arms: Sequence[Arm]) -> Served:
    """Find the arms' models, load missing adapters and run the canary.

    Raises:
        FaultError: the server could not be asked now.
        EngineError: it does not serve the arms, or fails the canary.
    """
    listed = await _list_models(client)
    absent = missing_arms(listed, config, arms)
    if absent and config.load_adapters:
        for arm in absent:
            await _load(client, _model(config, arm.name), _path_of(arm))
        listed = await _list_models(client)
    models = name_models(listed, config, arms, str(client.base_url))
    version = await _version(client)
    prover = Prover(client, config, models, vllm=version is not None)
    proved_by, unproven, base = await prover.prove()
    if grammar := next((arm.grammar for arm in arms if arm.grammar), None):
        await prover.prove_constraint(grammar)
    lengths = [entry.max_model_len for entry in listed.values() if entry.max_model_len]
    named = models | {arm.name: models[arm.model] for arm in arms}
    raw = version is not None and config.prompt_format == "raw"
    first = await _first_text(client, models[BASELINE]) if raw else None
    longest = min(lengths, default=None)
    return Served(named, version, longest, proved_by, unproven, base, first)


def hold_to(begun: Served, served: Served, url: str) -> None:
    """EngineError if a server has other models or another release than the run was begun with."""
    if (served.vllm, served.models) != (begun.vllm, begun.models):
        now = f"{url}: serves {dict(served.models)} with vLLM {served.vllm}"
        before = f"the run was begun with {dict(begun.models)} and {begun.vllm}"
        raise EngineError(f"{now}, {before}; serve one, or start a new run")


async def _list_models(client: AsyncOpenAI) -> dict[str, Listed]:
    with faults():
        return read_models(await client.get("/models", cast_to=object))


def read_models(page: object) -> dict[str, Listed]:
    """A server's models, from parsed JSON or the client; FaultError if it is no such list."""
    given = page.to_dict(mode="python", warnings=False) if hasattr(page, "to_dict") else page
    data = given.get("data") if isinstance(given, dict) else None
    if not isinstance(data, list):
        raise FaultError("missing", "the answer is not a list of models")
    found = {}
    for model in data:
        name = model.get("id") if isinstance(model, dict) else None
        if not isinstance(name, str):
            raise FaultError("failed", "the list of models has an invalid entry")
        parent, length = model.get("parent"), model.get("max_model_len")
        length = length if type(length) is int else None
        found[name] = Listed(parent if isinstance(parent, str) else None, length)
    return found


def missing_arms(listed: Mapping[str, Listed], config: Config, arms: Sequence[Arm]) -> list[Arm]:
    """The students whose models a server does not list."""
    students = (arm for arm in arms if arm.variant_of is None and arm.name != BASELINE)
    return [arm for arm in students if _model(config, arm.name) not in listed]


def name_models(
    listed: Mapping[str, Listed], config: Config, arms: Sequence[Arm], url: str
) -> dict[str, str]:
    """The model of each free arm: as configured, else by the arm's name, else from the list.

    Raises:
        EngineError: one is not listed, or it is unclear which is the base.
    """
    models = dict.fromkeys(arm.model for arm in arms)
    names = {name: _model(config, name) for name in models if name != BASELINE}
    for arm, model in names.items():
        if model not in listed:
            msg = (
                f"{url}: serves no model {model!r} (it lists {', '.join(listed) or 'none'}); start "
                f"it with --lora-modules {model}=PATH, give -c served_models.{arm}=NAME, or "
                "--load-adapters if the server allows it"
            )
            raise EngineError(msg)
    base = config.served_models.get(BASELINE) or _find_base(listed, config, set(names.values()))
    if base is None or base not in listed:
        msg = (
            f"{url}: which of {', '.join(listed) or 'no models'} is the bare base "
            f"{'is unclear' if base is None else f'was configured as {base!r}'}; "
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


def _path_of(arm: Arm) -> str:
    """Where the server finds an adapter: the folder read here, else exactly what was given."""
    if arm.adapter is not None:
        return str(arm.adapter.path)
    return arm.given or arm.name


async def _load(client: AsyncOpenAI, model: str, path: str) -> None:
    body = {"lora_name": model, "lora_path": path}
    try:
        with faults():
            await client.post("/load_lora_adapter", body=body, cast_to=object)
    except FaultError as fault:
        if fault.kind == "missing":
            what = (
                "it does not load adapters at run time; start it with "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or with --lora-modules {model}={path}"
            )
        elif fault.kind == "refused" and "already been loaded" in fault.words:
            return  # by another client, just now
        elif fault.kind in ("refused", "failed"):
            what = f"cannot load {path}: {fault.words}"
        else:
            raise
        raise EngineError(f"{client.base_url}: adapter {model!r}: {what}") from fault


async def _version(client: AsyncOpenAI) -> str | None:
    """The release of vLLM; `/version` is next to `/v1`."""
    try:
        with faults():
            answer = await client.get(f"{root_of(client)}/version", cast_to=object)
    except FaultError as fault:
        if fault.kind in HOPELESS:
            return None
        raise  # a wrong guess would change what vLLM is sent, and so its answers
    version = answer.get("version") if isinstance(answer, dict) else None
    return version[:100] if isinstance(version, str) else None


async def _first_text(client: AsyncOpenAI, model: str) -> str | None:
    """The text of the token that vLLM's tokenizer puts before every prompt, if it does."""
    body = {"model": model, "prompt": "test", "return_token_strs": True}
    found = []
    for special in (True, False):
        try:
            with faults():
                answer = await client.post(
                    f"{root_of(client)}/tokenize",
                    body=body | {"add_special_tokens": special},
                    cast_to=object,
                )
        except FaultError as fault:
            if fault.kind in HOPELESS:
                return None
            raise  # a wrong guess would change the prompt
        texts = answer.get("token_strs") if isinstance(answer, dict) else None
        if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
            return None
        found.append(texts)
    added, plain = found
    return added[0] if added[1 : 1 + len(plain)] == plain else None


def root_of(client: AsyncOpenAI) -> str:
    """The server's address without `/v1`, where vLLM's own routes are."""
    return str(client.base_url).rstrip("/").removesuffix("/v1")
