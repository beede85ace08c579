"""What many adapters in one run take.

`scripted`: the program around the model. So many students answer the same cases at once, with
answers of the size of a teacher's; some fail. Each command is a process of its own, whose memory is
read from the kernel.

`engine`: the demo's engine with copies of the demo's adapter at different scales (`lora_alpha`),
made in a temporary folder. `--alone` of them are also evaluated in runs of one student each, and
compared with the run that has as many: the base is then asked once instead of each time, and the
engine starts once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from scripts.benchmark_volume import answer, watch, write_cases
from vllm_eval.config import machine
from vllm_eval.store.folder import create_run, write_json

ADAPTER = Path("vllm_eval/demo/po_student_demo")
SCALES = (12.0, 20.0)
"""Range of `lora_alpha`; the demo's own is 16."""
FAILING = 7
"""Every so many-th case fails in the first attempt of each student, in another place for each."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="scripted, engine; both by default")
    parser.add_argument("--students", help="how many, by default 2,8,32,100 and 1,8,32")
    parser.add_argument("--cases", type=int, help="by default 100 and 20")
    parser.add_argument("--alone", type=int, default=8, help="runs of one student each")
    given = parser.parse_args()
    parts, found = given.parts or ["scripted", "engine"], dict[str, Any]()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        if "scripted" in parts:
            counts = numbers(given.students or "2,8,32,100")
            found["scripted"] = scripted(Path(name), counts, given.cases or 100)
        if "engine" in parts:
            counts = numbers(given.students or "1,8,32")
            found["engine"] = engine(Path(name), counts, given.cases or 20, given.alone)
    found["machine"] = asdict(machine.detect())
    found["load_average"] = {"before": before, "after": os.getloadavg()}
    folder = create_run(Path("results/benchmarks"), "adapters", datetime.now().astimezone()).path
    sys.stdout.write(f"written to {write_json(folder / 'adapters.json', found)}\n")


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def scripted(folder: Path, counts: list[int], cases: int) -> list[Row]:
    """A run without a report, and its report, for each number of students."""
    rows = []
    for count in counts:
        work = folder / f"scripted{count}"
        work.mkdir()
        write_cases(work / "cases.jsonl", cases)
        write_script(work / "script.jsonl", count, cases)
        names = [f"--adapter=student{number}" for number in range(count)]
        files = [f"--dataset-path={work / 'cases.jsonl'}", f"--script={work / 'script.jsonl'}"]
        command = ["--engine=scripted", "--profile=none", *names, *files]
        run = watch([*command, "--no-report", f"--output-dir={work / 'out'}"])
        (path,) = (work / "out").iterdir()
        timing = json.loads((path / "comparison.json").read_bytes())["timing"]
        report = watch(["report", str(path)])
        rows.append(
            {"students": count, "cases": cases}
            | {f"run_{key}": value for key, value in asdict(run).items()}
            | {"answers_s": timing["generation_s"], "html_mib": mib(path / "report.html")}
            | {f"report_{key}": value for key, value in asdict(report).items()}
        )
        say(rows[-1])
    return rows


def write_script(path: Path, students: int, cases: int) -> None:
    good, bad = answer(whole=True), answer(whole=False)
    lines: list[Row] = [{"concept_id": "*", "text": good}]
    for student in range(students):
        for number in range(student % FAILING, cases, FAILING):
            line = {"concept_id": f"V{number:06}", "arm": f"student{student}", "text": bad}
            lines.append(line if number % 2 else line | {"attempt": 1})
    with path.open("wb") as out:
        out.writelines(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


def engine(folder: Path, counts: list[int], cases: int, alone: int) -> Row:
    """Runs of the demo with copies of its adapter."""
    copies = make_copies(folder / "copies", max(*counts, alone))
    together = {count: evaluate(folder, copies[:count], cases) for count in counts}
    singles = [evaluate(folder, [copy], cases) for copy in copies[:alone]]
    found: Row = {"together": list(together.values()), "alone": singles}
    if alone in together:
        for key in ("command_s", "processor_s"):
            found[f"{key}_ratio"] = together[alone][key] / sum(single[key] for single in singles)
            words = f"{alone} in one run over {alone} runs of one"
            sys.stdout.write(f"{words}, {key}: {found[f'{key}_ratio']:.3f}\n")
    return found


def make_copies(folder: Path, count: int) -> list[Path]:
    """Copies of the demo's adapter whose updates are scaled evenly over `SCALES`."""
    low, high = SCALES
    copies = []
    for number in range(count):
        copy = Path(shutil.copytree(ADAPTER, folder / f"copy{number:02}"))
        settings = json.loads((copy / "adapter_config.json").read_bytes())
        settings["lora_alpha"] = low + (high - low) * number / max(1, count - 1)
        (copy / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
        copies.append(copy)
    return copies


def evaluate(folder: Path, adapters: list[Path], cases: int) -> Row:
    """One command, with a report; seconds, tokens and memory."""
    output = folder / f"run{len(list(folder.iterdir()))}"
    options = [f"--max-samples={cases}", f"--output-dir={output}"]
    given = [f"--adapter={path}" for path in adapters]
    begin = time.monotonic()
    used = watch(["--config=demo", *options, *given]).processor_s
    (run,) = output.iterdir()
    timing = json.loads((run / "comparison.json").read_bytes())["timing"]
    keys = ("engine_load_s", "generation_s", "output_tokens_per_s", "peak_host_mib", "total_s")
    row = {"students": len(adapters), "cases": cases, "command_s": time.monotonic() - begin}
    row |= {"processor_s": used} | {key: timing[key] for key in keys} | {"load": os.getloadavg()[0]}
    say(row)
    return row


def mib(path: Path) -> float:
    return path.stat().st_size / 2**20


def say(row: Row) -> None:
    words = (f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
    sys.stdout.write(f"{', '.join(words)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
