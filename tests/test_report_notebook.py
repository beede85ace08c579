"""`vllm_eval.show(run)` in a notebook, and that importing the package costs nothing for it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import vllm_eval
from tests.report_runs import FAILING, HOSTILE_ID, HOSTILE_TIER, WEAK, interrupt, make_run
from vllm_eval.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_notebook_cell_shows_verdict_table_and_plots(failing: Path) -> None:
    """Executed by a real kernel."""
    import nbformat
    from nbclient import NotebookClient

    source = f"import vllm_eval\nvllm_eval.show({str(failing)!r})"
    v4: Any = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=120).execute()
    (output,) = [o for o in notebook.cells[0].outputs if o.output_type == "execute_result"]
    assert set(output.data) == {"text/plain", "text/html", "text/markdown"}
    html = output.data["text/html"]
    for shown in (">FAIL</b>", "<th>arm</th>", "gate for", "data:image/svg+xml;base64,"):
        assert shown in html
    assert "**FAIL** `pupil`" in output.data["text/markdown"]
    assert "FAIL  pupil" in output.data["text/plain"]


def test_a_run_is_shown_by_its_name_too(failing: Path) -> None:
    shown = vllm_eval.show(failing.name, output_dir=str(failing.parent))
    assert failing.name in repr(shown)


def test_a_partial_run_is_shown_as_such(failing: Path) -> None:
    shown = vllm_eval.show(interrupt(failing, 5))
    assert "partial" in repr(shown)
    assert "Partial run" in shown._repr_html_()


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run at"):
        vllm_eval.show(tmp_path)


def test_hostile_names_stay_text_in_a_notebook(tmp_path: Path) -> None:
    cases = [{"concept_id": HOSTILE_ID, "tier": HOSTILE_TIER}]
    folder = make_run(tmp_path, [{"text": WEAK}], cases).rename(tmp_path / "<img src=x>\u202e")
    html = vllm_eval.show(folder)._repr_html_()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "\u202e" not in html


def test_importing_the_package_loads_neither_plots_nor_numbers() -> None:
    code = "import sys, vllm_eval; print([m for m in ('matplotlib', 'numpy', 'jinja2', 'rich') "
    code += "if m in sys.modules])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
