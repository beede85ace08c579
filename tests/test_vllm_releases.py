"""What we use of vLLM exists in every release that a platform needs.

The releases were read from their wheels (`scripts/read_signatures`); nothing of them is run here.
0.19.1 serves drivers before CUDA 13, 0.26.0 the T4 notebooks, 0.28.0 came without bitsandbytes.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from scripts.read_signatures import compress, expand

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
RECORD = expand(json.loads((ROOT / "tests" / "vllm_signatures.json").read_text("utf-8")))
RELEASES = [*RECORD]
FIRST = RELEASES[0]
SOURCES = [path for path in sorted((ROOT / "vllm_eval").rglob("*.py")) if "demo" not in path.parts]
PROFILES = sorted((ROOT / "configs").glob("*.yaml"))
OURS = {
    *("enable_lora", "disable_log_stats", "seed", "max_loras", "max_lora_rank", "quantization"),
    "structured_outputs_config",
}
"""Options that `engines/vllm/options.py` derives."""
LLM_ENGINE = "vllm.v1.engine.llm_engine.LLMEngine"
METHODS = {
    "add_request": f"{LLM_ENGINE}.add_request",
    "add_lora": f"{LLM_ENGINE}.add_lora",
    "has_unfinished_requests": f"{LLM_ENGINE}.has_unfinished_requests",
    "step": f"{LLM_ENGINE}.step",
    "shutdown": "vllm.v1.engine.core_client.EngineCoreClient.shutdown",
}
"""Calls on vLLM's objects in `engines/vllm/engine.py`."""
CLASSES = {
    "LLM": "vllm.LLM.__init__",
    "SamplingParams": "vllm.SamplingParams",
    "LoRARequest": "vllm.lora.request.LoRARequest",
    "StructuredOutputsParams": "vllm.sampling_params.StructuredOutputsParams",
    "tokens_input": "vllm.inputs.tokens_input",
}
READ = {
    "vllm.outputs.RequestOutput.__init__": (
        "request_id prompt_token_ids outputs finished metrics num_cached_tokens"
    ),
    "vllm.outputs.CompletionOutput": "text token_ids finish_reason logprobs",
    "vllm.v1.metrics.stats.RequestStateStats": (
        "queued_ts scheduled_ts first_token_ts last_token_ts first_token_latency"
    ),
    "vllm.logprobs.Logprob": "logprob",
    "vllm.config.vllm.VllmConfig": "model_config scheduler_config",
    "vllm.config.scheduler.SchedulerConfig": "max_num_seqs",
    "vllm.config.model.ModelConfig": "dtype quantization max_model_len",
    "vllm.sampling_params.RequestOutputKind": "FINAL_ONLY",
    "vllm.v1.attention.backends.registry.AttentionBackendEnum": "TRITON_ATTN",
}
"""Attributes that `engines/vllm/engine.py` reads."""


def names(release: str, symbol: str) -> list[str]:
    return RECORD[release][symbol]


def calls(path: Path) -> Iterator[tuple[str, int, list[str]]]:
    """Name, number of positional arguments and keywords of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "id", None) or getattr(function, "attr", "")
            keywords = [word.arg for word in node.keywords if word.arg]
            yield str(name), len(node.args), keywords


def imports() -> set[str]:
    """Every name that a module of ours imports from vLLM, in full."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_options_of_a_profile_exist(release: str, path: Path) -> None:
    profile = yaml.safe_load(path.read_text("utf-8"))
    given = set(profile.get("engine_args", {}))
    assert given <= set(names(release, "vllm.EngineArgs"))
    variables = {name for name in profile.get("engine_env", {}) if name.startswith("VLLM_")}
    assert variables <= set(names(release, "vllm.envs"))


@pytest.mark.parametrize("release", RELEASES)
def test_the_options_we_derive_exist(release: str) -> None:
    assert not OURS - set(names(release, "vllm.EngineArgs"))


@pytest.mark.parametrize("release", RELEASES)
def test_what_we_call_takes_what_we_give(release: str) -> None:
    seen = set()
    for path in SOURCES:
        if path.parent.name != "vllm":
            continue
        for name, positional, keywords in calls(path):
            symbol = (METHODS | CLASSES).get(name)
            if symbol is None or name == "shutdown":
                continue
            seen.add(name)
            parameters = names(release, symbol)
            assert positional <= len(parameters), name
            assert set(keywords) - {"model"} <= set(parameters), name
    assert seen == (METHODS | CLASSES).keys() - {"shutdown"}


@pytest.mark.parametrize("release", RELEASES)
def test_the_first_arguments_of_a_request_keep_their_order(release: str) -> None:
    first = names(release, METHODS["add_request"])[:3]
    assert first == ["request_id", "prompt", "params"]
    assert names(release, CLASSES["LoRARequest"])[:3] == ["lora_name", "lora_int_id", "lora_path"]


@pytest.mark.parametrize("release", RELEASES)
def test_what_we_read_of_an_answer_is_there(release: str) -> None:
    for symbol, used in READ.items():
        assert set(used.split()) <= set(names(release, symbol)), symbol


def test_nothing_is_imported_from_vllm_that_is_not_on_record() -> None:
    on_record = {symbol.removesuffix(".__init__") for symbol in RECORD[FIRST]}
    on_record |= {"vllm.platforms.current_platform", "vllm.outputs.RequestOutput"}
    assert imports() <= on_record


@pytest.mark.parametrize("release", RELEASES)
def test_the_top_of_the_package_offers_what_we_take_from_it(release: str) -> None:
    taken = {name.split(".")[1] for name in imports() if name.count(".") == 1}
    assert taken <= {*names(release, "vllm")}


@pytest.mark.parametrize(
    ("now", "stored"),
    [
        (["id", "prompt"], None),
        (["id", "prompt", "more"], "+more"),
        (["prompt", "id"], "prompt id"),
        (["id", "new", "prompt"], "id new prompt"),
        (["id"], "id"),
    ],
)
def test_an_order_that_changes_is_on_record(now: list[str], stored: str | None) -> None:
    releases = {"1": {"f": ["id", "prompt"]}, "2": {"f": now}}
    record = compress(releases)
    assert record["2"].get("f") == stored
    assert expand(record) == releases
