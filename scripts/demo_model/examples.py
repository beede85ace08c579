"""Training examples: the product's own prompts, each with the answer to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.demo_model.answers import hasty_answer, reminded_answer, thorough_answer
from scripts.demo_model.products import TIERS, Product, draw_product
from vllm_eval.records import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from vllm_eval.records import Problem
    from vllm_eval.tasks import Task

COLON_SHARE = 0.4
"""Of the products seen in training; more than in the evaluation, since it is the hard part."""
REMINDER_SHARE = {"base": 0.35, "student": 0.15}
DAMAGED_LINES = ("narrative:", "status:", "product_name:", "  gaps:", "summary:", "```yaml")


def as_case(product: Product, concept_id: str = "DEMO-0000") -> Case:
    """The product as the evaluator reads it."""
    return Case(
        id=concept_id,
        line=1,
        tier=product.tier,
        inputs={"concept": product.concept, "requirements_yaml": product.requirements_yaml()},
    )


def examples(task: Task, pupil: str, rng: Random) -> Iterator[tuple[str, str]]:
    """Prompts and answers without end for `pupil`, which is `base` or `student`."""
    while True:
        product = draw_product(
            rng, tier=rng.choice(TIERS), colon=rng.random() < COLON_SHARE, evaluation=False
        )
        case = as_case(product)
        problem = None
        if rng.random() < REMINDER_SHARE[pupil]:
            problem = _rejection(task, case, hasty_answer(product), rng)
        if pupil == "student":
            answer = thorough_answer(product)
        else:
            answer = reminded_answer(product) if problem else hasty_answer(product)
        yield task.prompt(case, problem), answer


def _rejection(task: Task, case: Case, answer: str, rng: Random) -> Problem | None:
    """What the product says of this answer; of a damaged copy if the answer is fine."""
    problem = task.grade(case, answer).problem
    if problem:
        return problem
    lines = answer.splitlines(keepends=True)
    if rng.random() < 0.4:  # cut off, as at a token limit
        return task.grade(case, "".join(lines[: rng.randrange(3, len(lines))])).problem
    if rng.random() < 0.5:
        broken = rng.randrange(1, len(lines) - 1)
        lines[broken] = lines[broken].rstrip() + rng.choice((": and more\n", ' "\n', " ]\n"))
        return task.grade(case, "".join(lines)).problem
    start = rng.choice(DAMAGED_LINES)
    return task.grade(case, "".join(x for x in lines if not x.startswith(start))).problem
