"""What the declaration of the test plan cannot say: one more rule, and one measure."""
# ruff: noqa: INP001  a file beside its task, no package

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vllm_eval.tasks import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_eval.tasks import Case

POINTS = 20
ENOUGH = 1 / 3
_REFUSAL = re.compile(r"\b(?:not|never|refuse|reject|invalid|wrong|fail|without|block)", re.I)


def check(blocks: Mapping[str, Mapping[Any, Any]], case: Case) -> Problem | None:
    """No test case stands there twice. Asked only where all declared rules are kept."""
    del case
    seen = set()
    for item in blocks["TEST_PLAN"]["test_cases"]:
        words = " ".join(str(item).lower().split())
        if words in seen:
            message = "`test_cases` holds the same test twice"
            return Problem("repeated_test_case", message, "TEST_PLAN", key="test_cases")
        seen.add(words)
    return None


def negative_tests(blocks: Mapping[str, Mapping[Any, Any]], case: Case) -> float:
    """Full points where a third of the tests ask for what must be refused, else in proportion."""
    del case
    items = blocks["TEST_PLAN"].get("test_cases")
    if not isinstance(items, list) or not items:
        return 0.0
    share = sum(bool(_REFUSAL.search(str(item))) for item in items) / len(items)
    return POINTS * min(share / ENOUGH, 1.0)
