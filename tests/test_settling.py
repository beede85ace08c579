"""Cases are drawn until the verdict is settled, and the order of finishing decides nothing."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scripts.outcome_models import MODELS, Model, arms_of, deal
from scripts.simulate_gate import certify
from vllm_eval.compare.gate import decide
from vllm_eval.compare.settling import LEAST_AHEAD, Settling
from vllm_eval.compare.summary import compare_arms
from vllm_eval.config.layers import load_config
from vllm_eval.config.settings import GateConfig
from vllm_eval.errors import ConfigError
from vllm_eval.records import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import Answers, Bench, Run

    Script = Callable[[float, float], None]

GATE = GateConfig(certify=0.95)
CAP = 120
SETTLE = ("--retries", "0", "--certify", "0.95", "--until-settled", "--max-cases", str(CAP))


def outcomes(
    cases: int, students: int, seed: int = 1, ratio: float = 1.0, samples: int = 1
) -> list[Outcome]:
    """Answers to case after case of the base, and of students whose mean is `ratio` times its."""
    chance, found = random.Random(seed), []
    for place, sample in ((p, n) for p in range(cases) for n in range(samples)):
        for arm in ("baseline", *(f"s{n}" for n in range(students))):
            mean = 0.9 if arm == "baseline" else 0.9 * ratio
            score = min(1.0, max(0.0, chance.gauss(mean, 0.05)))
            found.append(made(arm, place, score, sample))
    return found


def made(arm: str, place: int, score: float | None, sample: int = 0) -> Outcome:
    """The answer to a case; without a score it broke the contract."""
    status: Status = "format_error" if score is None else "success"
    first_valid = score is not None
    return Outcome(arm, f"K{place}", None, sample, status, None, score, 1, first_valid=first_valid)


def settling(cases: int, students: int, samples: int = 1, gate: GateConfig = GATE) -> Settling:
    order = {f"K{place}": place for place in range(cases)}
    return Settling(order, ["baseline", *(f"s{n}" for n in range(students))], samples, gate)


def words(
    found: Sequence[Outcome], cases: int, planned: int, students: int, gate: GateConfig = GATE
) -> list[str]:
    """The verdicts of a finished run of the first so many cases."""
    order = {f"K{place}": place for place in range(cases)}
    names = [f"s{n}" for n in range(students)]
    taken = [one for one in found if one.concept_id in order]
    comparison = compare_arms(taken, ["baseline", *names], drawn=order)
    samples = len(taken) // len(order) // (1 + students)
    verdicts = decide(comparison, names, cases * samples, gate, planned=planned)
    return [verdict.word for verdict in verdicts]


@pytest.mark.parametrize(
    ("students", "ratio", "word"), [(1, 1, "PASS"), (2, 1, "PASS"), (2, 0.6, "FAIL")]
)
def test_the_case_found_is_the_first_at_which_the_gate_of_a_finished_run_decides(
    students: int, ratio: float, word: str
) -> None:
    found = outcomes(CAP, students, ratio=ratio)
    settler = settling(CAP, students)
    settler.take(found)
    cases = settler.look() or 0
    assert 5 < cases < CAP
    assert words(found, cases, CAP, students) == [word] * students
    assert "UNDECIDED" in words(found, cases - 1, CAP, students)


def test_one_student_that_passes_settles_the_best_while_another_is_open() -> None:
    good, close = outcomes(CAP, 1), outcomes(CAP, 2, seed=2, ratio=0.9)
    found = good + [one for one in close if one.arm == "s1"]
    best = settling(CAP, 2, gate=GATE.model_copy(update={"select": "best"}))
    every = settling(CAP, 2)
    for settler in (best, every):
        settler.take(found)
    cases = best.look() or 0
    assert every.look() is None
    assert 5 < cases < CAP
    assert words(found, cases, CAP, 2) == ["PASS", "UNDECIDED"]
    assert "PASS" not in words(found, cases - 1, CAP, 2)


@pytest.mark.parametrize("samples", [1, 3])
def test_neither_the_order_nor_the_chunks_of_what_finishes_move_that_case(samples: int) -> None:
    found = outcomes(CAP, 1, samples=samples)
    whole = settling(CAP, 1, samples)
    whole.take(found)
    for seed in range(5):
        chance, settler = random.Random(seed), settling(CAP, 1, samples)
        rest = sorted(found, key=lambda one: (int(one.concept_id[1:]) // 20, chance.random()))
        while rest:
            size = chance.randint(1, 40)
            settler.take(rest[:size])
            rest = rest[size:]
        assert settler.look() == whole.look() is not None


def test_only_cases_without_a_gap_before_them_count() -> None:
    found, settler = outcomes(CAP, 1), settling(CAP, 1)
    settler.take(found[2:])
    assert (settler.complete, settler.look()) == (0, None)
    settler.take(found[:2])
    assert settler.complete == CAP
    assert settler.settled is not None


def test_a_rule_that_only_these_cases_break_settles_no_failure() -> None:
    """The spread is over its limit at first and below it later."""
    gate = GateConfig(certify=0.95, max_student_std=0.12)
    found = outcomes(CAP, 1)
    for place, score in ((1, 0.5), (3, 0.9)):
        found[place] = made("s0", place // 2, score)
    settler = settling(CAP, 1, gate=gate)
    settler.take(found[:10])
    assert settler.look() is None
    settler.take(found[10:])
    assert (settler.look() or 0) > 10


def test_the_spread_of_the_cases_so_far_is_the_one_that_the_gate_sees_in_them() -> None:
    """It falls below its limit after the other rules are shown."""
    gate = GateConfig(certify=0.95, max_student_std=0.065)
    found = outcomes(CAP, 1)
    for place in range(15):
        found[2 * place + 1] = made("s0", place, 0.8 if place % 2 else 1.0)
    settled = []
    for one in (GATE, gate):
        settler = settling(CAP, 1, gate=one)
        settler.take(found)
        settled.append(settler.look() or CAP)
    assert settled[0] < settled[1] < CAP
    assert words(found, settled[1], CAP, 1, gate) == ["PASS"]
    assert words(found, settled[1] - 1, CAP, 1, gate) == ["FAIL"]


def test_looking_at_every_case_takes_time_in_proportion_to_the_cases() -> None:
    def seconds(cases: int) -> float:
        found, settler = outcomes(cases, 1, ratio=0.9), settling(cases, 1)
        begin = time.process_time()
        for place in range(0, len(found), 2):
            settler.take(found[place : place + 2])
        assert settler.look() is None
        return time.process_time() - begin

    assert seconds(600) < 1.0
    few, many = seconds(1_000), seconds(8_000)
    assert many < 20 * few


@pytest.mark.parametrize("bad_ones_come_last", [True, False])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_asked_ahead_and_finished_in_a_biased_order_runs_settle_where_the_simulated_ones_do(
    model: Model, *, bad_ones_come_last: bool
) -> None:
    runs, cap = 4, 300
    dealt = deal(arms_of(model, 1.0), runs, cap, 1, np.random.default_rng(5))
    expected = certify(*dealt, settle=True).cases.tolist()
    for run in range(runs):
        settler, begun, running = settling(cap, 1), 0, list[Outcome]()
        while settler.settled is None and (begun < cap or running):
            while begun < min(cap, settler.limit):
                for arm, scores in zip(("baseline", "s0"), dealt, strict=True):
                    valid = bool(scores.share[run, begun])
                    score = float(scores.score_all[run, begun])
                    running.append(made(arm, begun, score if valid else None))
                begun += 1
            running.sort(key=lambda one: one.arm == "s0" and (one.score or 0.0) < 0.6)
            if not bad_ones_come_last:
                running.reverse()
            settler.take(running[:8])
            del running[:8]
        assert (settler.look() or cap) == expected[run]


@pytest.fixture
def failing(bench: Bench, answers: Answers) -> Script:
    """A third of the student's answers fail; those and all others take so many seconds."""

    def write(failures: float, others: float) -> None:
        bench.dataset(CAP)
        bench.answers(
            {"text": answers.text(), "seconds": others},
            *(
                {"concept_id": f"K{n}", "arm": "pupil", "text": "no", "seconds": failures}
                for n in range(1, CAP, 3)
            ),
        )

    return write


