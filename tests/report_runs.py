"""Run folders for the tests of reports, made with the scripted engine."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import REQUIREMENTS, Answers
from vllm_eval import cli
from vllm_eval.conclude.conclude import concluded
from vllm_eval.report.stored_run import StoredRun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

HOSTILE_ID = "K1 `` | \\| <script>alert(1)</script> @octocat #1 https://example.com \u202eabc"
HOSTILE_TIER = "$x^2$ <img src=x onerror=alert(1)> | `t`\n# head"
HOSTILE_TEXT = (
    "# heading\n![x](https://example.com/x.png)\n"
    "````\n```\n</details></pre><script>alert(1)</script> | @octocat \u202ertl \ufffe \x07 end"
)
WEAK = Answers().text(vision=Answers().vision(target_users=["one"], success_metrics=[]))
FAILING: list[dict[str, object]] = [
    {"arm": "baseline", "text": WEAK},
    {"arm": "pupil", "text": Answers().text()},
    {"concept_id": "K2", "arm": "pupil", "text": Answers().bad()},
    {"concept_id": "K3", "arm": "pupil", "attempt": 1, "text": "no blocks"},
    {"concept_id": "K4", "arm": "pupil", "error": "out of memory"},
]
"""Of eight cases: K2 breaks the contract for good, K3 is repaired, K4 has no answer."""


def make_run(
    folder: Path,
    script: Sequence[Mapping[str, object]],
    cases: Sequence[Mapping[str, object]] | int = 8,
    students: Sequence[str] = ("pupil",),
    *more: str,
) -> Path:
    """A run without its report, in a folder of its own below `folder`."""
    rows = [{"concept_id": f"K{n + 1}"} for n in range(cases)] if isinstance(cases, int) else cases
    plain = {"concept": "A tool library", "requirements_yaml": REQUIREMENTS, "tier": "simple"}
    folder.mkdir(exist_ok=True)
    for name, lines in (
        ("cases", [plain | dict(row) for row in rows]),
        ("script", [{"concept_id": "*"} | dict(line) for line in script]),
    ):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    before = set((folder / "out").glob("*"))
    command = ["--engine", "scripted", "--script", str(folder / "script.jsonl"), "--no-report"]
    command += ["--dataset-path", str(folder / "cases.jsonl"), "--output-dir", str(folder / "out")]
    command += [word for name in students for word in ("--adapter", name)]
    with pytest.raises(SystemExit):
        cli.main([*command, "--profile", "none", "--retries", "1", *more])
    (made,) = set((folder / "out").glob("*")) - before
    return made


def open_run(folder: Path) -> StoredRun:
    """A run as `report` opens it: concluded first where that is to be done."""
    return StoredRun(folder, concluded(folder))


def without(run: Path, pending: Callable[[Mapping[str, Any]], bool]) -> Path:
    """A copy of a run that has not come to the attempts that `pending` picks."""
    lines = (run / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    folder = interrupt(run, 0)
    kept = b"".join(line for line in lines if not pending(json.loads(line)))
    (folder / "attempts.jsonl").write_bytes(kept)
    return folder


def interrupt(run: Path, lines: int) -> Path:
    """A copy of a run as a kill after so many attempts would have left it."""
    folder = run.with_name(f"{run.name}-cut")
    folder.mkdir()
    for name in ("manifest.json", "config.yaml", "cases.jsonl"):
        shutil.copy(run / name, folder)
    journal = (run / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "attempts.jsonl").write_bytes(b"".join(journal[:lines]))
    return folder
