"""The page on writing a task: whatever it shows is done, in order, and its tables are the code's.

A fenced block with a path is written to that file; bash and Python are run; a block of text is what
the block before it must have printed, line by line, in this order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_eval.tasks.declaration import Declaration, Ids, Input, Part, Value

if TYPE_CHECKING:
    from pydantic import BaseModel

PAGE = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text("utf-8")
FENCED = re.compile(r"^(`{3,})(\w+)(?: (\S+))?\n(.*?)^\1\n", re.MULTILINE | re.DOTALL)
SECTIONS: dict[str, type[BaseModel]] = {
    "Task": Declaration,
    "Input": Input,
    "Value": Value,
    "Identifier": Ids,
    "Part of the metric": Part,
}


def run(language: str, text: str, folder: Path) -> str:
    program = [sys.executable, "-"] if language == "python" else ["bash", "-e", "-"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        program,
        input=text,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # `score` tells of other scores
    return done.stdout


def test_what_the_page_shows_works_as_it_says(tmp_path: Path) -> None:
    guide, _, _ = PAGE.partition("## 5.")
    printed, shown = "", 0
    for _, language, path, text in FENCED.findall(guide):
        if path:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text, "utf-8")
        elif language == "text":
            place = 0
            for line in text.splitlines():
                place = printed.find(line, place)
                assert place >= 0, f"{line!r} is not in {printed}"
            shown += 1
        else:
            printed = run(language, text, tmp_path)
    assert shown == 3


@pytest.mark.parametrize("section", SECTIONS)
def test_each_table_names_the_keys_there_are(section: str) -> None:
    table = PAGE.partition(f"### {section}\n")[2].partition("\n#")[0]
    keys = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert keys == sorted(keys, key=keys.index)
    assert set(keys) == SECTIONS[section].model_fields.keys()


@pytest.mark.parametrize("section", SECTIONS)
def test_each_table_tells_which_keys_are_needed(section: str) -> None:
    table = PAGE.partition(f"### {section}\n")[2].partition("\n#")[0]
    needed = set(re.findall(r"^\| `(\w+)` \|.*\| needed \|$", table, re.MULTILINE))
    fields = SECTIONS[section].model_fields
    assert needed == {name for name, field in fields.items() if field.is_required()}
