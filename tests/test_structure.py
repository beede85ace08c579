"""The house as its checks hold it: imports in order, nothing too long; each check finds a fault."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRONG = {
    "a wing that imports from a later one": (
        "vllm_eval/tasks/score.py",
        "\nfrom vllm_eval.report import tables\n",
    ),
    "the types of a later wing": (
        "vllm_eval/compare/gate.py",
        "\nif TYPE_CHECKING:\n    from vllm_eval.engines.protocol import Engine\n",
    ),
    "an import inside a function": (
        "vllm_eval/text.py",
        "\ndef late() -> object:\n    from vllm_eval.store import journal\n    return journal\n",
    ),
    "two modules that import each other": (
        "vllm_eval/tasks/parse.py",
        "\nfrom vllm_eval.tasks.task import Task\n",
    ),
    "a wing without a place on the line": ("vllm_eval/attic.py", '"""Nobody\'s."""\n'),
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package's sources with the configuration of the checks."""
    shutil.copytree(
        ROOT / "vllm_eval", tmp_path / "vllm_eval", ignore=shutil.ignore_patterns("demo", "*.pyc")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(house: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [
        Path(sys.executable).with_name("lint-imports"),
        "--no-cache",
        "--no-logo",
    ]
    return subprocess.run(
        command,
        cwd=house,
        env={"PYTHONPATH": str(house), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def measure(package: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, ROOT / "scripts" / "structure.py", package]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_import_follows_the_order_of_the_wings(house: Path) -> None:
    done = lint_imports(house)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("file", "text"), WRONG.values(), ids=list(WRONG))
def test_a_planted_wrong_import_is_found(house: Path, file: str, text: str) -> None:
    with (house / file).open("a", encoding="utf-8") as source:
        source.write(text)
    done = lint_imports(house)
    assert done.returncode == 1, done.stdout
    assert Path(file).stem in done.stdout


def test_no_file_or_function_is_over_the_limit() -> None:
    done = measure(ROOT / "vllm_eval")
    assert done.returncode == 0, done.stdout


def test_what_is_over_a_limit_is_named(tmp_path: Path) -> None:
    body = "\n".join(f"    x = {n}" for n in range(60))
    (tmp_path / "long.py").write_text(f"def endless():\n{body}\n" + "\n" * 260, "utf-8")
    handlers = "".join("try:\n    pass\nexcept Exception:\n    pass\n" for _ in range(5))
    (tmp_path / "broad.py").write_text(handlers, "utf-8")
    done = measure(tmp_path)
    assert done.returncode == 1
    assert "long.py: 321 lines" in done.stdout
    assert "endless: 61 lines" in done.stdout
    assert done.stdout.count("catches everything") == 5
