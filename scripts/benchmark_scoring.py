"""Our scoring against a straightforward one: the same 359 teacher answers, one core, one process.

The straightforward one is how a validator and a metric written apart do it: pure-Python
`yaml.SafeLoader`, each block parsed by the validator and again by the metric, the requirements
parsed for every answer. It shares our regular expressions, rules and points, so that only the
way of working differs, and it must come to the same results. The two alternate, so that a machine
that slows down slows both; the median of the ratios counts.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from vllm_eval.records import BASELINE, Case
from vllm_eval.tasks import open_task, product_owner_metric
from vllm_eval.tasks.check import compile_contract
from vllm_eval.tasks.parse import Parsed, extract_block

DATA = Path("../shared/data/po_teacher_supervised.jsonl")
INLINE_CODE = re.compile(r"`([^`]+)`")
LABELS = ("VISION", "REVIEW")
CONTRACT = compile_contract(open_task("product_owner").declaration)
Results = list[tuple[str | None, float | None]]


def main(pairs: int, answers: int) -> None:
    if not DATA.is_file():
        print(f"skipped: no {DATA} beside this checkout")
        return
    work = read_work()
    ratios = []
    expected = straightforward(work[:20])
    assert expected == ours(work[:20]), "the two do not come to the same results"  # and warms up
    for _ in range(pairs):
        slow, first = timed(straightforward, work)
        fast, second = timed(ours, work)
        assert first == second
        ratios.append(slow / fast)
        each = (1000 * seconds / len(work) for seconds in (slow, fast))
        print("straightforward {:.2f} ms, ours {:.2f} ms an answer".format(*each))
    print(f"{len(work)} answers, {pairs} pairs, straightforward / ours:")
    print(f"median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")
    if answers:
        score_many(work, answers)


def read_work() -> list[tuple[Case, str]]:
    """Each teacher answer with its case; the requirements stand inside the prompt."""
    work = []
    with DATA.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            _, found, rest = row["prompt"].partition("REQUIREMENTS:\n")
            requirements, end, _ = rest.rpartition("\n\nRespond only")
            assert found, f"{DATA}, line {number}: no requirements in the prompt"
            assert end, f"{DATA}, line {number}: no end of the requirements"
            inputs = {"concept": "", "requirements_yaml": requirements}
            work.append((Case(f"T{number}", number, None, inputs), row["response"]))
    return work


def timed(grade: object, work: list[tuple[Case, str]]) -> tuple[float, Results]:
    assert callable(grade)
    start = time.process_time()
    results = grade(work)
    return time.process_time() - start, results


def ours(work: list[tuple[Case, str]]) -> Results:
    task = open_task("product_owner")
    product_owner_metric.read_requirements.cache_clear()
    graded = (task.grade(case, text) for case, text in work)
    return [(j.problem.reason if j.problem else None, j.score) for j in graded]


def straightforward(work: list[tuple[Case, str]]) -> Results:
    return [(validate(text), measure(case, text)) for case, text in work]


def validate(text: str) -> str | None:
    blocks = [extract_block(text, label) for label in LABELS]
    if None in blocks:
        return "missing_yaml_blocks"
    parsed = (load(block or "") for block in blocks)
    problem = CONTRACT.check(dict(zip(LABELS, parsed, strict=True)))
    return problem.reason if problem else None


def measure(case: Case, text: str) -> float | None:
    blocks = [extract_block(text, label) for label in LABELS]
    if None in blocks:
        return None
    loaded = [load(block or "").data for block in blocks]
    mappings = {
        label: data if isinstance(data, dict) else {}
        for label, data in zip(LABELS, loaded, strict=True)
    }
    parts = (
        product_owner_metric.schema(mappings, case),
        product_owner_metric.vision_completeness(mappings, case),
        product_owner_metric._alignment(mappings["REVIEW"], requirements_of(case)),
        product_owner_metric.review_specificity(mappings, case),
    )
    return min(max(sum(min(part, 30) for part in parts) / 120, 0.0), 1.0)


def requirements_of(case: Case) -> tuple[product_owner_metric.Requirement, ...]:
    document = yaml.load(case.inputs["requirements_yaml"], Loader=yaml.SafeLoader)
    found = []
    for section in ("functional_requirements", "non_functional_requirements", "constraints"):
        for entry in document.get(section) or []:
            name = str(entry.get("id") or "").strip().lower()
            found.append(
                product_owner_metric.Requirement(
                    name, product_owner_metric._tokens(str(entry["description"]))
                )
            )
    return tuple(found)


def load(block: str) -> Parsed:
    try:
        return Parsed(yaml.load(block, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        try:
            return Parsed(yaml.load(INLINE_CODE.sub(r"\1", block), Loader=yaml.SafeLoader))
        except yaml.YAMLError:
            return Parsed(error=str(error))


def score_many(work: list[tuple[Case, str]], answers: int) -> None:
    """`score` on a baseline and a student of half of `answers` each, every case of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "cases.jsonl").open("w", encoding="utf-8") as file:
            for number in range(answers // 2):
                case, _ = work[number % len(work)]
                row = {"concept_id": f"N{number}", "tier": "simple"}
                file.write(json.dumps(row | dict(case.inputs)) + "\n")
        files = [folder / f"{arm}_20250101-000000.json" for arm in (BASELINE, "student")]
        for path in files:
            write_results(path, work, answers // 2)
        size = sum(path.stat().st_size for path in files) / 2**20
        command = [sys.executable, "-m", "vllm_eval", "score", *map(str, files)]
        start = time.monotonic()
        process = subprocess.Popen([*command, "--dataset-path", str(folder / "cases.jsonl")])
        peaks: dict[int, int] = {}
        while process.poll() is None:
            watch(process.pid, peaks)
            time.sleep(0.1)
        print(f"{answers} answers, {size:.0f} MiB, {time.monotonic() - start:.0f} s")
        own = peaks.pop(process.pid)
        print(f"peak RSS {own} MiB, of its workers {sorted(peaks.values())} MiB")


def write_results(path: Path, work: list[tuple[Case, str]], count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write('{"config": {}, "results": [\n')
        for number in range(count):
            row = {"concept_id": f"N{number}", "status": "success"}
            row |= {"raw_response": work[number % len(work)][1]}
            file.write((",\n" if number else "") + json.dumps(row, indent=2))
        file.write("\n]}\n")


def watch(pid: int, peaks: dict[int, int]) -> None:
    """Note the peak memory of a process and of its children, in MiB."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = " ".join(read(path) for path in lists).split()
    for number in (pid, *map(int, children)):
        lines = read(Path(f"/proc/{number}/status")).splitlines()
        high = next((line for line in lines if line.startswith("VmHWM")), "VmHWM: 0 kB")
        peaks[number] = max(peaks.get(number, 0), int(high.split()[1]) // 1024)


def read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""  # of a process that has just ended


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [7, 0][len(given) :]))
