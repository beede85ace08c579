"""What the trained models reach: answers to the evaluation cases, graded by the product."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast

    from vllm_eval.records import Case, Problem
    from vllm_eval.tasks import Task

TEMPERATURE = 0.2
TOP_P = 0.9
MAX_NEW_TOKENS = 512
RETRIES = 2
BATCH = 33


@dataclass(frozen=True)
class Reached:
    """Figures of one arm over the evaluation cases."""

    first: float
    """Share of cases whose first answer keeps the contract."""
    final: float
    """The same after the retries."""
    mean: float
    """Mean score of the valid answers."""
    low: float
    high: float
    reasons: dict[str, int]
    """Why first answers were rejected."""

    def __str__(self) -> str:
        return (
            f"{self.first:.1%} valid at first, {self.final:.1%} after {RETRIES} retries, "
            f"score {self.mean:.3f} ({self.low:.3f} to {self.high:.3f}), rejected: {self.reasons}"
        )


def evaluate(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    cases: Sequence[Case],
    *,
    student: bool,
) -> Reached:
    """Answer all cases with the student or, its adapter switched off, with the base."""
    open_cases: dict[str, Problem | None] = {case.id: None for case in cases}
    scores: list[float] = []
    reasons: Counter[str] = Counter()
    first = 0
    torch.manual_seed(0)
    with nullcontext() if student else model.disable_adapter():
        for attempt in range(1 + RETRIES):
            asked = [case for case in cases if case.id in open_cases]
            prompts = [task.prompt(case, open_cases[case.id]) for case in asked]
            for case, answer in zip(asked, _answers(model, tokenizer, prompts), strict=True):
                grade = task.grade(case, answer)
                if grade.problem is None and grade.score is not None:
                    del open_cases[case.id]
                    scores.append(grade.score)
                    first += attempt == 0
                else:
                    open_cases[case.id] = grade.problem
                    if attempt == 0 and grade.problem is not None:
                        reasons[grade.problem.reason] += 1
    return Reached(
        first=first / len(cases),
        final=len(scores) / len(cases),
        mean=sum(scores) / max(len(scores), 1),
        low=min(scores, default=0.0),
        high=max(scores, default=0.0),
        reasons=dict(reasons),
    )


def shortfalls(base: Reached, student: Reached) -> list[str]:
    """The targets that were missed, in words."""
    targets = {
        "the base is valid at first in 50 to 80 % of the cases": 0.5 <= base.first <= 0.8,
        "the base is valid after retries in at least 90 %": base.final >= 0.9,
        "the base scores at least 0.75": base.mean >= 0.75,
        "the student is valid at first in more than 90 %": student.first > 0.9,
        "the student scores no less than the base": student.mean >= base.mean,
    }
    return [target for target, reached in targets.items() if not reached]


def _answers(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(
            list(prompts[start : start + BATCH]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        with torch.inference_mode():
            ids = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        answers = ids[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    return texts
