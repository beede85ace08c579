"""The order of the work where not all adapters have a slot, seen in the journal.

The scripted engine has no slots and answers in the order asked; `max_loras` decides that order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import po_inputs
from tests.test_settling import CAP, SETTLE
from vllm_eval.engines.scripted import ANY, CAPACITY, ScriptedEngine, ScriptLine
from vllm_eval.records import BASELINE, Arm, Attempt, Case, Ledger, Progress
from vllm_eval.run.loop import Job, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.conftest import Answers, Bench, Run
    from vllm_eval.tasks import Task

STUDENTS = [f"s{number}" for number in range(5)]
CASES = 6


@pytest.fixture
def five(bench: Bench, answers: Answers) -> Bench:
    """Five students and six cases; one student's first answer to one of them is bad."""
    bench.dataset(CASES)
    bad = {"arm": "s1", "concept_id": "K2", "attempt": 1, "text": answers.bad()}
    bench.answers({"text": answers.text()}, bad)
    return bench


def compare(bench: Bench, slots: int, *more: str) -> Run:
    """All five students, with so many slots, in an output folder of their own."""
    bench.output_dir = bench.folder / f"slots{slots}"
    given = [word for word in bench.arguments(*more) if word not in ("--adapter", "pupil")]
    given += [word for name in STUDENTS for word in ("--adapter", name)]
    return bench.call(*given, "-c", f"engine_args.max_loras={slots}")


def loads(journal: Sequence[dict[str, Any]], count: int) -> int:
    """How often so many slots are filled, if the least recently used adapter makes room."""
    held: list[str] = []
    loaded = 0
    for arm in (attempt["arm"] for attempt in journal if attempt["arm"] != BASELINE):
        loaded += arm not in held
        held = [*(name for name in held if name != arm), arm][-count:]
    return loaded


def asked_first(run: Run) -> list[tuple[str, str]]:
    return [(a["arm"], a["concept_id"]) for a in run.journal if a["attempt"] == 1]


def drawn(asked: Sequence[tuple[str, str]]) -> list[str]:
    """The cases in their order."""
    cases = [case for arm, case in asked if arm == BASELINE]
    assert len(cases) == CASES
    return cases


def test_with_a_slot_for_each_the_arms_are_asked_side_by_side(five: Bench) -> None:
    arms = [BASELINE, *STUDENTS]
    asked = asked_first(compare(five, 5))
    assert asked == [(arm, case) for case in drawn(asked) for arm in arms]
    assert asked == asked_first(compare(five, 9))


def test_with_fewer_slots_the_adapters_take_turns_over_all_cases(five: Bench) -> None:
    run = compare(five, 2, "--retries", "0")
    asked = asked_first(run)
    assert asked == [
        (arm, case)
        for side_by_side in ([BASELINE, "s0", "s1"], ["s2", "s3"], ["s4"])
        for case in drawn(asked)
        for arm in side_by_side
    ]
    assert loads(run.journal, 2) == len(STUDENTS)


def test_an_adapter_keeps_its_slot_until_its_last_retry_and_the_others_go_on(
    bench: Bench, answers: Answers
) -> None:
    """The student `s1` is slow with one case; meanwhile the others share the other slot."""
    bench.dataset(CASES)
    slow = {"arm": "s1", "concept_id": "K2", "text": answers.bad(), "seconds": 0.2}
    bench.answers({"text": answers.text()}, slow)
    run = compare(bench, 2, "--retries", "2")
    finished = [a["arm"] for a in run.journal if a["arm"] not in (BASELINE, "s1")]
    assert finished == [arm for arm in ("s0", "s2", "s3", "s4") for _ in range(CASES)]
    assert [a["attempt"] for a in run.journal[-3:] if a["arm"] == "s1"][-2:] == [2, 3]


def test_slots_decide_neither_an_answer_nor_a_verdict(five: Bench) -> None:
    def found(run: Run) -> tuple[Any, ...]:
        compared = run.result("comparison")
        lines = ((a["arm"], a["concept_id"], a["attempt"], a["seed"]) for a in run.journal)
        return run.code, sorted(lines), compared["arms"], compared["verdicts"]

    assert found(compare(five, 2)) == found(compare(five, 5))


@pytest.mark.parametrize("kept", [0, 3, 14, 25])
def test_a_run_resumed_with_other_slots_answers_what_is_pending(five: Bench, kept: int) -> None:
    run = compare(five, 2)
    before, journal = run.result("comparison")["arms"], run.folder / "attempts.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:kept]))
    again = five.call("--resume", str(run.folder), "-c", "engine_args.max_loras=3")
    assert again.code == run.code
    assert again.result("comparison")["arms"] == before
    assert len(again.journal) == len(lines)


def settled(run: Run) -> tuple[Any, ...]:
    found = run.result("comparison")
    return found["settled"]["cases"], found["verdicts"], found["arms"]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_run_that_is_settled_ends_at_the_same_case_whatever_the_slots(
    bench: Bench, answers: Answers, slots: int
) -> None:
    bench.dataset(CAP)
    failing = [{"concept_id": f"K{n}", "arm": "s3", "text": "no"} for n in range(1, CAP, 3)]
    bench.answers({"text": answers.text()}, *failing)
    expected = settled(compare(bench, 5, *SETTLE))
    run = compare(bench, slots, *SETTLE)
    assert settled(run) == expected
    blocks = len({a["concept_id"] for a in run.journal}) // 16 + 1
    # A block begins with the group that the last one ended with.
    assert loads(run.journal, slots) <= blocks * (len(STUDENTS) - slots) + slots


def test_a_variant_shares_the_slot_of_its_free_arm(task: Task) -> None:
    names = [BASELINE, "a", "b", "c"]
    free = [Arm(name) for name in names]
    variants = [Arm(f"{name}+constrained", grammar="g", variant_of=name) for name in names]
    case = Case("K1", 1, None, po_inputs("a shop", "functional: []"))
    order: list[str] = []
    job = Job(task, [*free, *variants], lambda: [case], 1, 1, 0, slots=1)
    engine, progress = ScriptedEngine([ScriptLine(ANY, text="no")]), Progress(8)
    evaluate(
        job,
        engine,
        Ledger(set(), {}),
        lambda attempts: order.extend(attempt.arm for attempt in attempts),
        progress,
        lambda _: None,
    )
    assert order == [arm for name in names for arm in (name, f"{name}+constrained")]


@pytest.mark.parametrize("slots", [None, 1, 3])
def test_cases_are_read_as_their_turn_comes(task: Task, slots: int | None) -> None:
    """Of 500 cases, no more than fit into the engine are ahead of the answers."""
    count, read, answered, most = 500, 0, 0, 0

    def cases() -> Iterator[Case]:
        nonlocal read
        for number in range(count):
            read += 1
            yield Case(f"K{number}", number + 1, None, po_inputs("a shop", "functional: []"))

    def record(attempts: Sequence[Attempt]) -> None:
        nonlocal answered, most
        most = max(most, read * (len(arms) if slots is None else 1) - answered)
        answered += len(attempts)

    arms = [Arm(BASELINE), *map(Arm, STUDENTS)]
    job = Job(task, arms, cases, 1, 1, 0, slots=slots)
    engine = ScriptedEngine([ScriptLine(ANY, text="no")])
    evaluate(job, engine, Ledger(set(), {}), record, Progress(count * 6), lambda _: None)
    assert answered == count * len(arms)
    assert most <= CAPACITY + len(arms)
