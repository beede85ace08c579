"""The page on Python: its code is run, in order, and prints what the page says."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import vllm_eval
from vllm_eval import errors

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
SCRIPT = ROOT / "examples" / "trainer_callback" / "train.py"
FENCED = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
STAMP = re.compile(r"\d{8}-\d{6}(-\d+)?")
"""The time in the names of runs and of their files; a second run in the same second is numbered."""


def test_what_the_page_shows_works_as_it_says(
    bench: Bench,
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The scripted engine stands in for a model; the page's file and code are as they are."""
    monkeypatch.chdir(bench.folder)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    bench.dataset(4)
    stands_in = {"engine": "scripted", "profile": "none", "report": False}
    stands_in["script"] = str(bench.answers({"text": answers.text()}))
    names: dict[str, Any] = {"__name__": "page"}
    printed, shown = "", 0
    for language, name, text in FENCED.findall(PAGE):
        if language == "yaml":
            Path(name).write_text(yaml.safe_dump(yaml.safe_load(text) | stands_in), "utf-8")
        elif language == "text":
            said, lines = (STAMP.sub("TIME", whole).splitlines() for whole in (text, printed))
            assert said == lines[: len(said)]
            assert len(said) == len(lines) or "The first one here" in PAGE.partition(text)[0][-60:]
            shown += 1
        elif name != "callback":
            exec(text, names)
            printed = capsys.readouterr().out
    assert shown == 4
    assert names["history"][-1] == (8, 8, 0)
    assert names["failed"] == []
    logging.shutdown()
    assert "evaluating 4 cases, 2 arms" in Path("evaluation.log").read_text("utf-8")


def test_every_name_on_the_page_is_there() -> None:
    used = set(re.findall(r"vllm_eval\.(\w+)", PAGE))
    assert used <= set(vllm_eval.__all__)
    section = PAGE.partition("## Errors")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(?:vllm_eval\.)?(\w+Error)`", section)) == {
        name for name in vars(errors) if name.endswith("Error")
    }


def test_the_pages_callback_is_the_examples() -> None:
    (callback,) = (text for _, name, text in FENCED.findall(PAGE) if name == "callback")
    assert callback in SCRIPT.read_text("utf-8")


@pytest.mark.engine
def test_a_trainers_callback_evaluates_the_adapter_it_has_trained(tmp_path: Path) -> None:
    """Training by PEFT, then the vLLM engine; on one thread, since idle ones spin."""
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^(PASS|FAIL)  few_steps", done.stdout, re.MULTILINE)
    (run,) = (tmp_path / "results").iterdir()
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert manifest["engine"]["engine"] == "vllm"
    assert manifest["adapters"]["few_steps"]["path"] == str(tmp_path / "few_steps")
    assert {arm: s["total"] for arm, s in load(run)["arms"].items()} == {
        "baseline": 2,
        "few_steps": 2,
    }


def load(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "comparison.json").read_text("utf-8"))
    return loaded
