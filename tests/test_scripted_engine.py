"""The scripted engine: which line answers which request, how long it takes, what it refuses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from vllm_eval.engines.scripted import ScriptedEngine
from vllm_eval.errors import ConfigError, DatasetError
from vllm_eval.records import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Bench
    from vllm_eval.records import Completion

    Script = Callable[..., ScriptedEngine]


@pytest.fixture
def script(bench: Bench) -> Script:
    """An engine opened on these lines."""
    return lambda *lines: ScriptedEngine.open(str(bench.write(bench.script, lines)))


def request(
    case: str = "K1", arm: str = "baseline", attempt: int = 1, prompt: str = "a b c"
) -> Request:
    return Request(f"{case}/{arm}/{attempt}", arm, case, 0, attempt, prompt, seed=7)


def answer(engine: ScriptedEngine, asked: Request) -> Completion:
    engine.submit([asked])
    (completion,) = engine.poll()
    return completion


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"concept_id": "K1"}, {"concept_id": "*", "arm": "baseline", "attempt": 1}),
        ({"concept_id": "K1"}, {"concept_id": "*"}),
        (
            {"concept_id": "K1", "arm": "baseline"},
            {"concept_id": "K1", "attempt": 1},
        ),
        ({"concept_id": "K1", "attempt": 1}, {"concept_id": "K1"}),
        ({"concept_id": "*", "arm": "baseline"}, {"concept_id": "*", "attempt": 1}),
        ({"concept_id": "*", "attempt": 1}, {"concept_id": "*"}),
    ],
)
@pytest.mark.parametrize("first", ["more", "less"])
def test_the_more_specific_line_answers_wherever_it_stands(
    script: Script, more: dict[str, object], less: dict[str, object], first: str
) -> None:
    lines = [more | {"text": "more"}, less | {"text": "less"}]
    engine = script(*(lines if first == "more" else lines[::-1]))
    assert answer(engine, request()).text == "more"


def test_of_equal_lines_the_first_answers(script: Script) -> None:
    engine = script({"concept_id": "K1", "text": "1st"}, {"concept_id": "K1", "text": "2nd"})
    assert answer(engine, request()).text == "1st"


@pytest.mark.parametrize(
    "line",
    [{"concept_id": "K2"}, {"concept_id": "K1", "arm": "x"}, {"concept_id": "*", "attempt": 2}],
)
def test_a_request_that_no_line_fits_comes_back_as_an_error(
    script: Script, line: dict[str, object]
) -> None:
    completion = answer(script(line | {"text": "t"}), request())
    assert completion.error == "the script has no line for K1, baseline, attempt 1"
    assert completion.finish_reason is None


def test_null_means_any_like_a_key_left_out(script: Script) -> None:
    engine = script({"concept_id": "*", "arm": None, "attempt": None, "text": "t", "error": None})
    assert answer(engine, request("K9", "x", 3)).text == "t"


def test_an_error_line_is_a_completion_with_that_error(script: Script) -> None:
    completion = answer(script({"concept_id": "*", "error": "out of blocks"}), request())
    assert (completion.error, completion.text) == ("out of blocks", "")


def test_an_error_of_one_request_costs_no_other(script: Script) -> None:
    engine = script({"concept_id": "*", "text": "t"}, {"concept_id": "K2", "error": "gone"})
    engine.submit([request(f"K{n}") for n in (1, 2, 3)])
    assert [c.error for c in engine.poll()] == [None, "gone", None]


def test_tokens_are_counted_as_words(script: Script) -> None:
    completion = answer(script({"concept_id": "*", "text": "one two"}), request(prompt="a b c"))
    assert (completion.prompt_tokens, completion.output_tokens) == (3, 2)


def test_an_empty_text_is_an_answer(script: Script) -> None:
    completion = answer(script({"concept_id": "*", "text": ""}), request())
    assert (completion.error, completion.finish_reason) == (None, "stop")


def test_answers_take_their_seconds_side_by_side(script: Script) -> None:
    engine = script({"concept_id": "*", "text": "t", "seconds": 0.3})
    engine.submit([request(f"K{n}") for n in range(50)])
    start = time.monotonic()
    finished = 0
    while batch := engine.poll():
        finished += len(batch)
    assert finished == 50
    assert 0.29 <= time.monotonic() - start < 3


def test_a_quick_answer_is_not_held_back_by_a_slow_one(script: Script) -> None:
    engine = script(
        {"concept_id": "slow", "text": "t", "seconds": 0.2}, {"concept_id": "*", "text": "t"}
    )
    engine.submit([request("slow"), request("quick")])
    assert [[c.request_id.split("/")[0] for c in engine.poll()] for _ in range(3)] == [
        ["quick"],
        ["slow"],
        [],
    ]


def test_the_seconds_are_reported_as_the_answers_time(script: Script) -> None:
    completion = answer(script({"concept_id": "*", "text": "t", "seconds": 0.05}), request())
    assert (completion.ttft_s, completion.total_s) == (0.05, 0.05)


def test_an_idle_engine_has_nothing_to_say(script: Script) -> None:
    assert script({"concept_id": "*", "text": "t"}).poll() == []


def test_a_closed_engine_forgets_what_was_due(script: Script) -> None:
    engine = script({"concept_id": "*", "text": "t", "seconds": 60})
    engine.submit([request()])
    engine.close()
    assert engine.poll() == []


def test_no_prompt_is_too_long_for_a_script(script: Script) -> None:
    assert script({"concept_id": "*", "text": "t"}).refusal("x" * 1_000_000) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be an object with a concept_id"),
        ({"text": "t"}, "must be an object with a concept_id"),
        ({"concept_id": 1, "text": "t"}, "must be an object with a concept_id"),
        ({"concept_id": "*"}, "needs a 'text' or an 'error'"),
        ({"concept_id": "*", "text": 1}, "'text' has the wrong type"),
        ({"concept_id": "*", "error": True}, "'error' has the wrong type"),
        ({"concept_id": "*", "text": "t", "arm": 1}, "'arm' has the wrong type"),
        ({"concept_id": "*", "text": "t", "attempt": "1"}, "'attempt' has the wrong type"),
        ({"concept_id": "*", "text": "t", "attempt": True}, "'attempt' must be a number from 1"),
        ({"concept_id": "*", "text": "t", "seconds": "1"}, "'seconds' has the wrong type"),
        ({"concept_id": "*", "text": "t", "delay": 1}, "unknown key 'delay'"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(script: Script, line: object, said: str) -> None:
    with pytest.raises(DatasetError) as refused:
        script({"concept_id": "*", "text": "t"}, "", line)
    assert "script.jsonl, line 3: " in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "change", [{"attempt": 0}, {"attempt": -1}, {"seconds": -1}, {"seconds": 1e300}]
)
def test_a_number_out_of_range_is_refused(script: Script, change: dict[str, object]) -> None:
    with pytest.raises(DatasetError, match="line 1"):
        script({"concept_id": "*", "text": "t"} | change)


def test_a_missing_script_file_is_named(bench: Bench) -> None:
    with pytest.raises(DatasetError, match=r"gone\.jsonl: cannot read the script: No such file"):
        ScriptedEngine.open(str(bench.folder / "gone.jsonl"))


def test_without_a_script_the_flag_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--script FILE\.jsonl"):
        ScriptedEngine.open(None)


def test_a_script_may_lie_in_the_home_folder_or_the_package(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.answers({"text": "t"})
    monkeypatch.setenv("HOME", str(bench.folder))
    assert answer(ScriptedEngine.open("~/script.jsonl"), request()).text == "t"
