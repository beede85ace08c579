"""A run is concluded in one pass over its journal: how often it is read, and what it comes to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.careless import GOOD
from tests.conftest import Answers
from tests.report_runs import FAILING, make_run
from vllm_eval.conclude.conclude import concluded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench

COUNT_OPENS = """
import atexit, json, sys
from collections import Counter
opened = Counter()
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(sys.argv[2]):
        frame = sys._getframe()
        while "vllm_eval" not in frame.f_code.co_filename:
            frame = frame.f_back
        opened[frame.f_code.co_name] += 1
sys.addaudithook(hook)
from vllm_eval import cli
try:
    cli.main(sys.argv[3:])
finally:
    with open(sys.argv[1], "w") as out:
        json.dump(opened, out)
"""
WHOLE = "read_journal"
"""The one function that parses every line of a journal."""


def opens(place: Path, *arguments: str, name: str = "attempts.jsonl") -> Counter[str]:
    """How often each function opens a file of that name while a command runs."""
    command = [sys.executable, "-c", COUNT_OPENS, str(place / "opens.json"), name, *arguments]
    subprocess.run(command, check=False, capture_output=True)
    return Counter(json.loads((place / "opens.json").read_text()))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", FAILING)


def test_an_interrupted_run_is_parsed_once_to_conclude_it(run: Path, tmp_path: Path) -> None:
    (run / "comparison.json").unlink()
    assert opens(tmp_path, "diagnose", str(run)) == {
        WHOLE: 1,
        "_open": 1,  # for the lock, and
        "_whole_length": 1,  # to cut off a torn line
        "_write_arm": 2,  # each answer fetched by its place
    }


def test_a_concluded_run_is_rendered_without_parsing_its_journal(run: Path, tmp_path: Path) -> None:
    assert opens(tmp_path, "report", str(run)) == {
        "read_details": 3,  # for the page and, by their places, the failures in two more files
        "write_zip": 1,
    }
    assert opens(tmp_path, "diagnose", str(run)) == {}


def test_a_report_reads_its_figures_once_and_a_conclusion_the_manifest(
    run: Path, tmp_path: Path
) -> None:
    figures, manifest = "comparison.json", "manifest.json"
    assert opens(tmp_path, "report", str(run), name=figures) == {
        "_bytes_of": 1,  # through `read_comparison`
        "write_zip": 1,
    }
    (run / figures).unlink()
    assert opens(tmp_path, "diagnose", str(run), name=manifest) == {"read": 1}


def test_an_evaluation_parses_its_journal_at_its_start_and_at_its_end(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()}, {"concept_id": "K2", "text": "no", "deaths": 1})
    found = opens(tmp_path, *bench.arguments(), "--report")
    assert (found[WHOLE], found["_write_arm"], found["read_details"]) == (2, 2, 3)
    assert found["write_zip"] == 1


def test_an_evaluation_reads_its_figures_once(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    found = opens(tmp_path, *bench.arguments("--report"), name="comparison.json")
    assert found == {"_bytes_of": 1, "write_zip": 1}


def test_an_evaluation_reads_its_manifest_when_resumed_and_writes_what_changes(
    bench: Bench, answers: Answers, tmp_path: Path
) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    arguments = bench.arguments()
    assert opens(tmp_path, *arguments, name="manifest.json.part") == {
        "written_whole": 3,  # with the plan, then its engine, then its session
    }
    (run,) = bench.output_dir.glob("pupil_*")
    resume = [*arguments, "--resume", str(run)]
    assert opens(tmp_path, *resume, name="manifest.json") == {"read": 1, "write_zip": 1}
    assert opens(tmp_path, *resume, name="manifest.json.part") == {}
    shutil.rmtree(run)
    assert opens(tmp_path, *arguments, name="manifest.json") == {"write_zip": 1}


def test_a_report_of_answers_that_were_changed_says_so(bench: Bench, run: Path) -> None:
    journal = run / "attempts.jsonl"
    text = journal.read_bytes()
    journal.write_bytes(text.replace(b'{"arm"', b'{"arn"', 1))
    done = bench.call("report", str(run))
    assert done.code == 2
    assert "the journal is damaged at byte 0" in " ".join(done.err.split())


def test_a_run_of_the_schema_before_is_concluded_anew(bench: Bench, run: Path) -> None:
    comparison = json.loads((run / "comparison.json").read_text())
    old = {key: value for key, value in comparison.items() if key != "index"}
    old |= {"schema_version": 4, "owed": old.pop("pending")}
    (run / "comparison.json").write_text(json.dumps(old))
    manifest = json.loads((run / "manifest.json").read_text())
    (session,) = manifest["sessions"]
    session["judging_s"] = session.pop("grading_s")
    (run / "manifest.json").write_text(json.dumps(manifest))
    with (run / "config.yaml").open("a") as config:
        config.write("journal_part_mib: 256\n")
    assert bench.call("report", str(run)).code == 0
    after = json.loads((run / "comparison.json").read_text())
    assert after["timing"].pop("grading_s") == session["judging_s"]
    assert after["environment"].pop("sessions") == [session]
    del comparison["timing"]["grading_s"], comparison["environment"]["sessions"]
    assert after == comparison


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Four cases, two samples each, free and constrained; a colon of K1 can be repaired.

    Every attempt takes a second, and a quarter of it to its first token. The first samples of K2
    are truncated.
    """
    more = ("--samples-per-case", "2", "-c", "constrain=beside")
    script: list[dict[str, object]] = [
        *FAILING,
        {"concept_id": "K1", "arm": "baseline", "text": GOOD.replace("vision, and", "vision: and")},
        {"arm": "baseline+constrained", "text": Answers().text()},
        {"arm": "pupil+constrained", "text": Answers().text()},
        {"concept_id": "K3", "arm": "pupil+constrained", "error": "out of memory"},
    ]
    folder = make_run(tmp_path / "beside", script, 4, ("pupil",), *more)
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    lines.sort(key=lambda row: [row[key] for key in ("arm", "concept_id", "sample", "attempt")])
    for number, row in enumerate(lines):
        row |= {"total_s": 1.0, "ttft_s": 0.25, "queued_s": 0.125, "finished_at": number + 1.0}
        row |= {"output_tokens": 10 + 10 * row["attempt"], "prompt_tokens": 7, "cached_tokens": 2}
        row["truncated"] = row["concept_id"] == "K2" and row["sample"] == 0
    text = "".join(json.dumps(row) + "\n" for row in lines)
    (folder / "attempts.jsonl").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sessions"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "comparison.json").unlink()
    return folder


