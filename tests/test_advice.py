"""Known causes of a dead engine become advice; old log lines do not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vllm_eval.engines.engine_log import OutputToFile
from vllm_eval.engines.vllm.options import ADVICE, advise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def output(tmp_path: Path) -> Iterator[OutputToFile]:
    log = tmp_path / "engine.log"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory\n")
    opened = OutputToFile(log)
    yield opened
    opened.restore()


@pytest.mark.parametrize("cause", [cause for cause, _ in ADVICE])
def test_each_known_cause_has_a_remedy(output: OutputToFile, cause: str) -> None:
    assert advise(f"ValueError: {cause} (12.3 GiB)", output)


def test_the_cause_is_found_in_the_log_where_the_message_does_not_say_it(
    output: OutputToFile,
) -> None:
    with output.log.open("a") as file:
        file.write("ValueError: No available memory for the cache blocks.\n")
    remedy = advise("Engine core initialization failed. See root cause above.", output)
    assert remedy is not None
    assert "--gpu-memory-utilization" in remedy


def test_an_earlier_engines_trouble_is_not_this_ones(output: OutputToFile) -> None:
    assert advise("something new", output) is None


def test_what_is_printed_meanwhile_goes_to_the_log_and_not_to_the_terminal(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = OutputToFile(tmp_path / "engine.log")
    os.write(1, b"from the engine")
    output.restore()
    os.write(1, b"from us")
    assert output.log.read_text() == "from the engine"
    assert capfd.readouterr().out == "from us"
