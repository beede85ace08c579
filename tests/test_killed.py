"""A process killed at any moment loses nothing that was finished and does nothing twice.

Covered: kill -9 and SIGTERM at random moments, with the scripted engine (a deep run kills 50 times)
and with the real one (5 times); full disks, folders that cannot be written, data sets that vanish.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.depth import count

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Answers, Bench

KILLS = count(10, deep=50)
PER_RUN = 5
REAL_KILLS = count(1, deep=5)
SESSIONS = 60
"""No run may need more sessions: each adds at least one attempt to the journal."""


def test_kills_lose_nothing_and_repeat_nothing(bench: Bench, answers: Answers) -> None:
    """Each answer takes 20 to 200 ms, so that kills hit starts, polls, writes and conclusions."""
    chance = random.Random(1)
    bench.dataset(12)
    good, bad = answers.text(), answers.bad()
    bench.answers(
        {"text": good},
        *({"concept_id": f"K{n}", "text": good, "seconds": n / 60} for n in range(2, 12)),
        *({"concept_id": f"K{n}", "attempt": 1, "text": bad, "seconds": 0.1} for n in (3, 5, 8)),
    )
    expected = outcomes(bench.run().folder)
    kills = 0
    while kills < KILLS:
        command = arguments(bench.arguments("--tag", f"killed{kills}"))
        folder, killed = survive(
            command, bench.output_dir, f"killed{kills}_*", chance, PER_RUN, 1.4
        )
        kills += killed
        assert outcomes(folder) == expected
        assert_nothing_twice(folder)


AT_IMPORT = """
import os, signal, sys
from vllm_eval.cli import main

class Interrupting:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            sys.argv[1] = ""
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Interrupting())
main(sys.argv[2:])
"""


@pytest.mark.parametrize("module", ["yaml._yaml", "rich.text", "numpy.linalg"])
def test_an_interrupt_amid_an_import_is_no_verdict_and_no_defect(
    module: str, bench: Bench, answers: Answers
) -> None:
    """Modules that make another error of it, or that cannot be imported again after it."""
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    command = [sys.executable, "-c", AT_IMPORT, module, *bench.arguments()]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 130
    assert run.stderr.startswith("error: interrupted; ")


@pytest.mark.engine
def test_a_real_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """First amid its answers, then at any moment from the start of its engine on."""
    chance = random.Random(2)
    work = ("--config", "demo", "--max-samples", "4", "--no-report", "--output-dir", str(tmp_path))
    subprocess.run(arguments([*work, "--tag", "whole"]), check=False, capture_output=True)
    (whole,) = tmp_path.glob("whole_*")
    command = arguments([*work, "--tag", "killed"])
    folder, kills = survive(command, tmp_path, "killed_*", chance, REAL_KILLS, 4.0, real=True)
    assert kills == REAL_KILLS
    assert outcomes(folder) == outcomes(whole)
    assert_nothing_twice(folder)


def test_a_full_disk_is_an_error_with_advice_and_leaves_the_journal_whole(
    bench: Bench, answers: Answers
) -> None:
    """The limit on a file's size stands for the disk; it tears the line that crosses it."""
    bench.dataset(8)
    bench.answers(
        {"text": answers.text()}, {"arm": "pupil", "text": answers.text(), "seconds": 0.5}
    )
    run = subprocess.run(
        arguments(bench.arguments()),
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert run.returncode == 3
    assert "attempts.jsonl: cannot write: File too large; make room" in run.stderr
    (folder,) = bench.output_dir.iterdir()
    lines = (folder / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    assert all(line.endswith(b"}\n") for line in lines)
    assert bench.call("--resume", str(folder)).code == 0


def test_a_kill_while_a_baseline_is_copied_leaves_no_run_that_lacks_a_part(
    bench: Bench, answers: Answers
) -> None:
    """Only what is whole can be resumed; anything else is begun again."""
    bench.dataset(1_000)
    bench.answers({"text": answers.text()})
    earlier = bench.run().folder
    more = ("--tag", "killed", "--baseline", str(earlier), "--resume", "auto")
    later = [word if word != "pupil" else "second" for word in bench.arguments(*more)]
    process = subprocess.Popen(arguments(later), stdout=subprocess.DEVNULL)
    wait_for_more(1, lambda: size(bench.output_dir, "killed*/attempts.jsonl"))
    process.kill()
    process.wait()
    (killed,) = bench.output_dir.glob("killed*")
    assert not (killed / "manifest.json").exists()
    assert bench.call(*later).code == 0
    (folder,) = set(bench.output_dir.glob("killed*")) - {killed}
    assert_nothing_twice(folder)
    lines = (folder / "attempts.jsonl").read_bytes().splitlines()
    reused = [b'"reused":true' in line for line in lines]
    assert (sum(reused), len(reused)) == (1_000, 2_000)


def test_a_data_set_that_vanishes_is_bad_input_that_names_it(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    (folder / "comparison.json").unlink()
    bench.cases.unlink()
    run = bench.call("--resume", str(folder))
    assert run.code == 2
    assert str(bench.cases) in run.err


def survive(
    command: list[str],
    output_dir: Path,
    pattern: str,
    chance: random.Random,
    most: int,
    longest: float,
    *,
    real: bool = False,
) -> tuple[Path, int]:
    """Start, kill after a random time, resume; until a session ends by itself."""
    kills = 0
    said = output_dir.with_name("said.txt")
    for _ in range(SESSIONS):
        with said.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        if kills < most:
            if real and kills == 0:
                wait_for_more(1, lambda: size(output_dir, f"{pattern}/attempts.jsonl"))
            else:
                if real:
                    wait_for_more(1000, lambda: size(output_dir, f"{pattern}/engine.log"))
                time.sleep(chance.uniform(0.05, longest))
            if process.poll() is None:
                process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                kills += 1
        code = process.wait()
        found = list(output_dir.glob(pattern))
        resumable = [folder for folder in found if (folder / "manifest.json").is_file()]
        if code in (0, 1):
            return resumable[0], kills
        # As the interpreter starts or ends, nobody is there to turn SIGINT into 130; a shell does.
        assert code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130), (
            f"exit code {code}: {said.read_text('utf-8')}"
        )
        if resumable:
            command = arguments(["--resume", str(resumable[0])])
    pytest.fail("no session came to an end")


def size(output_dir: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in output_dir.glob(pattern))


def wait_for_more(bytes_: int, measure: Callable[[], int]) -> None:
    """Until a file has grown by so much."""
    begin, end = measure(), time.monotonic() + 120
    while measure() < begin + bytes_:
        assert time.monotonic() < end, "nothing was written within 120 s"
        time.sleep(0.02)


def arguments(given: list[str]) -> list[str]:
    return [sys.executable, "-m", "vllm_eval", *given]


def outcomes(folder: Path) -> dict[tuple[str, str], tuple[object, ...]]:
    keys = ("status", "score", "reason", "attempts", "raw_response")
    found = {}
    for path in [*folder.glob("baseline_*.json"), *folder.glob("student_*.json")]:
        arm = path.name.partition("_")[0]
        for row in json.loads(path.read_text("utf-8"))["results"]:
            found[arm, row["concept_id"]] = tuple(row[key] for key in keys)
    assert found
    return found


def assert_nothing_twice(folder: Path) -> None:
    lines = (folder / "attempts.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    keys = [(row["arm"], row["concept_id"], row["sample"], row["attempt"]) for row in rows]
    assert len(keys) == len(set(keys))
