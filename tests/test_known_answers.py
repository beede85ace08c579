"""The recorded grades and the recorded draw, where the shared data lies beside the checkout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import PRODUCT_OWNER, po_inputs
from vllm_eval.inputs.cases import open_dataset, read_cases
from vllm_eval.records import Case

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.records import Grade
    from vllm_eval.tasks import Task

DRAWN = (
    "0196 0006 0049 0061 0119 0181 0163 0059 0016 0170 "
    "0215 0120 0217 0047 0101 0139 0094 0007 0092 0035"
)


@pytest.fixture(scope="module")
def known(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "po_known_answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def graded(known: list[dict[str, Any]], task: Task) -> list[Grade]:
    return [
        task.grade(
            Case("x", 1, None, po_inputs(k["concept"], k["requirements_yaml"])), k["response"]
        )
        for k in known
    ]


def test_there_are_160_known_answers(known: list[dict[str, Any]]) -> None:
    assert len(known) == 160


def test_validity_and_reason_of_every_known_answer_are_reproduced(
    known: list[dict[str, Any]], graded: list[Grade]
) -> None:
    ours = [(j.problem is None, j.problem.reason if j.problem else None) for j in graded]
    assert ours == [(k["valid"], k["reason"]) for k in known]


def test_the_score_of_every_known_answer_is_reproduced_to_a_billionth(
    known: list[dict[str, Any]], graded: list[Grade]
) -> None:
    differ = [
        (number, mine.score, theirs["score"])
        for number, (mine, theirs) in enumerate(zip(graded, known, strict=True))
        if mine.score != theirs["score"]
        and (None in (mine.score, theirs["score"]) or abs(mine.score - theirs["score"]) > 1e-9)
    ]
    assert differ == []


def test_seed_42_draws_the_twenty_cases_of_the_specification(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "product_owner_val.jsonl", 20, 42, PRODUCT_OWNER)
    drawn = [case.id.removeprefix("POCON-") for case in read_cases(dataset)]
    assert " ".join(drawn) == DRAWN


def test_another_seed_draws_another_order(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "product_owner_val.jsonl", 20, 43, PRODUCT_OWNER)
    drawn = [case.id.removeprefix("POCON-") for case in read_cases(dataset)]
    assert " ".join(drawn) != DRAWN
