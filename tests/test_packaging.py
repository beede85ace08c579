"""The wheel stands on its own: profiles, demo and templates travel inside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
        "configs/cpu.yaml",
        "configs/demo.yaml",
        "configs/gpu.yaml",
        "demo/base/model.safetensors",
        "demo/base/tokenizer.json",
        "demo/cases.jsonl",
        "demo/po_student_demo/adapter_model.safetensors",
        "demo/prompt.j2",
        "py.typed",
        "tasks/product_owner.j2",
    ],
)
def test_the_wheel_carries_its_data(wheel: Path, name: str) -> None:
    assert f"vllm_eval/{name}" in zipfile.ZipFile(wheel).namelist()


def test_the_embedded_model_is_at_most_8_megabytes(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).infolist()
    assert sum(f.file_size for f in files if f.filename.startswith("vllm_eval/demo/")) <= 8_000_000


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
