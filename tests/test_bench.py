"""`bench` as it is called: who is timed, on what work, and what it leaves behind.

Covered with the scripted engine: contestants, sweeps, the barrier's cost, files. Covered with real
engines: our loop, bare calls and transformers side by side; weights made up from a `config.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.numpy import load_file

from tests.model_folders import BASE, write_json
from vllm_eval.bench.contestants import choose, group
from vllm_eval.bench.session import make_up
from vllm_eval.config.layers import Layers
from vllm_eval.errors import ConfigError
from vllm_eval.inputs.adapters import WEIGHTS_FILE, read_adapter
from vllm_eval.inputs.base_model import read_base
from vllm_eval.preflight.adapter import check_adapter

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench, Run

ROOT = Path(__file__).parents[1]
SCRIPTED = Layers((), ("profile=none",), {"engine": "scripted", "adapters": ["pupil"]})
DEMO = Layers(("demo",), (), {})


def found(run: Run) -> dict[str, Any]:
    assert run.code == 0, run.err
    (path,) = run.output_dir.glob("benchmarks/*/bench.json")
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def names(layers: Layers, chosen: str | None = None, *sets: str, fails: bool = False) -> list[str]:
    return [one.name for one in choose(layers, chosen, sets, fails=fails)]


@pytest.fixture
def scripted(bench: Bench, answers: Answers) -> Bench:
    """Six cases; the first takes four times as long as the others."""
    bench.dataset(6)
    text = answers.text()
    bench.answers(
        {"concept_id": "K1", "text": text, "seconds": 0.4}, {"text": text, "seconds": 0.1}
    )
    return bench


def call(bench: Bench, *more: str) -> Run:
    return bench.call("bench", *bench.arguments("--repeats", "2", "--warmup", "0", *more))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """Folder, output and JSON of one benchmark of two contestants."""
    folder = tmp_path_factory.mktemp("timed")
    cases, script = folder / "cases.jsonl", folder / "script.jsonl"
    row = {"concept": "A tool library", "requirements_yaml": "title: x", "tier": "simple"}
    cases.write_text("".join(json.dumps(row | {"concept_id": f"K{n}"}) + "\n" for n in range(6)))
    script.write_text('{"concept_id": "*", "text": "one two three", "seconds": 0.2}\n')
    command = [sys.executable, "-m", "vllm_eval", "bench", "--engine", "scripted", "--profile"]
    command += ["none", "--script", str(script), "--adapter", "pupil", "--dataset-path", str(cases)]
    command += ["--output-dir", str(folder), "--repeats", "2", "--warmup", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("benchmarks/*/bench.json")
    return path.parent, done.stdout, json.loads(path.read_text("utf-8"))


Timed = tuple["Path", str, dict[str, Any]]


def test_every_contestant_has_a_trial_in_every_repeat(timed: Timed) -> None:
    rows = timed[2]["contestants"]
    assert {name: len(row["trials"]) for name, row in rows.items()} == {"mixed": 2, "arms": 2}
    assert {row["trials"][0]["requests"] for row in rows.values()} == {12}


def test_one_arm_after_the_other_takes_both_arms_times(timed: Timed) -> None:
    """Each answer takes 0.2 s; how much more that is: `scripts/benchmark_overlap`."""
    rows = timed[2]["contestants"]
    assert min(trial["seconds"] for trial in rows["mixed"]["trials"]) >= 0.2
    assert min(trial["seconds"] for trial in rows["arms"]["trials"]) >= 0.4


def test_the_machine_the_work_and_the_load_are_kept(timed: Timed) -> None:
    kept = timed[2]
    assert kept["machine"]["cpus"] >= 1
    assert len(kept["load_average"]["before"]) == 3
    work = {"least": 256, "most": 256, "fail_rate": 0, "attempts": 1, "seed": 42}
    assert kept["work"] == work | {"cases": 6}


def test_the_table_names_every_contestant_and_the_work(timed: Timed) -> None:
    assert "12 requests (0 retries)" in timed[1]
    assert "arms" in timed[1]


def test_it_draws_itself_as_svg_and_png(timed: Timed) -> None:
    svg = timed[0] / "bench.svg"
    assert "mixed" in svg.read_text("utf-8")
    assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_barrier_makes_retries_wait_for_the_slowest_case(scripted: Bench) -> None:
    """By the script's seconds, the first round then lasts 0.4 s and each retry 0.1 s or more.

    How much longer that takes is measured by `scripts/benchmark_overlap`.
    """
    flags = ("--contestants", "mixed,barrier", "--fail-rate", "0.5", "--retries", "4")
    rows = found(call(scripted, *flags))["contestants"]
    assert rows["mixed"]["trials"][0]["retries"] > 0
    counts = [rows[name]["trials"][0]["requests"] for name in ("mixed", "barrier")]
    assert counts[0] == counts[1]
    assert min(trial["seconds"] for trial in rows["barrier"]["trials"]) >= 0.5


def test_a_swept_setting_gets_a_contestant_for_each_value(scripted: Bench) -> None:
    run = call(scripted, "--temperature", "0.5", "--set", "temperature=0.1,0.9")
    rows = found(run)["contestants"]
    assert list(rows) == ["mixed", "temperature=0.1", "temperature=0.9"]
    assert rows["temperature=0.9"]["config"]["temperature"] == 0.9


def test_one_at_a_time_every_repeat_starts_its_engines_anew(scripted: Bench) -> None:
    flags = ("--contestants", "mixed,arms", "--set", "temperature=0.9")
    together = found(call(scripted, *flags))["contestants"]
    assert {name: len(row["start_s"]) for name, row in together.items()} == dict.fromkeys(
        ("mixed", "arms", "temperature=0.9"), 1
    )
    run = call(scripted, *flags, "--one-at-a-time", "--tag", "alone")
    (path,) = run.output_dir.glob("benchmarks/alone_*/bench.json")
    alone = json.loads(path.read_text("utf-8"))["contestants"]
    assert {len(row["start_s"]) for row in alone.values()} == {2}
    assert {len(row["trials"]) for row in alone.values()} == {2}


def test_a_contestant_that_gets_no_answer_ends_the_benchmark(bench: Bench) -> None:
    bench.dataset(2)
    bench.answers({"concept_id": "K1", "text": "x"}, {"error": "out of words"})
    run = call(bench, "--contestants", "mixed")
    assert run.code == 3
    assert "2 requests have no answer: out of words" in run.err


def test_an_engine_that_cannot_start_is_an_error_with_its_cause(bench: Bench) -> None:
    bench.dataset(2)
    run = call(bench, "--contestants", "mixed")
    assert run.code == 2
    assert "cannot read the script" in run.err


def test_the_engines_of_the_default_are_all_that_can_be_held_against_each_other() -> None:
    expected = ["mixed", "arms", "generate", "transformers", "transformers-batched"]
    assert names(DEMO) == expected
    assert names(SCRIPTED) == ["mixed", "arms"]
    assert "barrier" in names(SCRIPTED, fails=True)


def test_contestants_of_one_configuration_share_an_engine() -> None:
    chosen = choose(DEMO, "mixed,transformers,generate", ["temperature=0.2"], fails=False)
    groups = [[one.name for one in members] for members in group(chosen)]
    assert groups == [["mixed", "generate", "temperature=0.2"], ["transformers"]]


@pytest.mark.parametrize(
    ("chosen", "sets", "message"),
    [
        ("mixd", (), "there is no 'mixd'; choose from mixed, arms"),
        ("generate", (), "'generate' needs the vllm engine"),
        ("mixed,mixed", (), "'mixed' is there twice"),
        (None, ("temperature",), "must be KEY.PATH=VALUE"),
        (None, ("temperature=",), "must be KEY.PATH=VALUE"),
        (None, ("temperature=[",), "not valid YAML"),
        (None, ("temprature=1",), "did you mean 'temperature'"),
        (None, ("max_new_tokens=64,512",), "max_new_tokens itself: --output-len"),
        (None, ("ignore_eos=true,false",), "sets ignore_eos itself"),
        (None, ("retries=0,2",), "retries itself: --retries"),
        (None, ("seed=1,2",), "seed itself: --seed"),
        (None, ("samples_per_case=1,3",), "sets samples_per_case itself"),
    ],
)
def test_a_contestant_that_cannot_be_is_named(
    chosen: str | None, sets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        names(SCRIPTED, chosen, *sets)


def test_one_arm_at_a_time_and_transformers_mix_no_arms_in_a_step() -> None:
    chosen = choose(DEMO, "mixed,arms,generate,transformers-batched", (), fails=False)
    assert [one.mixes_arms for one in chosen] == [True, False, True, False]


def test_a_swept_value_beats_the_flag_of_its_key_and_leaves_the_others() -> None:
    given = {"temperature": 0.5, "engine_args": {"max_num_seqs": 32, "max_model_len": 900}}
    layers = Layers(SCRIPTED.files, SCRIPTED.settings, SCRIPTED.flags | given)
    sets = ["engine_args.max_num_seqs=16,64", "temperature=0,0.7"]
    configs = {one.name: one.config for one in choose(layers, None, sets, fails=False)}
    assert {name: config.engine_args for name, config in configs.items()} == {
        name: {"max_num_seqs": sequences, "max_model_len": 900}
        for name, sequences in zip(configs, [32, 16, 64, 32, 32], strict=True)
    }
    assert [config.temperature for config in configs.values()] == [0.5, 0.5, 0.5, 0, 0.7]


def test_only_vllm_varies_its_answers_lengths(bench: Bench) -> None:
    flags = ("--contestants", "mixed,transformers", "--output-len", "8-16")
    run = bench.call("bench", "--config", "demo", "--output-dir", str(bench.output_dir), *flags)
    assert run.code == 2
    assert "transformers cannot vary it" in run.err


def test_made_up_weights_need_a_config_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a folder with a config\.json"):
        make_up(str(tmp_path / "nowhere"), 8, tmp_path)


def write_shapes(folder: Path) -> Path:
    """A base that is only a `config.json`, with room for the demo's tokens."""
    folder.mkdir()
    sizes = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 1536}
    write_json(folder / "config.json", BASE | sizes)
    return folder


