"""What went wrong and what it cost: groups, places, excerpts, retries; in file and on screen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.attempts import attempt, failed, surveyed
from vllm_eval.conclude.one_pass import Evaluated, read_attempts
from vllm_eval.conclude.timing import take_attempts
from vllm_eval.config.settings import Config
from vllm_eval.diagnose.example import excerpt
from vllm_eval.diagnose.survey import MAX_EXAMPLES
from vllm_eval.store.folder import RunFolder, index_rows, write_cases

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run
    from vllm_eval.conclude.timing import ArmAttempts
    from vllm_eval.diagnose.survey import FailureGroup
    from vllm_eval.records import Attempt, Case
    from vllm_eval.tasks import Task


def one_block(text: str) -> Mapping[str, str]:
    """A task whose whole answer is the REVIEW."""
    return {"review": text}


def failures(rows: list[Attempt]) -> list[FailureGroup]:
    return list(surveyed(rows, one_block).failures.values())


def attempts_of(rows: list[Attempt], arm: str = "pupil") -> ArmAttempts:
    return take_attempts(surveyed(rows, one_block).arms[arm])


def test_failures_are_grouped_by_reason_tier_and_arm() -> None:
    rows = [
        failed(),
        failed(reason="other"),
        failed(arm="baseline"),
        failed(tier="medium"),
        failed(),
    ]
    groups = failures(rows)
    assert {(g.reason, g.tier, g.arm): g.attempts for g in groups} == {
        ("no_ids", "simple", "pupil"): 2,
        ("other", "simple", "pupil"): 1,
        ("no_ids", "simple", "baseline"): 1,
        ("no_ids", "medium", "pupil"): 1,
    }


def test_attempts_outcomes_and_truncated_answers_are_counted_apart() -> None:
    rows = [failed(final=False, truncated=True), failed(number=2, truncated=True), failed("K2")]
    (group,) = failures(rows)
    assert (group.attempts, group.outcomes, group.truncated) == (3, 2, 2)


def test_a_few_examples_are_kept_each_of_another_case() -> None:
    rows = [failed(f"K{n}", number) for n in range(9) for number in (1, 2)]
    (group,) = failures(rows)
    assert [e.concept_id for e in group.examples] == [f"K{n}" for n in range(MAX_EXAMPLES)]


def test_an_attempt_without_an_answer_is_a_failure_without_an_excerpt() -> None:
    rows = [attempt(status="error", reason="engine_error", error="no blocks left")]
    (group,) = failures(rows)
    assert (group.reason, group.examples[0].excerpt) == ("engine_error", ())


def test_a_place_is_shown_with_the_line_before_and_a_caret() -> None:
    place = failed(block="REVIEW", line=2, column=6, raw_response="a: 1\nb: c: d\ne: 2\n")
    assert excerpt(place, one_block) == ("   1 | a: 1", "   2 | b: c: d", "            ^")


def test_the_caret_stands_under_its_column_in_a_line_too_long_to_show() -> None:
    line = "x" * 500 + "!" + "y" * 500
    shown, caret = excerpt(failed(block="REVIEW", line=1, column=501, raw_response=line), one_block)
    assert shown[caret.index("^")] == "!"
    assert len(shown) < 120


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x85", "\u2028"])
def test_lines_are_counted_as_yaml_counts_them(end: str) -> None:
    text = f"a: 'x\x0b\x0cy'{end}b: c: d"
    place = failed(block="REVIEW", line=2, column=1, raw_response=text)
    assert "   2 | b: c: d" in excerpt(place, one_block)


@pytest.mark.parametrize(("line", "column"), [(99, 1), (1, 99), (0, 0), (2, None)])
def test_a_place_beyond_the_text_is_no_error(line: int, column: int | None) -> None:
    place = failed(block="REVIEW", line=line, column=column, raw_response="a\nb")
    assert excerpt(place, one_block)


def test_a_key_to_blame_is_shown_with_the_line_after_it() -> None:
    text = "status: x\nnarrative: |\n  too long\nlast: 1"
    place = failed(block="REVIEW", key="narrative", raw_response=text)
    assert excerpt(place, one_block) == ("   2 | narrative: |", "   3 |   too long")


def test_of_a_path_of_keys_the_last_one_is_looked_for() -> None:
    place = failed(block="REVIEW", key="top.gaps", raw_response="top:\n  gaps: 3\n")
    assert excerpt(place, one_block) == ("   2 |   gaps: 3",)


def test_where_no_line_is_to_blame_the_end_of_the_answer_is_shown() -> None:
    place = failed(raw_response="1\n2\n3\n4\n5\n\n")
    assert excerpt(place, lambda _: {}) == ("   3 | 3", "   4 | 4", "   5 | 5")


def test_a_syntax_error_is_ascribed_to_the_nearest_key() -> None:
    text = "status: x\nsummary:\n- one\n- 'two\n"
    place = failed(block="REVIEW", line=4, column=3, raw_response=text)
    (group,) = failures([place])
    assert group.examples[0].key == "summary"


def test_scores_and_validity_are_counted_by_number_of_the_attempt() -> None:
    rows = [attempt("K1"), failed("K2", final=False), failed("K3", final=False)]
    rows += [attempt("K2", 2, score=0.5), failed("K3", 2)]
    first, second = attempts_of(rows).by_attempt
    assert (first.made, first.valid, first.mean) == (3, 1, 0.8)
    assert (second.made, second.valid, second.valid_share, second.mean) == (2, 1, 0.5, 0.5)
    assert (first.valid_by_then, second.valid_by_then) == pytest.approx((1 / 3, 2 / 3))


def test_an_attempt_number_without_a_valid_answer_has_no_mean() -> None:
    (row,) = attempts_of([failed()]).by_attempt
    assert (row.mean, row.valid_share) == (None, 0.0)


def test_retries_cost_attempts_tokens_and_seconds_of_their_arm() -> None:
    rows = [failed(final=False), attempt(number=2, output_tokens=7, total_s=0.25)]
    rows.append(attempt(arm="baseline"))
    retries = attempts_of(rows).retries
    assert (retries.attempts, retries.output_tokens, retries.seconds) == (1, 7, 0.25)
    assert attempts_of(rows).all.output_tokens == 17
    assert attempts_of(rows, "baseline").retries.attempts == 0


def test_attempts_are_read_as_a_stream(task: Task, case: Case, tmp_path: Path) -> None:
    """No attempt is asked for before the one before it is done with; none is kept."""
    alive = 0

    class Text(str):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def rows() -> Any:
        nonlocal alive
        for number in range(50):
            alive += 1
            assert alive <= 2
            yield number, failed(f"K{number}", raw_response=Text("a: 1"))

    folder = RunFolder(tmp_path, "")
    write_cases(folder, ((replace(case, id=f"K{number}"), "") for number in range(50)))
    run = Evaluated(folder, {}, Config(), {"pupil": None}, index_rows(tmp_path), task)
    reading = read_attempts(run, rows(), None)
    assert (len(reading.outcomes), alive) == (50, 0)


@pytest.fixture
def run(bench: Bench, answers: Answers) -> Run:
    """The student's K1 needs a retry; K2 never parses; the tier would clear the screen."""
    bench.dataset(3, tier="\x1b[2Jsimple")
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K1", "arm": "pupil", "attempt": 1, "text": answers.bad()},
        {"concept_id": "K2", "arm": "pupil", "text": answers.text(review="a: b: c")},
    )
    return bench.run()