def concluded(run: Run) -> tuple[Any, ...]:
    found = run.result("comparison")
    verdict = found["verdicts"][0]
    return found["settled"]["cases"], verdict["verdict"], verdict["rules"], found["arms"]


def test_no_order_of_finishing_decides(bench: Bench, failing: Script) -> None:
    """The student's failures come last, first, and as they are asked."""
    found = []
    for number, times in enumerate([(0.2, 0.0), (0.0, 0.2), (0.0, 0.0)]):
        failing(*times)
        bench.output_dir = bench.folder / str(number)
        run = bench.run(*SETTLE)
        assert run.code == 1
        found.append(concluded(run))
    assert found[0] == found[1] == found[2]
    assert found[0][0] < CAP // 2


@pytest.fixture
def passing(bench: Bench, answers: Answers) -> Run:
    bench.dataset(CAP)
    bench.answers({"text": answers.text()})
    return bench.run(*SETTLE)


def test_a_settled_run_has_asked_little_more_than_it_needed(passing: Run) -> None:
    found = passing.result("comparison")
    settled = found["settled"]
    assert (passing.code, found["partial"], found["pending"]) == (0, False, 0)
    assert settled["of"] == CAP
    assert settled["cases"] < CAP // 2
    asked = len({line["concept_id"] for line in passing.journal})
    assert asked <= settled["cases"] * 17 / 16 + LEAST_AHEAD + 1
    words = f"settled after {settled['cases']} of at most {CAP} cases"
    assert words in passing.out


