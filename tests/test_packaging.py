"""The wheel stands on its own: profiles, demo and templates travel inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.parametrize(
    "name",
    [
        *(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")),
        *(
            str(path.relative_to(ROOT / "vllm_eval"))
            for path in (ROOT / "vllm_eval" / "report" / "templates").rglob("*.*")
        ),
        "demo/base/model.safetensors",
        "demo/base/tokenizer.json",
        "demo/cases.jsonl",
        "demo/po_student_demo/adapter_model.safetensors",
        "demo/prompt.j2",
        "py.typed",
        "tasks/product_owner.j2",
        "tasks/product_owner.yaml",
    ],
)
def test_the_wheel_carries_its_data(wheel: Path, name: str) -> None:
    assert f"vllm_eval/{name}" in zipfile.ZipFile(wheel).namelist()


def test_the_embedded_model_is_at_most_8_megabytes(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).infolist()
    assert sum(f.file_size for f in files if f.filename.startswith("vllm_eval/demo/")) <= 8_000_000


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and what it requires, and no vLLM."""
    python = tmp_path_factory.mktemp("bare") / "venv" / "bin" / "python"
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, python.parents[1]], check=True)
    # The versions of the lock: they were fetched for the tests' own environment already.
    locked = ["--constraint", str(ROOT / "requirements" / "cpu.lock")]
    command = [uv, "pip", "install", "-q", "--python", str(python), *locked, str(wheel)]
    subprocess.run(command, check=True, env=os.environ | {"UV_SYSTEM_CERTS": "1"})
    return python


def call(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "vllm_eval", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_check_score_and_report_work_without_vllm(
    bare: Path, bench: Bench, answers: Answers
) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    checked = call(bare, bench.folder, "check", *bench.arguments())
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert call(bare, bench.folder, *bench.arguments()).returncode == 0
    (folder,) = bench.output_dir.iterdir()
    scored = call(bare, bench.folder, "score", str(folder))
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert "PASS  pupil" in scored.stdout
    assert not (folder / "report.html").exists()
    reported = call(bare, bench.folder, "report", str(folder))
    assert reported.returncode == 0, reported.stdout + reported.stderr
    assert "pupil" in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("command", ["check", "run"])
def test_the_extra_is_named_where_vllm_is_needed_and_absent(
    bare: Path, tmp_path: Path, command: str
) -> None:
    done = call(bare, tmp_path, command, "--config", "demo")
    assert done.returncode == 2
    assert "vLLM: is not installed; pip install 'vllm_eval[vllm]'" in done.stdout + done.stderr


@pytest.mark.engine
def test_the_demo_runs_from_the_installed_wheel_outside_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    """The unpacked wheel comes before the checkout's editable install on the path."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import vllm_eval.cli as c; c.main()"
    flags = ["--config", "demo", "--max-samples", "2", "--retries", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    (config,) = tmp_path.glob("results/*/manifest.json")
    assert str(site) in config.read_text("utf-8")
