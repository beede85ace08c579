"""What an engine makes of a base's own files: its generation_config.json, tokenizer and template.

Covered: the engines that load a model, on a tiny random Llama. Not covered: Ray, whose
replicas hold one of these engines; servers, which are in test_openai_vllm.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.model_folders import write_json, write_llama_tokenizer
from vllm_eval.config.layers import load_config
from vllm_eval.engines import open_engine
from vllm_eval.records import BASELINE, Arm, Request

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.records import Completion

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),  # the libraries' own, not ours
]

ENGINES = ("vllm", "transformers")
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
END = 5
TEMPLATE = "<s>{% if loud %} w9{% endif %} {{ messages[0].content }}"
LEAKS: dict[str, object] = {
    "temperature": 2.0,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.5,
    "repetition_penalty": 1.3,
}
LEAKS |= {
    "max_new_tokens": 3,
    "do_sample": False,
    "bad_words_ids": [[7]],
    "no_repeat_ngram_size": 1,
}


def random_llama(folder: Path) -> Path:
    """With a tokenizer that begins every text, and one end token that only one file names."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, eos_token_id=None, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    write_llama_tokenizer(folder, TEMPLATE)
    write_json(folder / "generation_config.json", {"eos_token_id": [END]})
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("llama") / "base")


def asked(kind: str, base: Path, log: Path, *prompts: str, **flags: Any) -> list[Completion]:
    """The baseline's answers, each with its own seed."""
    plain = {"engine": kind, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40}
    args = {"max_model_len": 128, "kv_cache_memory_bytes": 2**26}
    config = load_config(["demo"], flags=plain | {"engine_args": args} | flags)
    engine = open_engine(config, [Arm(BASELINE)], str(base), log)
    try:
        requests = (
            Request(str(n), BASELINE, str(n), 0, 1, prompt, seed=n)
            for n, prompt in enumerate(prompts)
        )
        engine.submit(list(requests))
        found: dict[str, Completion] = {}
        while engine.busy:
            found |= {done.request_id: done for done in engine.poll()}
    finally:
        engine.close()
    assert not any(done.error for done in found.values())
    return [found[str(n)] for n in range(len(prompts))]


RAW = ("w0 w1", "<s> w0 w1", *(f"w{n}" for n in range(8)))


@pytest.fixture(scope="module")
def raw(kind: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Completion]:
    """Answers of a base whose generation_config.json names its end token alone."""
    return asked(kind, base, tmp_path_factory.mktemp("raw") / "engine.log", *RAW)


def test_sampling_of_generation_config_does_not_leak_into_a_run(
    kind: str, raw: list[Completion], tmp_path: Path
) -> None:
    leaky = random_llama(tmp_path / "leaky")
    write_json(leaky / "generation_config.json", {"eos_token_id": [END]} | LEAKS)
    answers = asked(kind, leaky, tmp_path / "engine.log", *RAW)
    assert [done.text for done in answers] == [done.text for done in raw]


def test_end_tokens_of_generation_config_end_an_answer(raw: list[Completion]) -> None:
    assert {done.finish_reason for done in raw} == {"stop", "length"}


def test_a_prompt_that_begins_as_the_tokenizer_does_has_one_beginning(
    raw: list[Completion],
) -> None:
    assert [done.prompt_tokens for done in raw[:3]] == [3, 3, 2]


def test_a_chat_template_writes_the_only_beginning_and_gets_its_arguments(
    kind: str, base: Path, tmp_path: Path
) -> None:
    chat = {"prompt_format": "chat", "chat_template_kwargs": {"loud": True}}
    (done,) = asked(kind, base, tmp_path / "engine.log", "w0 w1", **chat)
    assert done.prompt_tokens == 4
