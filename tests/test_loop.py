"""The loop, seen in the journal: who is asked again, when, how, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_eval.engines.scripted import CAPACITY
from vllm_eval.run.loop import derive_seed

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run

REPOSITORY = Path(__file__).parents[1]


def ends(run: Run, arm: str = "pupil", case: str = "K1") -> list[tuple[str, str | None, bool]]:
    """Status, reason and finality of each attempt of one arm and case."""
    return [(a["status"], a["reason"], a["final"]) for a in run.attempts(arm, case)]


def test_a_good_first_answer_is_the_only_attempt(bench: Bench, answers: Answers) -> None:
    bench.dataset()
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert [ends(run, arm, c) for arm in ("baseline", "pupil") for c in ("K1", "K2")] == [
        [("success", None, True)]
    ] * 4


def test_two_retries_are_three_attempts(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.bad()})
    failed = ("format_error", "review_missing_narrative")
    assert ends(bench.run("--retries", "2")) == [
        (*failed, False),
        (*failed, False),
        (*failed, True),
    ]


def test_without_retries_the_first_attempt_is_final(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.bad()})
    run = bench.run("--retries", "0")
    assert ends(run) == [("format_error", "review_missing_narrative", True)]


def test_a_good_answer_ends_the_retries(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.bad()}, {"attempt": 2, "text": answers.text()})
    assert [status for status, _, _ in ends(bench.run("--retries", "5"))] == [
        "format_error",
        "success",
    ]


def test_only_what_failed_is_asked_again(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K2", "arm": "pupil", "attempt": 1, "text": answers.bad()},
    )
    run = bench.run()
    asked = {(a, c): len(run.attempts(a, c)) for a in ("baseline", "pupil") for c in ("K1", "K2")}
    assert asked == {
        ("baseline", "K1"): 1,
        ("baseline", "K2"): 1,
        ("pupil", "K1"): 1,
        ("pupil", "K2"): 2,
    }


@pytest.fixture
def straggling(bench: Bench, answers: Answers) -> Run:
    """K1 takes its time over one answer; K2 needs three."""
    bench.dataset(2)
    bench.answers(
        {"concept_id": "K1", "text": answers.text(), "seconds": 1.2},
        {"concept_id": "K2", "text": answers.bad(), "seconds": 0.1},
        {"concept_id": "K2", "attempt": 3, "text": answers.text(), "seconds": 0.1},
    )
    return bench.run()


def test_a_straggler_does_not_hold_the_retries_of_others(straggling: Run) -> None:
    order = [(a["concept_id"], a["attempt"]) for a in straggling.journal if a["arm"] == "pupil"]
    assert order == [("K2", 1), ("K2", 2), ("K2", 3), ("K1", 1)]


def test_retries_run_while_the_straggler_still_answers(straggling: Run) -> None:
    third, slow = straggling.attempts("pupil", "K2")[2], straggling.attempts("pupil", "K1")[0]
    assert third["finished_at"] < slow["finished_at"]
    assert slow["finished_at"] >= 1.2


def test_each_attempt_has_a_seed_of_its_own(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.bad()})
    assert len({a["seed"] for a in bench.run().attempts("pupil", "K1")}) == 3


def test_seeds_depend_on_the_request_and_not_on_the_order(bench: Bench, answers: Answers) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.bad()})
    seeds = {(a["concept_id"], a["attempt"]): a["seed"] for a in bench.run("--seed", "5").journal}
    assert seeds == {
        (f"K{n}", k): derive_seed(5, f"K{n}", 0, k) for n in (1, 2, 3) for k in (1, 2, 3)
    }


def test_base_and_student_are_asked_with_the_same_seed(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert run.attempts("baseline", "K1")[0]["seed"] == run.attempts("pupil", "K1")[0]["seed"]


def test_derived_seeds_differ_in_every_part_and_fit_31_bits() -> None:
    keys = [(1, "a", 0, 1), (2, "a", 0, 1), (1, "b", 0, 1), (1, "a", 1, 1), (1, "a", 0, 2)]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_derived_seed_never_changes_between_versions() -> None:
    # blake2b of "42|K1|0|1", four bytes, top bit cleared; an interrupted run relies on it.
    assert derive_seed(42, "K1", 0, 1) == 1168746271


def test_a_retry_is_asked_with_a_reminder_that_names_the_problem(
    bench: Bench, answers: Answers
) -> None:
    template = bench.folder / "mine.j2"
    template.write_text("{{ reminder or 'First.' }}", encoding="utf-8")
    bench.dataset(1)
    bench.answers(
        {"text": answers.bad()},
        {"attempt": 2, "text": answers.text(review=answers.review(narrative="w " * 121))},
    )
    first, second, third = bench.run("--prompt-template", str(template)).attempts("pupil", "K1")
    # The scripted engine counts words, and each reminder holds the sentence of its problem.
    frame = second["prompt_tokens"] - len(first["error"].split())
    assert first["prompt_tokens"] == 1
    assert frame > 5
    assert third["prompt_tokens"] == frame + len(second["error"].split())
    assert "narrative" in first["error"]
    assert "120 words" in second["error"]


def test_engine_errors_are_retried(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()}, {"attempt": 1, "error": "one block short"})
    assert ends(bench.run()) == [("error", "engine_error", False), ("success", None, True)]


def test_engine_errors_end_as_error_and_never_as_format_error(bench: Bench) -> None:
    bench.dataset(1)
    bench.answers({"error": "no blocks left"})
    run = bench.run()
    assert ends(run)[-1] == ("error", "engine_error", True)
    assert [a["error"] for a in run.journal] == ["no blocks left"] * 6


def test_the_last_attempt_decides_even_when_it_is_an_engine_error(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(1)
    died = [{"attempt": number, "error": "died"} for number in (3, 4, 5)]
    bench.answers({"text": answers.bad()}, *died)
    assert ends(bench.run())[-1] == ("error", "engine_error", True)


def test_an_engine_error_takes_no_attempt_from_the_model(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    errors = [{"attempt": number, "error": "gone"} for number in (1, 3)]
    bench.answers(*errors, {"text": answers.bad()}, {"attempt": 5, "text": answers.text()})
    run = bench.run("--retries", "2")
    bad, gone = (
        ("format_error", "review_missing_narrative", False),
        ("error", "engine_error", False),
    )
    assert ends(run) == [gone, bad, gone, bad, ("success", None, True)]
    rows = run.attempts("pupil", "K1")
    assert [row["attempt"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["engine_errors"] for row in rows] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("retries", ["0", "5"])
def test_an_answer_is_given_up_after_three_engine_errors(bench: Bench, retries: str) -> None:
    bench.dataset(1)
    bench.answers({"error": "no blocks left"})
    assert len(bench.run("--retries", retries).attempts("pupil", "K1")) == 3


def test_after_an_engine_error_the_same_attempt_is_made_again(
    bench: Bench, answers: Answers
) -> None:
    """With the prompt and seed it had, be it the first or one with a reminder."""
    template = bench.folder / "mine.j2"
    template.write_text("{{ reminder or 'First.' }}", encoding="utf-8")
    bench.dataset(1)
    errors = [{"attempt": number, "error": "gone"} for number in (1, 3)]
    bench.answers(*errors, {"text": answers.bad()}, {"attempt": 4, "text": answers.text()})
    gone, bad, again, good = bench.run("--prompt-template", str(template)).attempts("pupil", "K1")
    assert bad["prompt_tokens"] == 1
    assert good["prompt_tokens"] > 5
    assert (gone["seed"], again["seed"]) == (bad["seed"], good["seed"])
    assert [bad["seed"], good["seed"]] == [derive_seed(42, "K1", 0, number) for number in (1, 2)]


@pytest.fixture
def troubled(bench: Bench, answers: Answers) -> Run:
    """The student's K1 is valid at its first try and its K2 at its second, beside engine errors."""
    bench.dataset(2)
    bench.answers(
        {"text": answers.text()},
        *({"arm": "pupil", "attempt": number, "error": "gone"} for number in (1, 3)),
        {"concept_id": "K2", "arm": "pupil", "attempt": 2, "text": answers.bad()},
    )
    return bench.run()


