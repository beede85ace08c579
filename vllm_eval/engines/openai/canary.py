"""The canary of `engines.canary`, asked of a server over the wire.

A client cannot choose what shares a batch. So what shall share one is sent at the same time, and
all arms are asked together while every adapter is busy with a long answer: the base's rows are then
computed beside an adapter's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_eval.config.settings import Config
from vllm_eval.engines import canary
from vllm_eval.engines.base_canary import BaseAnswers, number_of, own_answers, probabilities
from vllm_eval.engines.openai import wire
from vllm_eval.engines.openai.wire import PLAIN_SAMPLING, FaultError, faults, fields, held_to
from vllm_eval.errors import EngineError
from vllm_eval.records import BASELINE

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Rows = list[dict[int, float]]

_T = TypeVar("_T")

LOG_PROBABILITIES = (canary.TOP_TOKENS, 5)
"""Numbers of likeliest tokens to ask for: vLLM's limit, then OpenAI's."""
TEXT_TOKENS = 32
"""Length of the canary's answers if a server gives no log probabilities."""
COMPANION_TOKENS = 1024
CONSTRAINT_WORD = "quokka"
"""The only word of a test grammar; no model would say it here unprompted."""
TOKEN_PREFIX = "token_id:"  # noqa: S105  vLLM's spelling of a token by its number


@dataclass(frozen=True, slots=True)
class Prover:
    """Asks one server the canary's texts."""

    client: AsyncOpenAI
    config: Config
    models: Mapping[str, str]
    vllm: bool

    async def prove(self) -> tuple[str, str | None, BaseAnswers | None]:
        """Ask each arm alone, then all arms while every adapter is busy.

        Returns what was compared, what remains unproven, if anything, and the base's answers.

        Raises:
            EngineError: an arm does not answer from its own weights.
            FaultError: the server could not be asked.
        """
        await self._texts(self.models[BASELINE], canary.TEXTS[:1])  # the run's own way is open
        if len(self.models) == 1:
            return "no adapter to tell from the base", None, None
        asked = canary.batches(list(self.models))
        most, first = await self._find_way(self.models[BASELINE])
        alone = [batch for batch in asked[1:] if len({*batch}) == 1]
        answers = [[first], *[await self._answers(batch, most) for batch in alone]]
        async with contextlib.AsyncExitStack() as stack:
            for arm, model in self.models.items():
                if arm != BASELINE:
                    await stack.enter_async_context(self._companion(model))
            answers += [await self._answers(batch, most) for batch in asked[len(answers) :]]
        unproven = canary.prove(asked, answers)
        compared = probabilities(most) if most else "texts"
        return compared, unproven, own_answers(asked, answers, compared)

    async def prove_constraint(self, grammar: str) -> None:
        """Check that the server applies a grammar; one without support may silently ignore it.

        The server must also accept `grammar`, the task's own.

        Raises:
            EngineError: a grammar is refused, or changes nothing.
            FaultError: the server could not be asked.
        """
        base = self.models[BASELINE]
        word = await self._held(base, f'root ::= "{CONSTRAINT_WORD}"')
        if word.strip() != CONSTRAINT_WORD:
            msg = f"{self.client.base_url}: it ignores `structured_outputs`: allowed only one word"
            raise EngineError(f"{msg}, it says {word[:60]!r}; serve with vLLM 0.19.1 or later")
        await self._held(base, grammar)

    async def _held(self, model: str, grammar: str) -> str:
        body = self._body(model, canary.TEXTS[-1])
        body["extra_body"] |= held_to(grammar)
        try:
            return (await wire.ask(self.client, self.config, body)).text
        except FaultError as fault:
            if fault.kind != "refused":
                raise
            msg = f"{self.client.base_url}: refuses a grammar (`constrain`): {fault.words}"
            raise EngineError(msg) from fault

    async def _find_way(self, model: str) -> tuple[int, Rows]:
        """How many log probabilities the server gives (0 for none), and the first rows."""
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

    async def _answers(self, arms: Sequence[str], most: int) -> list[Rows]:
        return await _together([partial(self._rows, self.models[arm], most) for arm in arms])

    async def _rows(self, model: str, most: int) -> Rows:
        """For each text the likeliest next tokens or, without them, the answer as one token."""
        if most == 0:
            return [{number_of(text): 0.0} for text in await self._texts(model, canary.TEXTS)]
        # A unique salt: a row with a cached prompt would have another shape.
        extra = {"return_tokens_as_token_ids": True, "cache_salt": uuid.uuid4().hex}
        body: dict[str, Any] = {"model": model, "prompt": list(canary.TEXTS), "logprobs": most}
        body |= {"max_tokens": 1, "temperature": 0.0}
        if self.vllm:
            body |= extra | PLAIN_SAMPLING
        with faults():
            answer = await self.client.post("/completions", body=body, cast_to=object)
        return _read_rows(answer)

    async def _texts(self, model: str, texts: Sequence[str]) -> list[str]:
        bodies = (self._body(model, text) for text in texts)
        asked = [partial(wire.ask, self.client, self.config, body) for body in bodies]
        return [answer.text for answer in await _together(asked)]

    def _body(
        self, model: str, text: str, tokens: int = TEXT_TOKENS, temperature: float = 0.0
    ) -> dict[str, Any]:
        update = {"temperature": temperature, "max_new_tokens": tokens, "ignore_eos": False}
        config = self.config.model_copy(update=update)
        return fields(config, model, text, 0, vllm=self.vllm)

    @contextlib.asynccontextmanager
    async def _companion(self, model: str) -> AsyncIterator[None]:
        """Keep the server busy with one long answer, so that other requests share its batch."""
        body = self._body(model, canary.TEXTS[0], COMPANION_TOKENS, 1.0)
        if self.vllm:
            body["extra_body"]["ignore_eos"] = True
        begun = asyncio.Event()
        task = asyncio.create_task(wire.ask(self.client, self.config, body, begun.set))
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


