"""The transformers engine: what it promises beyond the contract of every engine.

Covered: seeds, padding, 4 bits, forced lengths, what it loads and refuses, a whole run, the checks
before it. That it answers as vLLM does is in `test_engine_arms.py`. Not covered: CUDA.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.model_folders import write_adapter, write_base
from vllm_eval.config.layers import load_config, profile_names
from vllm_eval.config.machine import Gpu, Machine, Software
from vllm_eval.config.settings import resolve_path
from vllm_eval.engines import open_engine
from vllm_eval.errors import ConfigError, EngineError
from vllm_eval.inputs import cases
from vllm_eval.inputs.plan import prepare
from vllm_eval.preflight.check import check_config
from vllm_eval.records import BASELINE, Completion, Request
from vllm_eval.store import manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Bench
    from vllm_eval.engines.protocol import Engine

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, not ours

ARMS = (BASELINE, "po_student_demo")
LIBRARIES = Software(
    (("torch", "2.13.0"), ("transformers", "5.19.0"), ("peft", "0.21.2"), ("accelerate", "1.15.0"))
)
CPU = Machine("Linux", "3.11.7", 2, 16_000, ())
CARD = Machine("Linux", "3.11.7", 2, 16_000, (Gpu("T4", 15_360, "7.5", "580.65.06", 15_000),))


def start(log: Path, *, base: str | None = None, **flags: Any) -> Engine:
    """The engine on the demo model and its student."""
    config = load_config(["demo"], flags={"engine": "transformers"} | flags)
    plan = prepare(config)
    return open_engine(config, plan.arms, base or plan.base_model, log)


def prompts(count: int) -> list[str]:
    """Of demo cases: their lengths differ."""
    plan = prepare(load_config(["demo"], flags={"max_samples": count}))
    return [plan.task.prompt(case) for case in cases.read_cases(plan.dataset)]


def ask(number: int, prompt: str, arm: str = BASELINE, seed: int | None = None) -> Request:
    return Request(f"{arm}/{number}", arm, str(number), 0, 1, prompt, seed or 100 + number)


def drain(engine: Engine) -> dict[str, Completion]:
    found: dict[str, Completion] = {}
    while engine.busy:
        found |= {done.request_id: done for done in engine.poll()}
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One case at a time, and hot: a draw with the wrong seed shows."""
    log = tmp_path_factory.mktemp("single") / "engine.log"
    opened = start(log, temperature=4.0, top_p=0.98, max_new_tokens=40)
    yield opened
    opened.close()


@pytest.mark.engine
def test_padded_batches_give_the_texts_of_one_case_at_a_time(
    engine: Engine, tmp_path: Path
) -> None:
    requests = [ask(n, prompt, arm) for n, prompt in enumerate(prompts(5)) for arm in ARMS]
    engine.submit(requests)
    single = {name: done.text for name, done in drain(engine).items()}
    batched = start(
        tmp_path / "engine.log", temperature=4.0, top_p=0.98, max_new_tokens=40, batch_size=4
    )
    try:
        batched.submit(requests)
        assert {name: done.text for name, done in drain(batched).items()} == single
    finally:
        batched.close()
    assert len(set(single.values())) == len(requests)


@pytest.mark.engine
def test_another_seed_gives_another_answer(engine: Engine) -> None:
    (prompt,) = prompts(1)
    engine.submit([ask(0, prompt, seed=1), ask(1, prompt, seed=2)])
    one, other = drain(engine).values()
    assert one.text != other.text


@pytest.mark.engine
def test_draws_are_as_frequent_as_their_probabilities() -> None:
    import torch

    from vllm_eval.engines.transformers.batch import SeededDraw

    chances, rows = (0.5, 0.3, 0.2, 0.0), 4000
    draw = SeededDraw([torch.Generator().manual_seed(seed) for seed in range(rows)])
    scores = torch.tensor(chances).log().repeat(rows, 1)
    drawn = draw(torch.zeros(rows, 1), scores).argmax(dim=1).bincount(minlength=4)
    for count, chance in zip(drawn.tolist(), chances, strict=True):
        assert abs(count / rows - chance) <= 4 * (chance * (1 - chance) / rows) ** 0.5


@pytest.mark.engine
def test_a_prompt_too_long_costs_no_other_request(engine: Engine) -> None:
    engine.submit([ask(0, "word " * 5000), ask(1, "Concept: a portal")])
    found = drain(engine)
    assert "exceed max_model_len 3072" in (found[f"{BASELINE}/0"].error or "")
    assert found[f"{BASELINE}/1"].error is None
    assert found[f"{BASELINE}/1"].output_tokens > 0