def test_an_engine_error_does_not_count_against_first_try(troubled: Run) -> None:
    student = troubled.result("student")
    assert student["first_attempt_valid_samples"] == 1
    assert {row["concept_id"]: row["attempts"] for row in student["results"]} == {"K1": 1, "K2": 2}
    assert troubled.result("comparison")["arms"]["pupil"]["attempts"] == 3


def test_figures_by_attempt_and_of_retries_are_of_the_models_attempts(troubled: Run) -> None:
    found = troubled.result("comparison")
    steps = found["attempts"]["pupil"]["by_attempt"]
    assert [(s["attempt"], s["made"], s["valid_by_then"]) for s in steps] == [
        (1, 2, 0.5),
        (2, 1, 1.0),
    ]
    assert found["attempts"]["pupil"]["retries"]["attempts"] == 1
    timing = found["timing"]["arms"]["pupil"]
    assert (timing["attempts"], timing["retry_attempts"]) == (3, 1)
    clusters = {of["cluster"]: of for of in found["diagnosis"]["clusters"]}
    counts = ("attempts", "retried", "then_valid")
    assert {name: [of[key] for key in counts] for name, of in clusters.items()} == {
        "missing_key": [1, 1, 1],
        "no_answer": [3, 3, 2],
    }


@pytest.mark.parametrize("lines", range(8))
def test_engine_errors_are_counted_over_all_sessions(
    bench: Bench, troubled: Run, lines: int
) -> None:
    def rows(run: Run) -> list[tuple[object, ...]]:
        keys = ("arm", "concept_id", "attempt", "engine_errors", "final", "seed", "prompt_tokens")
        return sorted(tuple(row[key] for key in keys) for row in run.journal)

    whole, journal = rows(troubled), troubled.folder / "attempts.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
    assert rows(bench.call("--resume", str(troubled.folder))) == whole