def test_a_made_up_adapter_fits_its_base_and_holds_small_numbers(tmp_path: Path) -> None:
    base_folder, adapter_folder = make_up(str(write_shapes(tmp_path / "shapes")), 32, tmp_path)
    adapter = read_adapter("made", adapter_folder)
    base = read_base(str(base_folder), weights=False)
    findings = check_adapter(adapter, base, (0, 32), 64)
    assert [finding.line for finding in findings if finding.level != "ok"] == []
    assert adapter.rank == 32
    tensors = load_file(adapter_folder / WEIGHTS_FILE).values()
    values = [float(value) for tensor in tensors for value in tensor.flat][:2000]
    assert all(2**-7 <= abs(value) <= 2**-5 for value in values)
    assert 800 < sum(value > 0 for value in values) < 1200


@pytest.mark.engine
def test_our_loop_bare_calls_and_transformers_do_the_same_work(bench: Bench) -> None:
    flags = ["--max-samples", "3", "--output-len", "16", "--repeats", "1", "--warmup", "0"]
    flags += ["--contestants", "mixed,generate,transformers", "--output-dir", str(bench.output_dir)]
    kept = found(bench.call("bench", "--config", "demo", *flags))
    rows = kept["contestants"]
    assert [row["trials"][0]["output_tokens"] for row in rows.values()] == [96, 96, 96]
    assert kept["speed"]["bytes_per_s"] > 1e8
    assert 0 < rows["mixed"]["limit"]["least_s"] < rows["mixed"]["seconds"]["median"]


