"""The tokens of a prompt: a tokenizer that begins every text gives it no second beginning.

Covered: raw and chat, both ways of counting, arguments of the chat template. Not covered: engines
(test_engine_prompts.py) and servers (test_openai_engine.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.model_folders import write_base, write_llama_tokenizer
from vllm_eval.config.layers import load_config
from vllm_eval.config.settings import Config
from vllm_eval.engines.tokens import encode, open_counter
from vllm_eval.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bench

TEMPLATE = "<s>{% if loud %} w9{% endif %} {{ messages[0].content }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_llama_tokenizer(write_base(tmp_path / "base", model_type="llama"), TEMPLATE)
    return tmp_path / "base"


def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("w0 w1", [1, 3, 4]),
        ("<s> w0 w1", [1, 3, 4]),
        ("<s>w0", [1, 3]),
        ("w0 <s> w1", [1, 3, 1, 4]),
        # A prompt that holds two was written so: it is asked as it is.
        ("<s><s> w0", [1, 1, 3]),
        ("</s> w0", [1, 2, 3]),
        ("", [1]),
    ],
)
def test_a_raw_prompt_has_one_beginning_or_those_that_it_writes_itself(
    folder: Path, prompt: str, expected: list[int]
) -> None:
    assert encode(tokenizer(folder), prompt, "raw") == expected
    assert open_counter(folder, Config())(prompt) == len(expected)


def test_a_tokenizer_that_puts_nothing_first_leaves_a_prompt_as_it_is(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    assert open_counter(folder, Config())("w w") == 2


def test_a_chat_template_that_writes_the_beginning_is_given_no_second_one(folder: Path) -> None:
    assert encode(tokenizer(folder), "w0", "chat") == [1, 3]
    assert open_counter(folder, Config(prompt_format="chat"))("w0") == 2


def test_arguments_of_the_chat_template_reach_it(folder: Path) -> None:
    assert encode(tokenizer(folder), "w0", "chat", {"loud": True}) == [1, 12, 3]
    loud = Config(prompt_format="chat", chat_template_kwargs={"loud": True})
    assert open_counter(folder, loud)("w0") == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokenize": False}, "'tokenize' is set by the evaluation itself"),
        ({"chat_template": "x"}, "'chat_template' is set by the evaluation itself"),
        ("[1]", "should be an object"),
        ("{", "must be a JSON object"),
        ('"x"', "should be an object"),
        ({"a": "x" * 10_000}, "longer than 10000 characters"),
    ],
)
def test_what_is_no_argument_of_a_template_is_refused(given: object, said: str) -> None:
    flags = {"profile": "none", "prompt_format": "chat", "chat_template_kwargs": given}
    with pytest.raises(ConfigError, match=said):
        load_config(flags=flags)


@pytest.mark.parametrize(
    "option",
    [
        ("--chat-template-kwargs", '{"enable_thinking": false}'),
        ("-c", "chat_template_kwargs.enable_thinking=false"),
    ],
)
def test_the_command_line_takes_them_and_asks_for_a_chat(
    bench: Bench, option: tuple[str, str]
) -> None:
    bench.dataset(1)
    bench.answers({"text": "x"})
    start = ("check", "--engine", "scripted", "--script", str(bench.script), "--profile", "none")
    where = ("--dataset-path", str(bench.cases), "--output-dir", str(bench.output_dir))
    more = (*where, "--adapter", "pupil", *option)
    refused = bench.call(*start, *more)
    assert refused.code == 2
    assert "give --prompt-format chat" in refused.err
    assert bench.call(*start, *more, "--prompt-format", "chat").code == 0
