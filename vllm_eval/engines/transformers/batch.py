"""One batch of the transformers engine: requests of one arm through `model.generate`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.config.settings import Config
from vllm_eval.engines.transformers.model import Loaded, as_arm, pad
from vllm_eval.records import Completion, Request

if TYPE_CHECKING:
    import torch

GREEDY_BELOW = 1e-5
"""A lower temperature counts as 0; vLLM's bound."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A waiting request."""

    request: Request
    ids: tuple[int, ...]
    since: float
    """`time.monotonic` of its submission."""


def answer(
    loaded: Loaded, config: Config, batch: Sequence[Queued], watch: Watch
) -> list[Completion]:
    """Generate for one padded batch of one arm, in the engine's thread; `watch` may end it."""
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList
    from transformers import TemperatureLogitsWarper as Temperature
    from transformers import TopPLogitsWarper as TopP

    begin = time.monotonic()
    inputs = pad(loaded, [item.ids for item in batch])
    width, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
    choice = LogitsProcessorList()
    if config.temperature >= GREEDY_BELOW:
        seeds = (item.request.seed for item in batch)
        draw = SeededDraw([torch.Generator(device).manual_seed(seed) for seed in seeds])
        choice.append(Temperature(config.temperature))
        if config.top_p < 1:
            choice.append(TopP(config.top_p))
        choice.append(draw)
    with as_arm(loaded, batch[0].request.arm) as model, torch.inference_mode():
        rows = model.generate(
            **inputs, logits_processor=choice, stopping_criteria=StoppingCriteriaList([watch])
        )
    answers = rows[:, width:].tolist()
    ends, times = () if config.ignore_eos else loaded.ends, (begin, *watch.times)
    rows = zip(batch, answers, strict=True)
    return [_complete(loaded, item, tokens, ends, times) for item, tokens in rows]


def _complete(
    loaded: Loaded, item: Queued, tokens: Sequence[int], ends: Sequence[int], times: Sequence[float]
) -> Completion:
    """One row: its tokens up to the first end token; `times` count from the batch's start."""
    length = next((n for n, token in enumerate(tokens) if token in ends), None)
    count = len(tokens) if length is None else length + 1
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return Completion(
        item.request.id,
        text=loaded.tokenizer.decode(tokens[:length], **plain),
        finish_reason="length" if length is None else "stop",
        prompt_tokens=len(item.ids),
        output_tokens=count,
        queued_s=times[0] - item.since,
        ttft_s=times[1] - item.since,
        total_s=times[count] - item.since,
    )


class SeededDraw:
    """The last logits processor: makes the token drawn by the row's seed the likeliest."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:  # on the model's device
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Turn warped logits, rows x vocabulary, into scores whose largest is the draw."""
        del input_ids
        noise = scores.new_empty(scores.shape)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)  # never 0, as torch documents
        return scores.softmax(dim=-1) / noise


class Watch:
    """A stopping criterion that records when each token came, and stops on request."""

    def __init__(self, stop: threading.Event) -> None:
        """Generation ends at the next token once `stop` is set."""
        self._stop = stop
        self.times: list[float] = []
        """`time.monotonic` after each step, from the first token on."""

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **more: object
    ) -> torch.Tensor:
        """Called after each token; returns for each row whether it ends here."""
        del scores, more
        input_ids[:, -1].tolist()  # waits for the device, as `generate` itself does right after
        self.times.append(time.monotonic())
        return input_ids.new_full(input_ids.shape[:1], self._stop.is_set(), dtype=bool)
