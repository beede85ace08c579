"""The vLLM engine with what a measurement needs besides: lengths, bare calls, a clean slate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_eval.engines.vllm import VllmEngine, _complete
from vllm_eval.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm import SamplingParams  # noqa: TID251  its type alone

    from vllm_eval.bench.contestants import Way
    from vllm_eval.bench.work import Work
    from vllm_eval.records import Completion, Request


class MeasuredVllm(VllmEngine):
    """Answers as `VllmEngine`, in the lengths and the way it is told."""

    work: Work | None = None
    way: Way = "mixed"

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All requests in one bare `LLM.generate` call: the least that they can take."""
        if self._llm is None:
            msg = "the engine has been closed"
            raise EngineError(msg)
        outputs = self._llm.generate(
            [{"prompt_token_ids": self._token_ids(request.prompt)} for request in requests],
            [self._sampling(request) for request in requests],
            lora_request=[self._loras[request.arm] for request in requests],
            use_tqdm=False,
        )
        return [
            replace(_complete(output), request_id=request.id)
            for output, request in zip(outputs, requests, strict=True)
        ]

    def forget(self) -> None:
        """Drop what earlier trials left: cached prefixes and cached tokenisation."""
        self._engine.reset_prefix_cache()
        self._token_ids.cache_clear()

    def _sampling(self, request: Request) -> SamplingParams:
        sampling = super()._sampling(request)
        if self.work is not None and self.work.varies:
            sampling.max_tokens = sampling.min_tokens = self.work.length(request)
        if self.way == "streamed":
            sampling.output_kind = type(sampling.output_kind).CUMULATIVE
        if self.way == "no-text":
            sampling.detokenize = False
        return sampling

    def _prove_arms(self) -> None:
        """Made-up weights have nothing to prove: the adapter's effect may round to nothing."""
        if self._config.engine_args.get("load_format") != "dummy":
            super()._prove_arms()
