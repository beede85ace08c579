"""Draws the next token of each row with the row's own seed, and watches a generation run.

`model.generate` draws all rows from one generator, so that an answer would depend on its company.
Here each row has its own: the Gumbel-max trick in its exponential form. A probability divided by
a draw from Exp(1) is largest for a token exactly as often as the probability says, so the greedy
choice that follows is the draw. vLLM draws so too, on a CPU from other noise: the same seed gives
the same answer in one engine, not in both.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    import torch

GREEDY_BELOW = 1e-5
"""A temperature below this is none: vLLM's bound."""


class SeededDraw:
    """The last logits processor: makes the likeliest token the one drawn by its row's seed."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        """Take one generator a row, on the model's device."""
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Turn warped logits, rows x vocabulary, into scores whose largest is the draw."""
        del input_ids
        noise = scores.new_empty(scores.shape)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)  # never 0, as torch documents
        return scores.softmax(dim=-1) / noise


class Watch:
    """A stopping criterion that notes when each token came, and ends the work when it is told."""

    def __init__(self, stop: threading.Event) -> None:
        """Generation ends at the next token once `stop` is set."""
        self._stop = stop
        self.times: list[float] = []
        """`time.monotonic` after each step, from the first token on."""

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **more: object
    ) -> torch.Tensor:
        """Called after each token; for each row whether it ends here."""
        del scores, more
        input_ids[:, -1].tolist()  # waits for the device, as `generate` itself does right after
        self.times.append(time.monotonic())
        return input_ids.new_full(input_ids.shape[:1], self._stop.is_set(), dtype=bool)
