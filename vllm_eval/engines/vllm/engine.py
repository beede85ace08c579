"""One vLLM engine that serves the bare base and every adapter in one running batch.

Requests go to `LLMEngine.add_request` and come back from `LLMEngine.step` as they finish. It is
the most stable of vLLM's interfaces, and the only synchronous one that accepts a retry while the
rest still decodes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_eval.config.settings import Config
from vllm_eval.engines import canary
from vllm_eval.engines.base_canary import BaseAnswers, own_answers, probabilities
from vllm_eval.engines.engine_log import DIED, OutputToFile, translated
from vllm_eval.engines.tokens import encode, too_long
from vllm_eval.engines.vllm.options import advise, engine_options
from vllm_eval.errors import EngineError, one_line
from vllm_eval.records import Arm, Completion, Request

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import StructuredOutputsParams

FENCE = "```"
"""The start of every constrained answer."""


class VllmEngine:
    """A started engine with its adapters loaded."""

    def __init__(self, llm: LLM, config: Config, arms: Sequence[Arm], output: OutputToFile) -> None:
        self._llm: LLM | None = llm
        self._engine, self._config, self._output = llm.llm_engine, config, output
        free = [arm for arm in arms if arm.variant_of is None]
        loras = {arm.name: _lora_request(number, arm) for number, arm in enumerate(free)}
        self._free = list(loras)
        self._loras = {arm.name: loras[arm.model] for arm in arms}
        self._grammars = {arm.name: arm.grammar for arm in arms if arm.grammar}
        self._rejected: list[Completion] = []
        self._unproven: str | None = None
        self._base: BaseAnswers | None = None
        self._tokenizer = llm.get_tokenizer()
        given = (config.prompt_format, config.chat_template_kwargs)
        # All arms ask the same prompt, and its length is checked before it is submitted.
        self._token_ids = functools.lru_cache(maxsize=512)(
            lambda prompt: encode(self._tokenizer, prompt, *given)
        )

    @classmethod
    def open(cls, config: Config, arms: Sequence[Arm], base_model: str, log: Path) -> VllmEngine:
        """Load the base model and then every adapter, before any request is made.

        An adapter that cannot be served makes `add_lora` raise; in a request it would end the
        whole engine.

        Raises:
            EngineError: vLLM is missing, or refuses the model or an adapter.
            ConfigError: an engine option does not exist in the installed vLLM.
        """
        for name, value in config.engine_env.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if find_spec("vllm") is None:
            msg = "vLLM is not installed; pip install 'vllm_eval[vllm]'"
            raise EngineError(f"{msg} (without a GPU: scripts/demo)")
        with contextlib.ExitStack() as undo:
            output = OutputToFile(log)
            undo.callback(output.restore)
            with _or_say("the engine did not start", output):
                from vllm import LLM

                llm = LLM(model=base_model, **engine_options(config, arms))
                engine = cls(llm, config, arms, output)
            undo.callback(engine.close)
            for lora in filter(None, map(engine._loras.get, engine._free)):
                with _or_say(f"adapter {lora.lora_path} cannot be served", output):
                    engine._engine.add_lora(lora)
            if config.prompt_format == "chat":
                with _or_say("prompt_format: chat, but the tokenizer has no template", output):
                    engine._token_ids("test")
            with _or_say("the canary could not be asked", output):
                engine._prove_arms()
            with _or_say("constrain: the engine cannot apply the task's grammar", output):
                engine._prove_grammar()
            undo.pop_all()
            return engine

    @property
    def capacity(self) -> int:
        """Twice what the scheduler runs at once, so that requests always wait for a free place."""
        return 2 * int(self._engine.vllm_config.scheduler_config.max_num_seqs)

    @property
    def about(self) -> Mapping[str, str | int]:
        """Versions and the settings that decide what is measured."""
        import torch
        import vllm

        model = self._engine.vllm_config.model_config
        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": str(model.quantization or "none"),
            "max_model_len": int(model.max_model_len),
            "max_num_seqs": self.capacity // 2,
        } | canary.note(self._unproven)

    @property
    def base(self) -> Sequence[BaseAnswers | None]:
        """What the bare base answered the canary."""
        return (self._base,)

    def refusal(self, prompt: str) -> str | None:
        """A prompt must leave room for the whole answer, so that we never truncate it."""
        limit = int(self._engine.vllm_config.model_config.max_model_len)
        return too_long(len(self._token_ids(prompt)), self._config.max_new_tokens, limit)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; they join the running batch at its next step."""
        from vllm.inputs import tokens_input

        for request in requests:
            sampling = self._sampling(request)
            ids = tokens_input(self._token_ids(request.prompt))
            lora = self._loras[request.arm]
            with _or_say(DIED, self._output):
                try:
                    self._engine.add_request(request.id, ids, sampling, lora_request=lora)
                except ValueError as error:  # vLLM's error for a request that it cannot accept
                    self._rejected.append(Completion(request.id, error=str(error)))

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._rejected or self._engine.has_unfinished_requests())

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Step the batch until at least one request has finished, or the time is up."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        finished, self._rejected = self._rejected, []
        with _or_say(DIED, self._output):
            # Never step without a request: an engine in another process would block for ever.
            while not finished and self.busy and time.monotonic() < end:
                finished = [_complete(out) for out in self._engine.step() if out.finished]
        return finished

    def close(self) -> None:
        """Shut down the engine and restore the output streams."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        try:
            llm.llm_engine.engine_core.shutdown()
        finally:
            self._output.restore()
            del self._engine, self._tokenizer
            gc.collect()

    def _sampling(self, request: Request) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            structured_outputs=self._structure(request.arm),
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            max_tokens=self._config.max_new_tokens,
            seed=request.seed,
            ignore_eos=self._config.ignore_eos,
            min_tokens=self._config.max_new_tokens if self._config.ignore_eos else 0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _prove_arms(self) -> None:
        if len(self._free) > 1:
            asked = canary.batches(self._free)
            answers = [self._next_tokens(batch) for batch in asked]
            self._unproven = canary.prove(asked, answers)
            self._base = own_answers(asked, answers, probabilities(canary.TOP_TOKENS))

    def _prove_grammar(self) -> None:
        """Start an answer under the grammar; it is then compiled here, not by some request."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        if (arm := next(iter(self._grammars), None)) is None:
            return
        structure = self._structure(arm)
        sampling = SamplingParams(
            temperature=0.0, max_tokens=len(FENCE), structured_outputs=structure
        )
        ids = tokens_input(list(self._tokenizer.encode(canary.TEXTS[-1])))
        self._engine.add_request("grammar", ids, sampling)
        text = ""
        while self._engine.has_unfinished_requests():
            text = next((out.outputs[0].text for out in self._engine.step() if out.finished), text)
        if not text.startswith(FENCE):
            raise EngineError(f"constrain: under the task's grammar, the model begins {text!r}")

    def _structure(self, arm: str) -> StructuredOutputsParams | None:
        from vllm.sampling_params import StructuredOutputsParams

        grammar = self._grammars.get(arm)
        return StructuredOutputsParams(grammar=grammar) if grammar else None

    def _next_tokens(self, arms: Sequence[str]) -> list[list[dict[int, float]]]:
        """For each arm and canary text, the log probabilities of the likeliest next tokens."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        sampling = SamplingParams(temperature=0.0, max_tokens=1, logprobs=canary.TOP_TOKENS)
        found = [[dict[int, float]() for _ in canary.TEXTS] for _ in arms]
        for number, text in enumerate(canary.TEXTS):
            ids = list(self._tokenizer.encode(text))
            for place, arm in enumerate(arms):
                # A unique salt: a row with a cached prompt would have another shape.
                salted, lora = tokens_input(ids, cache_salt=uuid.uuid4().hex), self._loras[arm]
                self._engine.add_request(f"{place}/{number}", salted, sampling, lora_request=lora)
        while self._engine.has_unfinished_requests():
            for output in filter(lambda out: out.finished, self._engine.step()):
                place, number = map(int, output.request_id.split("/"))
                (likeliest,) = output.outputs[0].logprobs
                found[place][number] = {t: entry.logprob for t, entry in likeliest.items()}
        return found


def _or_say(what: str, output: OutputToFile) -> AbstractContextManager[None]:
    return translated(what, output, lambda error: advise(one_line(error), output))


def _lora_request(number: int, arm: Arm) -> LoRARequest | None:
    from vllm.lora.request import LoRARequest

    return LoRARequest(arm.name, number, str(arm.adapter.path)) if arm.adapter else None


def _complete(output: RequestOutput) -> Completion:
    answer = output.outputs[0]
    failed = answer.finish_reason not in ("stop", "length", "repetition")
    stats = output.metrics
    times = {}
    if stats is not None and (first := stats.first_token_ts):
        times = {
            "queued_s": max(0.0, stats.scheduled_ts - stats.queued_ts),
            "ttft_s": stats.first_token_latency,
            "total_s": stats.first_token_latency + stats.last_token_ts - first,
        }
    return Completion(
        output.request_id,
        text=answer.text,
        finish_reason=answer.finish_reason,
        error=f"the engine ended the request: {answer.finish_reason}" if failed else None,
        prompt_tokens=len(output.prompt_token_ids or ()),
        output_tokens=len(answer.token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        **times,
    )
