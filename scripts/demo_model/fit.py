"""Training: of the base from nothing, and of a LoRA adapter on the frozen base."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

BATCH = 4
POOL = 64
"""So many examples are sorted by length at a time: batches of like lengths waste little."""
PROMPT_WEIGHT = 0.1
IGNORED = -100


@dataclass(frozen=True)
class Plan:
    """How long and how fast one training goes."""

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.05
    prompt_weight: float = PROMPT_WEIGHT


Sequence = tuple[list[int], int]
"""Token ids, and how many of them are the prompt."""


def encoded(
    tokenizer: PreTrainedTokenizerFast, pairs: Iterator[tuple[str, str]]
) -> Iterator[Sequence]:
    """Prompt and answer as one sequence each, ending with the end token."""
    for prompt, answer in pairs:
        # Apart, since at inference the prompt is tokenized without the answer.
        head, tail = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
        yield [*head, *tail, tokenizer.eos_token_id], len(head)


def train(model: torch.nn.Module, sequences: Iterator[Sequence], plan: Plan, label: str) -> None:
    """Train what requires a gradient in `model`; progress is printed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": plan.decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=plan.rate,
        betas=(0.9, 0.98),
    )
    model.train()
    started = time.monotonic()
    losses: list[float] = []
    hits: list[float] = []
    for step, batch in enumerate(islice(_batches(sequences), plan.steps)):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _schedule(step, plan)
        loss, accuracy = _loss(model, batch, plan.prompt_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        hits.append(accuracy)
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            recent = f"loss {_mean(losses):.4f}, answer tokens right {_mean(hits):.4f}"
            spent = time.monotonic() - started
            print(f"{label}: step {step + 1}/{plan.steps}, {recent}, {spent:.0f} s", flush=True)
            losses.clear()
            hits.clear()
    model.eval()


def token_accuracy(model: torch.nn.Module, sequences: Iterator[Sequence], count: int) -> float:
    """Share of answer tokens of `count` sequences that are predicted right, given all before."""
    with torch.inference_mode():
        return _mean([_loss(model, [item], 0.0)[1] for item in islice(sequences, count)])


def _batches(sequences: Iterator[Sequence]) -> Iterator[list[Sequence]]:
    shuffler = torch.Generator().manual_seed(0)
    while pool := sorted(islice(sequences, POOL), key=lambda item: len(item[0])):
        order = torch.randperm(len(pool) // BATCH, generator=shuffler).tolist()
        yield from (pool[place * BATCH : (place + 1) * BATCH] for place in order)


def _loss(
    model: torch.nn.Module, batch: list[Sequence], prompt_weight: float
) -> tuple[torch.Tensor, float]:
    """The weighted loss, and the share of answer tokens predicted right."""
    width = max(len(ids) for ids, _ in batch)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    weights = torch.zeros(len(batch), width)
    for row, (ids, prompt) in enumerate(batch):
        weights[row, :prompt] = prompt_weight
        weights[row, prompt : len(ids)] = 1.0
    # Padding is on the right and attention looks left only, so no mask is needed.
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    targets, weights = tokens[:, 1:], weights[:, 1:]
    each = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    right = (logits.detach().argmax(-1) == targets)[weights == 1.0]
    return (each * weights).sum() / weights.sum(), right.float().mean().item()


def _schedule(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(plan.steps - plan.warmup, 1)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
