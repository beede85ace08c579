"""The corpus of malformed answers: each has its reason, and a retry that can be told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.malformed import CORPUS, GOOD, Malformed

if TYPE_CHECKING:
    from vllm_eval.records import Case
    from vllm_eval.tasks import Task


def test_the_answer_they_all_come_from_is_valid(task: Task, case: Case) -> None:
    assert task.grade(case, GOOD).problem is None


def test_the_corpus_holds_at_least_sixty_answers_of_different_names() -> None:
    assert len({malformed.name for malformed in CORPUS}) == len(CORPUS) >= 60


@pytest.mark.parametrize("malformed", CORPUS, ids=lambda malformed: malformed.name)
def test_each_malformed_answer_has_its_reason(task: Task, case: Case, malformed: Malformed) -> None:
    problem = task.grade(case, malformed.text).problem
    assert problem is not None
    assert problem.reason == malformed.reason


@pytest.mark.parametrize("malformed", CORPUS, ids=lambda malformed: malformed.name)
def test_each_retry_names_what_was_wrong(task: Task, case: Case, malformed: Malformed) -> None:
    problem = task.grade(case, malformed.text).problem
    assert problem is not None
    assert problem.message in task.prompt(case, problem)
