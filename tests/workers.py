"""Which tests share a worker where several run them, and which begin.

The tests of a file share one, so that its fixtures are made once. So do those that open vLLM in the
process of the tests: one engine at a time is open there, and vLLM is imported once. The groups that
take longest begin, so that all workers end at about the same time.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

if TYPE_CHECKING:
    import pytest

OPEN_VLLM = (
    *("test_openai_vllm", "test_constrain_engine", "test_engine_run", "test_task_example"),
    *("test_engine_arms", "test_engine_contract", "test_engine_prompts"),
)
LONGEST = (
    *(*OPEN_VLLM, "test_ray_engine", "test_engine_parallel", "test_bench", "test_notebooks"),
    *("test_killed", "test_report_browser", "test_transformers_engine", "test_packaging"),
    *("test_openai_engine", "test_checkpoints", "test_grammar", "test_hostile_yaml"),
    "test_report_command",
)


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out a group at a time; with `--no-loadscope-reorder` in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0]).stem
        return "vllm" if file in OPEN_VLLM else file


def turn(item: pytest.Item) -> int:
    """When a test has its turn: lower is earlier."""
    name = item.path.stem
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
