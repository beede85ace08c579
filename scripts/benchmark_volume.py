"""What a run of very many cases takes, and where the driver becomes the limit.

Cases are the demo's, each with a word of its own, so that nothing is parsed once for many. The
scripted engine answers at once with a whole answer; every twentieth first attempt of the student
is broken, half of those stay broken over all retries. So every cost but the model's is there:
drawing, prompts, grading, journal, statistics, result files, ZIP, report. Each run is a process of
its own, whose memory is read from the kernel (VmHWM, of one process: there are no others). Seconds
are wall clock; time per case is processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from vllm_eval.store.journal import read_journal

DEMO = Path("vllm_eval/demo/cases.jsonl")
EVERY = 20
"""Every so many-th case the student's first attempt fails."""
LIMIT_MIB = 500


@dataclass(frozen=True)
class Process:
    """One command, from start to end."""

    seconds: float
    processor_s: float
    peak_mib: int
    killed: bool


def main(counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            f"{'cases':>8} {'step':<22} {'s':>8} {'cpu s':>8} {'cpu ms a case':>14} {'peak MiB':>9}"
        )
        for count in counts:
            work = folder / str(count)
            work.mkdir()
            measure(work, count, last=count == counts[-1])


def measure(work: Path, count: int, *, last: bool) -> None:
    """A run, its report, its export; of the largest also one that is killed and resumed."""
    write_cases(work / "cases.jsonl", count)
    write_script(work / "script.jsonl", count)
    whole = evaluate(work, "whole")
    (run,) = (work / "whole").iterdir()
    show(count, "run", whole)
    show_parts(run, count)
    show(count, "report", watch(["report", str(run)]))
    show(count, "export", watch(["export", str(run), str(work / "out.parquet")]))
    if last:
        killed = evaluate(work, "killed", kill_at=size_of(run) // 2)
        (cut,) = (work / "killed").iterdir()
        resumed = watch(["--resume", str(cut)])
        show(count, "killed at half", killed)
        show(count, "resumed", resumed)
        same = outcomes(run) == outcomes(cut)
        print(f"killed: {killed.killed}; outcomes of both runs are the same: {same}")


def write_cases(path: Path, count: int) -> None:
    with DEMO.open("rb") as file:
        rows = [orjson.loads(line) for line in file]
    with path.open("wb") as out:
        for number, row in zip(range(count), itertools.cycle(rows), strict=False):
            fields = row.get("input", row)
            text = fields["requirements_yaml"].rstrip() + f"\nmeta: {{number: {number}}}\n"
            case = {"concept_id": f"V{number:06}", "tier": fields.get("tier")}
            case |= {"concept": fields["concept"], "requirements_yaml": text}
            out.write(orjson.dumps(case, option=orjson.OPT_APPEND_NEWLINE))


def write_script(path: Path, count: int) -> None:
    good, bad = answer(whole=True), answer(whole=False)
    lines: list[dict[str, Any]] = [{"concept_id": "*", "text": good}]
    for number in range(0, count, EVERY):
        line = {"concept_id": f"V{number:06}", "arm": "student", "text": bad}
        lines.append(line if number % (2 * EVERY) else line | {"attempt": 1})
    with path.open("wb") as out:
        for line in lines:
            out.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def answer(*, whole: bool) -> str:
    """About 2.5 KB of text, the size of a teacher's answer."""
    sentence = "Teams plan, lend and return their tools in one place and see at once what is free. "
    vision = {
        "product_name": "Tool Library",
        "product_summary": sentence * 3,
        "target_users": [sentence] * 2,
        "value_proposition": [sentence] * 3,
        "key_capabilities": [sentence] * 5,
        "non_goals": [sentence] * 2,
        "success_metrics": [sentence] * 3,
        "last_updated": "2025-03-01T10:00:00Z",
    }
    review = {
        "status": "aligned",
        "summary": [sentence] * 3,
        "requirements_alignment": {
            "aligned": [f"FR00{n}: {sentence}" for n in (1, 2, 3)],
            "gaps": [f"NFR001: {sentence}"],
            "conflicts": [f"C001: {sentence}"],
        },
        "recommended_actions": [sentence] * 3,
        "narrative": sentence * 5,
    }
    if not whole:
        del review["narrative"]
    first, second = yaml.safe_dump(vision), yaml.safe_dump(review)
    return f"```yaml VISION\n{first}```\n```yaml REVIEW\n{second}```\n"


def evaluate(work: Path, name: str, kill_at: int | None = None) -> Process:
    files = ["--dataset-path", str(work / "cases.jsonl"), "--script", str(work / "script.jsonl")]
    command = ["--engine", "scripted", "--adapter", "student", *files, "--profile", "none"]
    return watch([*command, "--no-report", "--output-dir", str(work / name)], kill_at, work / name)


def watch(arguments: list[str], kill_at: int | None = None, output: Path = Path()) -> Process:
    """Run `vllm_eval`; with `kill_at`, until its journal in `output` has so many bytes."""
    start, before = time.monotonic(), processor_s()
    command = [sys.executable, "-m", "vllm_eval", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, killed = 0, False
    while process.poll() is None:
        peak = max(peak, high_water(process.pid))
        folders = output.glob("*") if kill_at is not None else ()
        if kill_at is not None and any(size_of(folder) >= kill_at for folder in folders):
            process.kill()
            killed = True
            break
        time.sleep(0.2)
    _, errors = process.communicate()
    assert killed or process.returncode in (0, 1, 4), errors.decode()[-2000:]
    return Process(time.monotonic() - start, processor_s() - before, peak, killed)


def processor_s() -> float:
    """Of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return 0  # it has just ended
    line = next((line for line in lines if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) // 1024


def size_of(run: Path) -> int:
    """Bytes of the journal."""
    journal = run / "attempts.jsonl"
    return journal.stat().st_size if journal.exists() else 0


def outcomes(run: Path) -> str:
    """A hash over all outcomes, in an order that does not depend on when they finished."""
    digest = 0
    for _, attempt in read_journal(run / "attempts.jsonl"):
        key = (attempt.arm, attempt.concept_id, attempt.sample, attempt.attempt, attempt.seed)
        row = (*key, attempt.final, attempt.status, attempt.reason, attempt.score)
        own = hashlib.sha256(repr(row).encode()).digest()
        digest = (digest + int.from_bytes(own)) % 2**256
    return f"{digest:064x}"


def show(count: int, step: str, done: Process) -> None:
    each = 1000 * done.processor_s / count
    line = f"{count:>8,} {step:<22} {done.seconds:>8.1f} {done.processor_s:>8.1f} {each:>14.3f}"
    print(f"{line} {done.peak_mib:>9}" + (" too much" if done.peak_mib > LIMIT_MIB else ""))
    sys.stdout.flush()


def show_parts(run: Path, count: int) -> None:
    """Where the run's time went, and the driver's ceiling: outcomes a second with no model."""
    comparison = json.loads((run / "comparison.json").read_bytes())
    timing, arms = comparison["timing"], comparison["arms"]
    asked = sum(arm["total"] for arm in arms.values())
    retried = timing["attempts"] - asked
    generation, grading = timing["generation_s"], timing["grading_s"]
    for step, seconds in (("  evaluation", generation), ("  of it grading", grading)):
        print(f"{count:>8,} {step:<22} {seconds:>8.1f}")
    print(f"{count:>8,} {timing['attempts']:,} attempts, {retried:,} retries, {asked:,} outcomes")
    rest = timing["attempts"] / max(generation - grading, 1e-9)
    rate = timing["attempts"] / generation
    print(f"{count:>8,} ceiling: {rate:,.0f} attempts a second, {rest:,.0f} without grading")
    print(f"{count:>8,} journal {size_of(run) / 2**20:,.0f} MiB")
    sys.stdout.flush()


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [10_000, 100_000])
