"""`import vllm_eval` in notebooks and training scripts; nothing happens behind their back."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

import vllm_eval
from vllm_eval import errors
from vllm_eval.records import Attempt, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Answers, Bench
    from vllm_eval.report.display import Result

    Evaluate = Callable[..., Result]


@pytest.fixture
def options(bench: Bench, answers: Answers) -> dict[str, Any]:
    """A small run of the scripted engine; K2 fails for the student."""
    bench.dataset(4)
    bench.answers({"text": answers.text()}, {"concept_id": "K2", "arm": "pupil", "text": "no"})
    return {
        "engine": "scripted",
        "script": bench.script,
        "dataset_path": bench.cases,
        "output_dir": bench.output_dir,
        "profile": "none",
        "report": False,
    }


@pytest.fixture
def evaluate(options: dict[str, Any]) -> Evaluate:
    """`vllm_eval.evaluate` of `pupil`, with these options changed."""

    def call(**changes: Any) -> Result:
        return vllm_eval.evaluate(**{"adapters": "pupil"} | options | changes)

    return call


def test_an_evaluation_returns_its_verdicts_and_figures_as_records(evaluate: Evaluate) -> None:
    result = evaluate(gate={"min_valid_rate": 0.7})
    assert result.passed
    assert [(verdict.arm, verdict.word) for verdict in result.verdicts] == [("pupil", "PASS")]
    assert result.verdicts[0].rules[0].name == "cases of baseline with an answer"
    assert (result.comparison.arms["pupil"].valid, result.comparison.arms["pupil"].total) == (3, 4)
    assert result.comparison.students["pupil"].difference.value == pytest.approx(0)
    assert result.ranking[0].arm == "pupil"
    assert (result.folder / "comparison.json").is_file()


def test_a_result_says_where_its_report_is_if_there_is_one(evaluate: Evaluate) -> None:
    assert evaluate().report is None
    result = evaluate(report=True)
    assert result.report == result.folder / "report.html"


def test_a_result_is_the_same_when_it_is_shown_again(evaluate: Evaluate) -> None:
    result = evaluate()
    assert vllm_eval.show(result.folder) == result
    assert "FAIL  pupil  valid rate of pupil" in repr(result)


def test_nothing_is_printed_or_changed_unless_asked(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers, environment = [signal.getsignal(n) for n in numbers], dict(os.environ)
    during: list[object] = []
    evaluate(progress=lambda _: during.append([signal.getsignal(n) for n in numbers]))
    assert capsys.readouterr() == ("", "")
    assert all(seen == handlers for seen in during)
    assert dict(os.environ) == environment


def test_what_happens_goes_to_the_logger(
    evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vllm_eval"):
        evaluate()
    assert "evaluating 4 cases, 2 arms" in caplog.messages


def test_a_function_is_told_the_counts(evaluate: Evaluate) -> None:
    told: list[tuple[int, int]] = []
    evaluate(progress=lambda now: told.append((now.done, now.total)))
    assert told[-1] == (8, 8)


def test_the_terminals_display_can_be_asked_for(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(progress=True)
    shown = capsys.readouterr().out
    assert "8/8 done" in shown
    assert "FAIL  pupil" in shown


def stop(progress: Progress) -> None:
    progress.stopping = True


def test_a_function_may_end_the_run_early(evaluate: Evaluate, bench: Bench) -> None:
    bench.answers({"text": "no"}, {"concept_id": "K4", "text": "no", "seconds": 30})
    result = evaluate(progress=stop)
    assert result.pending
    assert not result.passed
    assert "NOT FINISHED  pupil" in repr(result)


def interrupt(progress: Progress) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_reaches_the_caller_and_leaves_a_run_to_resume(
    evaluate: Evaluate, bench: Bench
) -> None:
    with pytest.raises(KeyboardInterrupt) as interrupted:
        evaluate(progress=interrupt, retries=0)
    (folder,) = bench.output_dir.iterdir()
    assert str(folder) in interrupted.value.__notes__[0]
    result = evaluate(resume=folder, retries=0)
    assert (result.folder, result.pending) == (folder, 0)


def test_a_run_is_resumed_by_its_name_or_as_the_newest_one(evaluate: Evaluate) -> None:
    folder = evaluate().folder
    assert evaluate(resume=folder.name).folder == folder
    assert evaluate(resume="auto").folder == folder


def test_signals_end_a_run_in_order_where_that_is_asked_for(
    evaluate: Evaluate, bench: Bench
) -> None:
    bench.answers({"text": "no", "seconds": 30})
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGTERM])
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    assert evaluate(stop_on_signals=True).pending
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_needs_no_main_thread(evaluate: Evaluate) -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(evaluate(stop_on_signals=True)))
    thread.start()
    thread.join()
    assert results[0].pending == 0


def test_options_go_over_files_and_several_adapters_over_one(
    options: dict[str, Any], bench: Bench
) -> None:
    low = bench.folder / "low.yaml"
    low.write_text("{max_samples: 1, retries: 0, adapters: [other]}", "utf-8")
    result = vllm_eval.evaluate(["a", "b"], config=low, max_samples=2, **options)
    config = result.run.environment["identity"]
    assert (config["max_samples"], config["retries"]) == (2, 0)
    assert list(result.comparison.students) == ["a", "b"]
    assert list(vllm_eval.evaluate(config=[low], **options).comparison.students) == ["other"]


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (
            {"max_sample": 1},
            errors.ConfigError,
            "options: unknown key 'max_sample'; did you mean 'max_samples'?",
        ),
        ({"seed": "x"}, errors.ConfigError, "options: seed: input should be a valid integer"),
        ({"gate": {"ratio": 1}}, errors.ConfigError, "did you mean 'gate.min_ratio'?"),
        ({"dataset_path": "gone.jsonl"}, errors.DatasetError, "gone.jsonl: "),
        ({"engine": "transformers"}, errors.AdapterError, "adapter 'pupil': no such folder"),
        ({"resume": "gone"}, errors.InputError, "no run at gone"),
        ({"config": 3}, errors.ConfigError, "options: config: input should be a name or several"),
        ({"adapters": {"mine": "out"}}, errors.ConfigError, "input should be a name or several"),
        ({"adapters": 3}, errors.ConfigError, "options: adapters: input should be a name or"),
        ({"adapters": ["a", 3]}, errors.ConfigError, "or several, not ['a', 3]"),
        ({"adapters": b"pupil"}, errors.ConfigError, "options: adapters: "),
    ],
)
def test_a_mistake_is_one_of_our_errors_with_the_command_lines_words(
    evaluate: Evaluate, changes: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as raised:
        evaluate(**changes)
    assert said in str(raised.value)


def test_a_bad_line_of_the_script_is_the_whole_error(
    evaluate: Evaluate, options: dict[str, Any]
) -> None:
    options["script"].write_text('{"concept_id": "*"}\n', "utf-8")
    with pytest.raises(errors.DatasetError) as raised:
        evaluate()
    assert str(raised.value) == f"{options['script']}, line 1: needs a 'text' or an 'error'"


def test_a_check_lists_its_findings(options: dict[str, Any]) -> None:
    found = vllm_eval.check("pupil", **options)
    assert found.passed
    assert repr(found).splitlines() == [finding.line for finding in found]
    worse = vllm_eval.check("pupil", **options | {"dataset_path": "gone.jsonl"})
    assert [finding.where for finding in worse if finding.level == "error"] == ["gone.jsonl"]
    assert not worse.passed


def test_stored_answers_are_graded_again(evaluate: Evaluate) -> None:
    told: list[int] = []
    scored = vllm_eval.score(
        evaluate().folder, progress=lambda now: told.append(now.done), gate={"min_valid_rate": 0}
    )
    assert scored.passed
    assert told[-1] == 8
    assert "pupil: 3 of 4 valid, as recorded" in repr(scored)
    assert "\nPASS  pupil\n" in repr(scored)


def test_two_runs_are_compared(evaluate: Evaluate) -> None:
    compared = vllm_eval.compare_runs(evaluate().folder, str(evaluate(seed=1).folder))
    assert [(pair.first, pair.second) for pair in compared.pairs][1] == ("pupil", "pupil")
    assert "note: seed differs: 42 in A, 1 in B" in repr(compared)
    assert "pupil: B higher in 0, lower in 0, the same in 3" in repr(compared)


def test_the_outcomes_are_there_as_records_and_as_tables(evaluate: Evaluate) -> None:
    result = evaluate(retries=1)
    cases = list(result.cases())
    assert [case.arm for case in cases].count("pupil") == 4
    (failed,) = (case for case in cases if case.status != "success")
    assert (failed.concept_id, failed.attempt, failed.raw_response) == ("K2", 2, "no")
    frame, table = result.to_pandas(), result.to_arrow()
    assert list(frame.columns) == [field.name for field in fields(Attempt)]
    assert table.column_names == list(frame.columns)
    assert len(frame) == table.num_rows == 8
    assert len(result.to_pandas(attempts=True)) == result.to_arrow(attempts=True).num_rows == 9
    assert frame.groupby("arm")["score"].count().to_dict() == {"baseline": 4, "pupil": 3}


@pytest.mark.parametrize(("library", "extra"), [("pandas", "pandas"), ("pyarrow", "parquet")])
def test_a_table_without_its_library_names_the_extra(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    result = evaluate()
    monkeypatch.setitem(sys.modules, library, None)
    table = result.to_pandas if library == "pandas" else result.to_arrow
    with pytest.raises(errors.InputError, match=rf"{library} is not installed.*\[{extra}\]"):
        table()


@pytest.mark.parametrize("name", vllm_eval.__all__)
def test_every_name_at_the_top_is_there(name: str) -> None:
    assert getattr(vllm_eval, name)
    assert name in dir(vllm_eval)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vllm_eval.nothing  # noqa: B018


def test_every_error_is_at_the_top_and_of_one_tree() -> None:
    tree = {name for name, value in vars(errors).items() if name.endswith("Error")}
    assert tree == {name for name in vllm_eval.__all__ if name.endswith("Error")}
    assert all(issubclass(getattr(vllm_eval, name), vllm_eval.EvalError) for name in tree)