def test_a_run_comes_to_these_counts(beside: Path) -> None:
    found = concluded(beside)
    counts = ("total", "valid", "failed", "errors", "first_valid", "attempts", "cases")
    assert {arm: [of[key] for key in counts] for arm, of in found["arms"].items()} == {
        "baseline": [8, 6, 2, 0, 6, 10, 4],
        "pupil": [8, 4, 4, 2, 2, 10, 4],
    }
    means = [[of["mean"], of["mean_all"]] for of in found["arms"].values()]
    assert means == [pytest.approx([0.909375, 0.68203125]), [1.0, 0.5]]
    made = ("attempt", "made", "valid")
    attempts = found["attempts"].items()
    assert {arm: [[r[k] for k in made] for r in of["by_attempt"]] for arm, of in attempts} == {
        "baseline": [[1, 8, 6], [2, 2, 0]],
        "baseline+constrained": [[1, 8, 8]],
        "pupil": [[1, 6, 2], [2, 4, 2]],
        "pupil+constrained": [[1, 6, 6]],
    }
    group = ("reason", "arm", "attempts", "outcomes", "truncated")
    assert [[failure[key] for key in group] for failure in found["failures"]] == [
        ["engine_error", "pupil", 6, 2, 0],
        ["engine_error", "pupil+constrained", 6, 2, 0],
        ["invalid_review_yaml", "baseline", 4, 2, 0],
        ["review_missing_narrative", "pupil", 4, 2, 2],
        ["missing_yaml_blocks", "pupil", 2, 0, 0],
    ]


