"""How far answers of the scripted engine overlap, whose seconds are known.

The times depend on the machine and its load, so the tests hold the order of events and these bounds
are here. Run it on a machine with nothing else to do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.engines.scripted import CAPACITY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Script = list[dict[str, object]]


def main() -> None:
    """Print each figure with its bounds."""
    slow_first: Script = [
        {"concept_id": "K1", "text": "x", "seconds": 0.4},
        {"concept_id": "*", "text": "x", "seconds": 0.1},
    ]
    retries = ("--contestants", "mixed,barrier", "--fail-rate", "0.5", "--retries", "4")
    batches: Script = [{"concept_id": "*", "text": "x", "seconds": 0.4}]
    ends = sorted(line["finished_at"] for line in journal(CAPACITY, batches))
    straggler: Script = [
        {"concept_id": "K1", "text": "x", "seconds": 1.2},
        {"concept_id": "K2", "text": "x", "seconds": 0.1},
    ]
    attempts = journal(2, straggler, "--retries", "2")
    third = max(line["finished_at"] for line in attempts if line["concept_id"] == "K2")
    fine = [
        held("one arm after the other / both at once", 1.5, ratio("arms", 6, batches), 2.5),
        held("a barrier / retries at once", 1.1, ratio("barrier", 6, slow_first, *retries), 9.0),
        held("a full batch of 0.4 s, seconds", 0.4, ends[CAPACITY - 1], 0.8),
        held("three answers of 0.1 s beside one of 1.2 s, seconds", 0.3, third, 1.0),
    ]
    sys.exit(not all(fine))


def held(what: str, low: float, found: float, high: float) -> bool:
    """Print a figure; whether it lies within its bounds."""
    fine = low <= found < high
    print(f"{'ok  ' if fine else 'FAIL'} {what}: {found:.2f}, {low:g} to {high:g}")
    return fine


def ratio(contestant: str, cases: int, script: Script, *more: str) -> float:
    """Median time of a contestant of `bench` in units of the first one's."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--repeats", "2", "--warmup", "0", *more)
        call(Path(folder), cases, script, ["bench"], flags)
        (path,) = Path(folder).glob("out/benchmarks/*/bench.json")
        contestants = json.loads(path.read_bytes())["contestants"]
        return float(contestants[contestant]["ratio"]["median"])


def journal(cases: int, script: Script, *more: str) -> list[dict[str, Any]]:
    """Every attempt of a run."""
    with tempfile.TemporaryDirectory() as folder:
        call(Path(folder), cases, script, [], ("--no-report", *more))
        (path,) = Path(folder).glob("out/*/attempts.jsonl")
        return [json.loads(line) for line in path.read_bytes().splitlines()]


def call(
    folder: Path, cases: int, script: Script, command: Sequence[str], more: Sequence[str]
) -> None:
    """Run the program with the scripted engine, base and one student."""
    row = {"concept": "A tool library", "requirements_yaml": "title: x", "tier": "simple"}
    rows = [row | {"concept_id": f"K{number}"} for number in range(1, cases + 1)]
    arguments = ["--engine", "scripted", "--profile", "none", "--adapter", "pupil"]
    arguments += ["--script", write(folder / "script.jsonl", script)]
    arguments += ["--dataset-path", write(folder / "cases.jsonl", rows)]
    arguments += ["--output-dir", str(folder / "out"), *more]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_eval", *command, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1, 4):
        sys.exit(done.stderr)


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """JSON lines; the path as an argument."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    main()