def comparison(run: Run) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run.folder / "comparison.json").read_text("utf-8"))
    return loaded


def test_the_comparison_holds_the_failures_with_their_places(run: Run) -> None:
    first, second = comparison(run)["failures"]
    assert (first["reason"], first["attempts"], first["outcomes"]) == ("invalid_review_yaml", 3, 1)
    assert (first["examples"][0]["line"], first["examples"][0]["key"]) == (1, "a")
    assert (second["reason"], second["examples"][0]["key"]) == (
        *("review_missing_narrative", "narrative"),
    )


def test_the_comparison_holds_the_attempts_and_says_which_counts(run: Run) -> None:
    attempts = comparison(run)["attempts"]
    assert attempts["pupil"]["counts"] == "last"
    assert [row["made"] for row in attempts["pupil"]["by_attempt"]] == [3, 2, 1]
    assert attempts["pupil"]["retries"]["attempts"] == 3
    assert attempts["baseline"]["retries"]["attempts"] == 0


def test_the_screen_shows_failures_and_costs_and_stays_plain(run: Run) -> None:
    assert "invalid_review_yaml" in run.out
    assert "pupil: valid after each attempt 33%, 67%, 67%; 3 retries took" in run.out
    assert "\x1b" not in run.out


def test_the_most_frequent_kind_comes_first(bench: Bench, answers: Answers) -> None:
    bench.dataset(5)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K1", "arm": "pupil", "attempt": 1, "text": answers.text(review="a: b: c")},
        *({"concept_id": f"K{n}", "arm": "pupil", "text": answers.bad()} for n in (2, 3, 4)),
    )
    groups = comparison(bench.run())["failures"]
    assert [(group["reason"], group["attempts"]) for group in groups] == [
        ("review_missing_narrative", 9),
        ("invalid_review_yaml", 1),
    ]


def test_a_run_without_failures_shows_no_table_of_them(bench: Bench, answers: Answers) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.text()})
    run = bench.run()
    assert "Failures" not in run.out
    assert comparison(run)["failures"] == []


def test_the_journal_keeps_the_key_of_every_failure(run: Run) -> None:
    assert run.attempts("pupil", "K1")[0]["key"] == "narrative"


def test_several_students_are_ranked_on_the_screen(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    run = bench.run("--adapter", "other")
    assert "Holm 1979" in run.out
    assert [row["arm"] for row in comparison(run)["ranking"]["students"]] == ["other", "pupil"]


def test_one_student_is_not_ranked_on_the_screen(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    assert "Holm" not in bench.run().out


def test_several_samples_show_both_spreads(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    run = bench.run("--samples-per-case", "3")
    arm = comparison(run)["arms"]["pupil"]
    assert (arm["cases"], arm["total"], arm["within_std"], arm["between_std"]) == (2, 6, 0, 0)
    assert "within" in run.out