def test_a_run_comes_to_this_diagnosis(beside: Path) -> None:
    found = concluded(beside)
    counts = ("attempts", "outcomes", "truncated", "repaired", "retried", "then_valid")
    clusters = found["diagnosis"]["clusters"]
    assert [(of["arm"], of["cluster"], [of[key] for key in counts]) for of in clusters] == [
        ("pupil", "no_answer", [6, 2, 0, 0, 4, 0]),
        ("pupil+constrained", "no_answer", [6, 2, 0, 0, 4, 0]),
        ("pupil", "missing_key", [4, 2, 2, 0, 2, 0]),
        ("baseline", "unquoted_colon", [4, 2, 0, 2, 2, 0]),
        ("pupil", "prose", [2, 0, 0, 0, 2, 2]),
    ]
    remedies = found["diagnosis"]["remedies"]
    assert [(of["arm"], of["name"], of["addressed"]) for of in remedies] == [
        ("baseline", "repair", 2),
        ("baseline", "constrain", 2),
        ("baseline", "retries", 2),
        ("pupil", "constrain", 2),
        ("pupil", "retries", 2),
    ]
    assert [of["recovered"] for of in remedies] == pytest.approx([2, 2, 0, 2, 1])
    assert {arm: of["repaired"] for arm, of in found["repair"]["arms"].items()} == {
        "baseline": 2,
        "pupil": 0,
    }


def test_a_run_comes_to_these_tokens_and_seconds(beside: Path) -> None:
    found = concluded(beside)
    timing = found["timing"]
    assert [timing["attempts"], timing["output_tokens"], timing["generation_s"]] == [34, 740, 46.0]
    assert timing["output_tokens_per_s"] == pytest.approx(740 / 46)
    tokens = ("attempts", "prompt_tokens", "cached_tokens", "output_tokens", "retry_output_tokens")
    assert {arm: [of[key] for key in tokens] for arm, of in timing["arms"].items()} == {
        "baseline": [10, 70, 20, 220, 60],
        "baseline+constrained": [8, 56, 16, 160, 0],
        "pupil": [10, 70, 20, 240, 120],
        "pupil+constrained": [6, 42, 12, 120, 0],
    }
    assert timing["all"]["itl"]["p50"] == pytest.approx(0.75 / 19)
    assert timing["all"]["e2e"] == {"p50": 1.0, "p90": 1.0, "p99": 1.0}
    over, width = timing["over_time"], timing["over_time"]["width_s"]
    assert sum(over["output_tokens_per_s"]) * width == pytest.approx(740)
    assert sum(over["retries_per_s"]) * width == pytest.approx(6)
    assert {arm: list(of["retries"].values()) for arm, of in found["attempts"].items()} == {
        "baseline": [2, 60, 2.0],
        "baseline+constrained": [0, 0, 0],
        "pupil": [4, 120, 4.0],
        "pupil+constrained": [0, 0, 0],
    }
    sides = ("attempts", "output_tokens", "truncated", "tokens_per_attempt", "tokens_per_s")
    for arm, free, held in (
        ("baseline", [10, 220, 1, 22.0, 19 / 0.75], [8, 160, 1, 20.0, 19 / 0.75]),
        ("pupil", [10, 240, 1, 24.0, 19 / 0.75], [6, 120, 1, 20.0, 19 / 0.75]),
    ):
        both = found["constrained"]["arms"][arm]
        assert [both["free"][key] for key in sides] == pytest.approx(free)
        assert [both["constrained"][key] for key in sides] == pytest.approx(held)