@pytest.mark.engine
def test_requests_wait_for_their_turn_and_say_how_long(engine: Engine) -> None:
    engine.submit([ask(0, "Concept: a portal"), ask(1, "Concept: a portal")])
    first, second = drain(engine).values()
    assert first.queued_s < first.ttft_s < first.total_s <= second.queued_s < second.ttft_s


@pytest.mark.engine
def test_it_names_its_libraries_and_the_options_it_ignores(engine: Engine) -> None:
    about = engine.about
    assert {"transformers", "torch", "peft"} <= about.keys()
    assert (about["dtype"], about["quantization"], about["batch_size"]) == ("float32", "none", 1)
    assert "kv_cache_memory_bytes" in str(about["ignored"])


@pytest.mark.engine
def test_four_bits_answer_in_both_arms_and_unlike_the_whole_model(
    engine: Engine, tmp_path: Path
) -> None:
    requests = [ask(n, prompt, arm) for n, prompt in enumerate(prompts(2)) for arm in ARMS]
    engine.submit(requests)
    whole = {name: done.text for name, done in drain(engine).items()}
    flags: dict[str, Any] = {"load_4bit": True, "bnb_compute_dtype": "bfloat16"}
    small = start(tmp_path / "engine.log", temperature=4.0, top_p=0.98, max_new_tokens=40, **flags)
    try:
        assert small.about["quantization"] == "bitsandbytes"
        small.submit(requests)
        found = drain(small)
    finally:
        small.close()
    assert all(done.error is None and done.output_tokens for done in found.values())
    assert {name: done.text for name, done in found.items()} != whole


@pytest.mark.engine
def test_forced_lengths_run_past_the_end_of_an_answer(tmp_path: Path) -> None:
    """The prompt is a case with its whole answer: nothing is left but the end."""
    (prompt,) = prompts(1)
    free = start(tmp_path / "free.log", temperature=0.0)
    try:
        free.submit([ask(0, prompt)])
        answer = drain(free)[f"{BASELINE}/0"]
        free.submit([ask(1, prompt + answer.text)])
        ended = drain(free)[f"{BASELINE}/1"]
    finally:
        free.close()
    forced = start(tmp_path / "forced.log", temperature=0.0, ignore_eos=True, max_new_tokens=12)
    try:
        forced.submit([ask(1, prompt + answer.text)])
        pressed = drain(forced)[f"{BASELINE}/1"]
    finally:
        forced.close()
    assert (answer.finish_reason, answer.text.rstrip()[-3:]) == ("stop", "```")
    assert (ended.finish_reason, ended.output_tokens) == ("stop", 1)
    assert (pressed.finish_reason, pressed.output_tokens) == ("length", 12)


@pytest.mark.engine
def test_closing_ends_a_running_answer_at_its_next_token(tmp_path: Path) -> None:
    opened = start(tmp_path / "engine.log", ignore_eos=True, max_new_tokens=2500)
    opened.submit([ask(0, "Concept: a portal")])
    assert opened.poll(timeout=0.2) == []
    begin = time.monotonic()
    opened.close()
    assert time.monotonic() - begin < 5  # the whole answer takes 20 s and more


@pytest.mark.engine
def test_dummy_weights_need_no_weight_file(tmp_path: Path) -> None:
    base = shutil.copytree(resolve_path("package:demo/base"), tmp_path / "base")
    (base / "model.safetensors").unlink()
    flags: dict[str, Any] = {
        "engine_args": {"load_format": "dummy"},
        "max_new_tokens": 4,
        "ignore_eos": True,
    }
    opened = start(tmp_path / "engine.log", base=str(base), **flags)
    try:
        opened.submit([ask(0, "Concept: a portal")])
        assert drain(opened)[f"{BASELINE}/0"].output_tokens == 4
    finally:
        opened.close()


@pytest.mark.engine
def test_two_students_that_are_the_same_are_found_by_the_canary(tmp_path: Path) -> None:
    """Copies are found before; these differ in what training alone uses."""
    student = resolve_path("package:demo/po_student_demo")
    copies = [str(shutil.copytree(student, tmp_path / name)) for name in ("v1.0", "v1.1")]
    settings = Path(copies[1]) / "adapter_config.json"
    fields = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(fields | {"lora_dropout": 0.5}), encoding="utf-8")
    with pytest.raises(EngineError, match=r"'v1\.0' and 'v1\.1' give the same answers"):
        start(tmp_path / "engine.log", adapters=copies)