def test_a_journal_that_counted_engine_errors_as_attempts_still_does(
    bench: Bench, troubled: Run
) -> None:
    journal = troubled.folder / "attempts.jsonl"
    lines = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    for line in lines:
        del line["engine_errors"]
    bench.write(journal, lines)
    assert bench.call("--resume", str(troubled.folder)).code == 0
    assert troubled.result("student")["first_attempt_valid_samples"] == 0
    steps = troubled.result("comparison")["attempts"]["pupil"]["by_attempt"]
    assert [step["made"] for step in steps] == [2, 2, 1, 1]


def test_grading_again_counts_the_models_attempts(bench: Bench, troubled: Run) -> None:
    journal = str(troubled.folder / "attempts.jsonl")
    for stored in (journal, str(troubled.folder)):
        run = bench.call("compare", stored, stored, "--json")
        assert run.code == 0
        (pair,) = (arm for arm in json.loads(run.out)["arms"] if arm["a"] == "pupil")
        found = pair["comparison"]["arms"]["pupil (A)"]
        assert (found["first_valid"], found["attempts"]) == (1, 3)


def test_every_case_of_a_large_set_ends_exactly_once_per_arm(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(400)
    bench.answers(
        {"text": answers.text()},
        {"arm": "pupil", "attempt": 1, "text": answers.bad()},
        {"concept_id": "K7", "error": "gone"},
    )
    run = bench.run()
    final = [(a["arm"], a["concept_id"]) for a in run.journal if a["final"]]
    assert sorted(final) == sorted(
        (a, f"K{n}") for a in ("baseline", "pupil") for n in range(1, 401)
    )


PROBE = """
import re, sys
from vllm_eval.cli import main
try:
    main(sys.argv[1:])
finally:  # not ru_maxrss, which a process inherits from the one that started it
    print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def peak_mib(bench: Bench, count: int) -> int:
    """Most memory a run of its own takes over so many cases of 100 KB each."""
    bench.dataset(count, concept="c" * 100_000)
    command = [sys.executable, "-c", PROBE, *bench.arguments("--retries", "0")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    return int(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_cases(bench: Bench, answers: Answers) -> None:
    bench.answers({"text": "no block"})
    few, many = peak_mib(bench, 200), peak_mib(bench, 1_200)
    assert many - few < 50  # 1,000 more cases are 100 MB on disk


def test_never_more_than_the_capacity_is_in_flight(bench: Bench, answers: Answers) -> None:
    bench.dataset(CAPACITY)  # two arms: exactly two full batches
    bench.answers({"text": answers.text(), "seconds": 0.4})
    finished = sorted(a["finished_at"] for a in bench.run().journal)
    assert finished[0] >= 0.4
    assert finished[CAPACITY] >= 0.8  # how soon the first batch ends: scripts/benchmark_overlap