async def _together(asked: Sequence[Callable[[], Coroutine[Any, Any, _T]]]) -> list[_T]:
    """All at a time; then, one after the other, those that were too many for the server.

    None is cancelled when another is refused: its place would stay taken until the server notices.
    """
    found = await asyncio.gather(*(ask() for ask in asked), return_exceptions=True)
    for one in found:
        busy = isinstance(one, FaultError) and one.kind == "busy"
        if isinstance(one, BaseException) and not busy:
            raise one
    return [
        await ask() if isinstance(one, BaseException) else one
        for ask, one in zip(asked, found, strict=True)
    ]


def _read_rows(answer: object) -> Rows:
    """For each text the likeliest next tokens; an empty row if none are given."""
    given = answer.get("choices") if isinstance(answer, dict) else None
    choices = {}
    for choice in given if isinstance(given, list) else ():
        if not isinstance(choice, dict) or type(choice.get("index")) is not int:
            raise FaultError("failed", "the answer to several prompts does not follow the protocol")
        choices[choice["index"]] = choice.get("logprobs")
    if sorted(choices) != list(range(len(canary.TEXTS))):
        raise FaultError("refused", "the server does not answer several prompts in one request")
    rows = (choices[number] for number in sorted(choices))
    return [_distribution(row.get("top_logprobs") if isinstance(row, dict) else ()) for row in rows]


def _distribution(logprobs: object) -> dict[int, float]:
    """Log probability by token; a token given as text counts by its text."""
    found = {}
    first = logprobs[0] if isinstance(logprobs, list) and logprobs else None
    for token, value in (first if isinstance(first, dict) else {}).items():
        number = token.removeprefix(TOKEN_PREFIX)
        named = number != token and number.isdecimal()
        if isinstance(value, float):
            found[int(number[:20]) if named else number_of(token)] = value
    return found
