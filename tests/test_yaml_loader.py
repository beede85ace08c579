"""libyaml reads every answer: PyYAML's own loader grades some of them differently.

The texts are what a search over half a million mutations of stored answers found to differ.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from vllm_eval.tasks.parse import parse_yaml

if TYPE_CHECKING:
    from pathlib import Path

VALID = {
    "a tab after a colon": "a:\tb",
    "a tab after a value": "a: b\t\nc: d",
    "a tab before a colon": '"a"\t: b',
    "a tab before a comment": "a: b\t# c",
    "a tab in a blank line": "a: b\n \t\nc: d",
    "tabs in a flow list": "a: [\t1,\t2]",
    "tabs in a flow mapping": "a: {\tb: c\t}",
    "a tab before a block text": "a: \t|\n  b",
    "a tab after an anchor": "a: &x\tb",
    "a tab after a tag": "a: !!str\tb",
    "a tab in a directive": "%YAML\t1.1\n---\na: b",
    "a comment right after an indicator": "a: |#b",
    "a byte order mark at the end": "a: b\n\ufeff",
}
INVALID = {
    "an escaped pair of surrogates": r'a: "\ud83d\ude00"',
    "an escaped high surrogate": r'a: "\ud83d"',
    "an escaped low surrogate": r'a: "\uDFFF"',
    "a tab where a block text begins": "a: |\n  \t- b",
    "a byte order mark before a key": "a: b\n\ufeffc: d",
    "an unknown directive": "%a\n---\nb: c",
    "a later version of YAML": "%YAML 1.3\n---\na: b",
}


def valid_in_python(text: str) -> bool:
    try:
        yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return False
    return True


@pytest.mark.parametrize("name", [*VALID, *INVALID])
def test_the_loader_decides_whether_an_answer_is_valid(name: str) -> None:
    text = (VALID | INVALID)[name]
    assert (parse_yaml(text).error is None) == (name in VALID)
    assert valid_in_python(text) != (name in VALID)


@pytest.mark.parametrize("words", [["check"], ["score", "student.json"]])
def test_without_libyaml_nothing_is_graded_and_the_remedy_is_named(
    tmp_path: Path, words: list[str]
) -> None:
    """A missing `yaml._yaml` is what a build of PyYAML without libyaml looks like."""
    (tmp_path / "student.json").write_text('[{"concept_id": "K1", "raw_response": "x"}]', "utf-8")
    program = "import sys; sys.modules['yaml._yaml'] = None; import vllm_eval.cli as c; c.main()"
    run = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (3, "")
    assert "lacks libyaml" in run.stderr
    assert "pip install --force-reinstall --only-binary :all: pyyaml" in " ".join(
        run.stderr.split()
    )
    assert "Traceback" not in run.stderr