@pytest.mark.engine
def test_shapes_without_weights_are_timed_with_varying_lengths(
    bench: Bench, tmp_path: Path
) -> None:
    shapes = write_shapes(tmp_path / "shapes")
    flags = ["--base-model", str(shapes), "--load-format", "dummy", "--rank", "4"]
    flags += ["--dataset-path", "package:demo/cases.jsonl", "--max-samples", "3"]
    flags += ["--profile", "demo", "-c", "adapters=[]", "--output-len", "8-24", "--repeats", "1"]
    flags += ["--warmup", "0", "--contestants", "mixed,generate,barrier"]
    flags += ["--fail-rate", "0.4", "--retries", "1", "--output-dir", str(bench.output_dir)]
    rows = found(bench.call("bench", *flags))["contestants"]
    totals = {row["trials"][0]["output_tokens"] for row in rows.values()}
    assert len(totals) == 1
    requests = rows["mixed"]["trials"][0]["requests"]
    assert requests > 6
    assert 8 * requests < totals.pop() < 24 * requests


@pytest.mark.engine
@pytest.mark.deep
def test_the_gpu_script_runs_on_small_shapes_without_a_gpu(tmp_path: Path) -> None:
    """Its table has a row for every contestant, transformers being the measure."""
    command = [sys.executable, str(ROOT / "scripts/benchmark_gpu.py"), "--tiny", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == [
        "work",
        "4 cases x 2 arms, mixed",
        "4 cases x 2 arms, arms",
        "4 cases x 2 arms, generate",
        "transformers, transformers",
    ]
    assert rows[-1][5].strip() == "1.0"
