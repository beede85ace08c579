"""One batch of the transformers engine: requests of one arm through `model.generate`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.engines import transformers_model as models
from vllm_eval.engines.seeded_sampling import GREEDY_BELOW, SeededDraw
from vllm_eval.records import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_eval.config import Config
    from vllm_eval.engines.seeded_sampling import Watch
    from vllm_eval.records import Request


@dataclass(frozen=True, slots=True)
class Queued:
    """A request that waits for its turn."""

    request: Request
    ids: tuple[int, ...]
    since: float
    """`time.monotonic` of its submission."""


def answer(
    loaded: models.Loaded, config: Config, batch: Sequence[Queued], watch: Watch
) -> list[Completion]:
    """Generate for one padded batch of one arm; runs in the engine's thread.

    Args:
        loaded: the model with all adapters.
        config: sampling and lengths.
        batch: requests of one arm.
        watch: notes the times, and may end it early.
    """
    import torch
    from transformers import (
        LogitsProcessorList,
        StoppingCriteriaList,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    begin = time.monotonic()
    inputs = models.pad(loaded, [item.ids for item in batch])
    width, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
    choice = LogitsProcessorList()
    if config.temperature >= GREEDY_BELOW:
        seeds = (item.request.seed for item in batch)
        draw = SeededDraw([torch.Generator(device).manual_seed(seed) for seed in seeds])
        choice.append(TemperatureLogitsWarper(config.temperature))
        if config.top_p < 1:
            choice.append(TopPLogitsWarper(config.top_p))
        choice.append(draw)
    with models.as_arm(loaded, batch[0].request.arm) as model, torch.inference_mode():
        rows = model.generate(
            **inputs, logits_processor=choice, stopping_criteria=StoppingCriteriaList([watch])
        )
    answers = rows[:, width:].tolist()
    ends = frozenset() if config.ignore_eos else frozenset(loaded.ends)
    return [
        _complete(loaded, item, answer, ends, (begin, *watch.times))
        for item, answer in zip(batch, answers, strict=True)
    ]


def _complete(
    loaded: models.Loaded,
    item: Queued,
    tokens: Sequence[int],
    ends: frozenset[int],
    times: Sequence[float],
) -> Completion:
    """One row: its tokens up to the first that ends it; `times` from the batch's begin on."""
    length = next((n for n, token in enumerate(tokens) if token in ends), None)
    count = len(tokens) if length is None else length + 1
    text = loaded.tokenizer.decode(
        tokens[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return Completion(
        item.request.id,
        text=text,
        finish_reason="length" if length is None else "stop",
        prompt_tokens=len(item.ids),
        output_tokens=count,
        queued_s=times[0] - item.since,
        ttft_s=times[1] - item.since,
        total_s=times[count] - item.since,
    )