@pytest.mark.engine
def test_a_student_that_hardly_changes_the_base_is_named_in_a_warning(tmp_path: Path) -> None:
    student = shutil.copytree(resolve_path("package:demo/po_student_demo"), tmp_path / "faint")
    weights = load_file(student / "adapter_model.safetensors")
    faint = {key: value * (1e-5 if "lora_B" in key else 1) for key, value in weights.items()}
    save_file(faint, student / "adapter_model.safetensors")
    engine = start(tmp_path / "engine.log", adapters=[str(student)])
    try:
        assert "'faint' too weak to be told from the base" in str(engine.about["canary_warning"])
    finally:
        engine.close()


@pytest.mark.engine
def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    base = shutil.copytree(resolve_path("package:demo/base"), tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(EngineError, match="only safetensors can be loaded"):
        start(tmp_path / "engine.log", base=str(base))


@pytest.mark.engine
def test_a_whole_run_ends_with_a_verdict_and_a_quiet_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_eval", "--config", "demo", "--engine", "transformers"]
    command += ["--batch-size", "3", "--max-samples", "3", "--retries", "0"]
    command += ["--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    verdict = ("FAIL" if done.returncode else "PASS") + "  po_student_demo"
    assert verdict in done.stdout.splitlines()
    (log,) = tmp_path.glob("*/engine.log")
    assert "Loading weights" in log.read_text("utf-8")
    assert "Loading weights" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine_args": {"kv_cache_dtype": "fp8"}}, "has no option 'kv_cache_dtype'"),
        ({"engine_args": {"quantization": "awq"}}, "quantization: .* supports bitsandbytes, not"),
        ({"engine_args": {"dtype": "int8"}}, "dtype: .* not 'int8'"),
        ({"engine_args": {"max_model_len": "long"}}, "max_model_len: must be a number"),
        ({"engine_args": {"load_format": "dummy"}, "load_4bit": True}, "weights cannot be 4-bit"),
    ],
)
def test_an_option_that_would_change_answers_is_refused(
    flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        start(tmp_path / "engine.log", **flags)


@pytest.mark.parametrize("profile", profile_names())
def test_every_shipped_profile_can_be_read_by_this_engine(profile: str, tmp_path: Path) -> None:
    """It gets as far as the missing base."""
    config = load_config([profile], flags={"engine": "transformers"})
    with pytest.raises(EngineError, match="did not start"):
        open_engine(config, (), str(tmp_path / "nothing"), tmp_path / "engine.log")


def test_the_batch_size_is_no_part_of_what_a_run_is() -> None:
    plans = [
        prepare(load_config(["demo"], flags={"engine": "transformers", "batch_size": size}))
        for size in (1, 8)
    ]
    assert manifest.identify(plans[0]) == manifest.identify(plans[1])


@pytest.fixture
def config(bench: Bench) -> dict[str, Any]:
    """Flags for a check of this engine on a little base."""
    bench.dataset()
    return {
        "engine": "transformers",
        "profile": "none",
        "adapters": [str(write_adapter(bench.folder / "pupil"))],
        "base_model": str(write_base(bench.folder / "base")),
        "dataset_path": str(bench.cases),
        "output_dir": str(bench.output_dir),
    }


def lines(flags: dict[str, Any], machine: Machine, software: Software) -> str:
    findings = check_config(load_config(flags=flags), machine, software)
    return "\n".join(finding.line for finding in findings)


def test_the_check_asks_for_its_own_libraries_and_not_for_vllm(config: dict[str, Any]) -> None:
    found = lines(config, CPU, LIBRARIES)
    assert "transformers 5.19.0, peft 0.21.2" in found
    assert "error" not in found


def test_the_check_names_a_missing_library_and_the_extra(config: dict[str, Any]) -> None:
    found = lines(config | {"load_4bit": True}, CPU, LIBRARIES)
    assert (
        "error    transformers engine: needs bitsandbytes, which is not installed; pip install"
        in found
    )
    assert "vllm_eval[transformers]" in found


def test_the_check_finds_a_batch_too_large_for_the_memory(config: dict[str, Any]) -> None:
    found = lines(config | {"batch_size": 100_000}, CARD, LIBRARIES)
    assert "error    memory of T4: does not fit" in found
    assert "lower --batch-size" in found
