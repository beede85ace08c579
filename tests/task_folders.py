"""Folders of small tasks, as their authors would write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from vllm_eval.tasks import Case

if TYPE_CHECKING:
    from pathlib import Path

PLAIN: dict[str, Any] = {
    "name": "haiku",
    "version": "1",
    "prompt": "prompt.j2",
    "inputs": {"topic": {}},
    "blocks": {"POEM": {"keys": {"lines": {"type": "list", "min_items": 3}}}},
    "metric": {"shape": {"points": 1, "measure": "shape"}},
}
GOOD = "```yaml POEM\nlines: [a, b, c]\n```\n"
CASE = Case("H1", 1, None, {"topic": "rain"})


def write_task(
    parent: Path, declaration: object = PLAIN, module: str | None = None, **changes: object
) -> Path:
    """Write a task's folder and give its path; a string is written as it is."""
    folder = parent / "haiku"
    folder.mkdir(exist_ok=True)
    whole = declaration
    if isinstance(declaration, dict):
        whole = declaration | changes | ({"module": "more.py"} if module is not None else {})
    text = whole if isinstance(whole, str) else yaml.safe_dump(whole)
    (folder / "task.yaml").write_text(text, "utf-8")
    (folder / "prompt.j2").write_text("Write of {{ topic }}.", "utf-8")
    if module is not None:
        (folder / "more.py").write_text(module, "utf-8")
    return folder