def test_what_was_recorded_after_the_decision_is_kept_marked_and_not_counted(
    bench: Bench, answers: Answers, passing: Run
) -> None:
    cases, late = (passing.result("comparison")["settled"][k] for k in ("cases", "outcomes_after"))
    student = passing.result("student")
    rows = student["results"]
    marked = [row.get("after_decision", False) for row in rows]
    assert marked == [False] * cases + [True] * (len(rows) - cases)
    assert (student["total_samples"], student["valid_samples"]) == (cases, cases)
    assert len(passing.journal) == 2 * cases + late
    assert late > 0
    counted = passing.result("comparison")
    assert (counted["cases_total"], len(counted["cases"])) == (cases, cases)
    assert counted["timing"]["attempts"] == 2 * cases


def test_what_is_in_flight_beyond_the_complete_cases_is_bounded(
    bench: Bench, answers: Answers, passing: Run
) -> None:
    """The first case drawn takes a second, the others no time."""
    first = passing.journal[0]["concept_id"]
    slow = {"concept_id": first, "arm": "pupil", "text": answers.text(), "seconds": 1.0}
    bench.answers({"text": answers.text()}, slow)
    bench.output_dir = bench.folder / "slow"
    journal = bench.run(*SETTLE).journal
    place = next(
        n for n, a in enumerate(journal) if (a["concept_id"], a["arm"]) == (first, "pupil")
    )
    assert len({line["concept_id"] for line in journal[: place + 1]}) == LEAST_AHEAD


@pytest.mark.parametrize("kept", [0, 1, 7, 20, 33])
def test_a_killed_and_resumed_run_comes_to_the_same_verdict_at_the_same_case(
    bench: Bench, failing: Script, kept: int
) -> None:
    failing(0.0, 0.0)
    whole = bench.run(*SETTLE)
    before, journal = concluded(whole), whole.folder / "attempts.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    random.Random(kept).shuffle(lines)
    journal.write_bytes(b"".join(lines[:kept]) + b'{"torn')
    assert bench.call("--resume", str(whole.folder)).code == whole.code
    assert concluded(whole) == before


def test_a_settled_run_is_resumed_without_an_engine(bench: Bench, passing: Run) -> None:
    before = concluded(passing)
    again = bench.call("--resume", str(passing.folder))
    assert again.code == 0
    assert "starting the" not in again.out
    assert concluded(passing) == before


def test_a_settled_run_can_go_on_to_its_last_case(bench: Bench, passing: Run) -> None:
    again = bench.call("--resume", str(passing.folder), "--no-until-settled")
    found = again.result("comparison")
    assert (again.code, found["settled"], found["cases_answered"]) == (0, None, CAP)


def test_report_diagnose_and_score_count_the_same_cases(bench: Bench, passing: Run) -> None:
    before = concluded(passing)
    for command in ("report", "diagnose"):
        (passing.folder / "comparison.json").unlink()
        assert bench.call(command, str(passing.folder)).code == 0
        assert concluded(passing) == before
    for name in ("", "attempts.jsonl"):
        scored = bench.call("score", str(passing.folder / name))
        assert (scored.code, "PASS  pupil" in scored.out) == (0, True)
    assert "settled" in (passing.folder / "report.md").read_text("utf-8").lower()


def test_a_cap_that_settles_nothing_ends_undecided_and_not_partial(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(10)
    bench.answers({"text": answers.text()})
    run = bench.run(*SETTLE)
    found = run.result("comparison")
    assert found["verdicts"][0]["verdict"] == "UNDECIDED"
    assert (found["partial"], found["settled"], found["cases_answered"]) == (False, None, 10)


def test_a_missing_answer_settles_nothing_and_fails_in_the_end(
    bench: Bench, answers: Answers, passing: Run
) -> None:
    first = passing.journal[0]["concept_id"]
    gone = {"concept_id": first, "arm": "pupil", "error": "gone"}
    bench.answers({"text": answers.text()}, gone)
    bench.output_dir = bench.folder / "gone"
    run = bench.run(*SETTLE)
    found = run.result("comparison")
    assert found["verdicts"][0]["verdict"] == "FAIL"
    assert found["settled"]["cases"] >= concluded(passing)[0]


def test_a_run_with_a_level_is_resumed_until_it_is_settled(
    bench: Bench, answers: Answers, passing: Run
) -> None:
    bench.call("--resume", str(passing.folder), "--no-until-settled")
    again = bench.call("--resume", str(passing.folder), "--until-settled")
    assert (again.code, again.err) == (0, "")
    assert again.result("comparison")["settled"]["cases"] < CAP


def test_it_needs_a_level_wherever_that_is_set() -> None:
    with pytest.raises(ConfigError, match=r"until_settled needs gate\.certify"):
        load_config(settings=["until_settled=true", "profile=none"])
    both = load_config(settings=["until_settled=true", "gate.certify=0.9", "profile=none"])
    assert both.until_settled
