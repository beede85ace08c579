"""`--resume auto`: a notebook's cell can be run again, and the newest run like it goes on."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.model_folders import write_base
from vllm_eval.config.layers import dump_config, load_config
from vllm_eval.config.machine import Gpu, Machine, Software, installed
from vllm_eval.errors import InputError
from vllm_eval.inputs.base_model import read_base
from vllm_eval.inputs.plan import Plan, prepare
from vllm_eval.preflight.engine_release import other_engine
from vllm_eval.run.resume import AUTO
from vllm_eval.run.run import run
from vllm_eval.store import manifest
from vllm_eval.store.folder import CONFIG, JOURNAL, create_run, write_json, write_text

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench
    from vllm_eval.records import Progress

T4 = Gpu("Tesla T4", 15360, "7.5", "580.82.07")
L4 = Gpu("NVIDIA L4", 23034, "8.9", "580.82.07")


@pytest.fixture
def auto(bench: Bench, answers: Answers) -> Bench:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    return bench


def interrupt(folder: Path) -> None:
    """Leave of a run what a killed process leaves."""
    journal = folder / "attempts.jsonl"
    first = journal.read_bytes().splitlines(keepends=True)[0]
    journal.write_bytes(first + b'{"torn')
    for made_at_the_end in ("comparison.json", "baseline_*", "student_*", "*.zip"):
        for path in folder.glob(made_at_the_end):
            path.unlink()


def test_a_first_run_is_a_new_one(auto: Bench) -> None:
    run = auto.run("--resume", "auto")
    assert run.code == 0
    assert "resume: no run like this one yet, so a new one starts" in run.out


@pytest.mark.parametrize("name", ["manifest.json", "comparison.json"])
def test_a_pipe_in_a_folder_beside_it_does_not_keep_a_run_waiting(auto: Bench, name: str) -> None:
    folder = auto.run().folder
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert auto.run().code == 0


def test_an_interrupted_run_goes_on(auto: Bench) -> None:
    folder = auto.run("--resume", "auto").folder
    begun = (folder / "attempts.jsonl").read_bytes().splitlines()[0]
    interrupt(folder)
    run = auto.run("--resume", "auto")
    assert (run.code, run.folder) == (0, folder)
    assert f"resume: {folder}" in run.out
    assert (folder / "attempts.jsonl").read_bytes().splitlines()[0] == begun
    assert len(run.journal) == 6


def test_a_finished_run_is_not_done_again(auto: Bench) -> None:
    folder = auto.run("--resume", "auto").folder
    before = (folder / "attempts.jsonl").read_bytes()
    run = auto.run("--resume", "auto")
    assert (run.code, run.folder) == (0, folder)
    assert (folder / "attempts.jsonl").read_bytes() == before


def test_another_run_is_never_taken_for_this_one(auto: Bench) -> None:
    interrupt(auto.run("--resume", "auto").folder)
    run = auto.run("--resume", "auto", "--seed", "7")
    assert run.code == 0
    assert len(list(auto.output_dir.iterdir())) == 2


def test_the_newest_of_several_goes_on(auto: Bench) -> None:
    auto.run("--tag", "old")
    (old,) = auto.output_dir.iterdir()
    auto.run("--tag", "new")
    (new,) = set(auto.output_dir.iterdir()) - {old}
    assert f"resume: {new}" in auto.run("--resume", "auto").out


def test_without_it_a_new_run_is_begun(auto: Bench) -> None:
    auto.run()
    auto.run()
    assert len(list(auto.output_dir.iterdir())) == 2


class StoppedError(Exception):
    """Raised where the engine would be started."""


class Listener:
    """Keeps what is said, and ends the run before an engine is started."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)
        if text.startswith("starting"):
            raise StoppedError

    def progress(self, progress: Progress) -> None:
        """Nothing is evaluated."""


@pytest.fixture
def demo(tmp_path: Path) -> Plan:
    """The demo with the real engine, which no test here starts."""
    flags = {"output_dir": str(tmp_path / "out"), "max_samples": 2}
    return prepare(load_config(files=["demo"], flags=flags))


def begun(plan: Plan, engine: dict[str, str], tag: str = "before") -> Path:
    """A run like this one, as a session leaves it that was cut off in its first answer."""
    now = datetime.now().astimezone()
    folder = create_run(Path(plan.config.output_dir), tag, now).path
    described = manifest.describe(plan, manifest.identify(plan), now)
    write_json(folder / manifest.FILE, described | {"engine": engine})
    write_text(folder / CONFIG, dump_config(plan.config))
    (folder / JOURNAL).touch()
    return folder


@pytest.mark.parametrize("release", ["0.19.1", None])
def test_a_run_of_another_release_is_passed_over_before_a_model_is_loaded(
    demo: Plan, release: str | None
) -> None:
    here = {"engine": "vllm", "vllm": str(installed().vllm)}
    mine = begun(demo, here)
    other = begun(demo, here | {"vllm": "0.19.1"}, "newer") if release else None
    listener = Listener()
    with pytest.raises(StoppedError):
        run(demo.config, listener, AUTO)
    assert f"resume: {mine}" in listener.said
    passed_over = [text for text in listener.said if text.startswith("resume: not ")]
    why = f"begun with vllm 0.19.1, but {installed().vllm} is installed"
    assert passed_over == ([f"resume: not {other}: {why}"] if other else [])


def test_a_run_of_another_release_is_refused_before_a_model_is_loaded(demo: Plan) -> None:
    folder = begun(demo, {"engine": "vllm", "vllm": "0.19.1"})
    with pytest.raises(InputError, match=r"begun with vllm 0\.19\.1, but .* without --resume"):
        run(demo.config, Listener(), folder)


@pytest.mark.parametrize(
    ("dtype", "card", "recorded", "why"),
    [
        ("auto", T4, "bfloat16", "begun with dtype bfloat16, but this machine computes in float16"),
        ("auto", L4, "float16", "begun with dtype float16, but this machine computes in bfloat16"),
        ("auto", T4, "float16", None),
        ("half", L4, "float16", None),
    ],
)
def test_the_type_a_card_gives_decides_whether_a_run_goes_on(
    tmp_path: Path, demo: Plan, dtype: str, card: Gpu, recorded: str, why: str | None
) -> None:
    config = demo.config.model_copy(update={"engine_args": {"dtype": dtype}})
    plan = replace(demo, config=config, base=read_base(str(write_base(tmp_path / "base"))))
    machine = Machine("Linux", "3.12.3", 2, 12_000, (card,))
    software = Software((("vllm", "0.26.0"),))
    engine = {"engine": "vllm", "vllm": "0.26.0", "dtype": recorded}
    assert other_engine(plan, engine, machine, software) == why
