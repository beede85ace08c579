"""What `--adapter` stands for: training runs, globs, names; and what each adapter is called.

Folders are real, as PEFT and the usual trainers leave them; the engine is the scripted one, which
reads an adapter's folder where there is one. Not covered: downloads from the hub.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.model_folders import write_adapter, write_base, write_json
from vllm_eval import api
from vllm_eval.config.settings import Config
from vllm_eval.inputs.arms import MAX_LABEL, open_arms, run_label
from vllm_eval.preflight.check import check_config

if TYPE_CHECKING:
    from tests.conftest import Bench, Run
    from vllm_eval.inputs.arms import Arms
    from vllm_eval.records import Adapter

VLLM: dict[str, Any] = {"engine": "vllm"}
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may enter everywhere")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint(path: str, alpha: int = 0, **state: object) -> Path:
    """An adapter, alike only where `alpha` is; with what a trainer leaves in its folder."""
    folder = write_adapter(Path(path), lora_alpha=alpha or 1 + sum(path.encode()))
    if state:
        write_json(folder / "trainer_state.json", state)
    return folder


def training(path: str, *steps: int) -> Path:
    """A training run's folder with a checkpoint at each step."""
    for step in steps:
        checkpoint(f"{path}/checkpoint-{step}", step + 7 * sum(path.encode()))
    return Path(path)


def no_entry(path: str) -> None:
    """A folder that only its owner could enter, who is another."""
    Path(path).mkdir(mode=0)


def opened(*given: str, **more: object) -> Arms:
    options: dict[str, Any] = {"engine": "scripted", "adapters": given} | more
    return open_arms(Config(**options))


def names(*given: str, **more: object) -> list[str]:
    """What the students are called; there must be no problem."""
    found = opened(*given, **more)
    assert found.problems == ()
    return [arm.name for arm in found.arms[1:]]


def adapters(*given: str) -> list[Adapter]:
    return [arm.adapter for arm in opened(*given).arms if arm.adapter]


def steps(*given: str) -> list[int | None]:
    return [adapter.step for adapter in adapters(*given)]


def said(*given: str, **more: object) -> str:
    """What stands in the way."""
    return "\n".join(map(str, opened(*given, **more).problems))


def notes(*given: str) -> str:
    return "\n".join(f"{note.what}; {note.todo}" for note in opened(*given).notes)


# Training runs


def test_a_training_run_is_its_checkpoints_by_step() -> None:
    training("runs/exp1", 1000, 100, 20)
    assert names("runs/exp1") == ["checkpoint-20", "checkpoint-100", "checkpoint-1000"]
    assert steps("runs/exp1") == [20, 100, 1000]


def test_a_checkpoint_knows_the_folder_of_its_training_run() -> None:
    folder = training("runs/exp1", 1, 2).resolve()
    assert {adapter.training for adapter in adapters("runs/exp1")} == {folder}
    assert [adapter.training for adapter in adapters("runs/exp1/checkpoint-2")] == [folder]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-300", 300),
        ("checkpoint_300", 300),
        ("ckpt-7", 7),
        ("epoch_0", 0),
        ("epoch-3", 3),
        ("step_500", 500),
        ("global_step_40", 40),
        ("global_step40", 40),
        ("iter_0000100", 100),
        ("my-model-checkpoint-12", 12),
    ],
)
def test_the_checkpoints_of_the_usual_trainers_are_known_by_name(name: str, step: int) -> None:
    checkpoint(f"out/{name}")
    assert (names("out"), steps("out")) == ([name], [step])


def test_folders_of_other_names_follow_the_checkpoints_by_name() -> None:
    training("out", 10)
    for name in ("final", "best", "v10"):
        checkpoint(f"out/{name}")
    assert names("out") == ["checkpoint-10", "best", "final", "v10"]


def test_a_folder_of_adapters_is_all_of_them() -> None:
    for name in ("b", "a"):
        checkpoint(f"shelf/{name}")
    assert names("shelf") == ["a", "b"]
    assert {adapter.training for adapter in adapters("shelf")} == {None}


def test_the_final_adapter_in_the_folder_itself_comes_last_under_the_name_of_the_folder() -> None:
    training("runs/exp1", 100, 200)
    checkpoint("runs/exp1")
    assert names("runs/exp1") == ["checkpoint-100", "checkpoint-200", "exp1"]


def test_what_a_folder_became_is_said() -> None:
    training("runs/exp1", 100, 200)
    checkpoint("runs/exp1")
    what = "2 checkpoints and the final adapter; NAME=runs/exp1 takes that one alone"
    assert f"runs/exp1: {what}" in notes("runs/exp1")


@pytest.mark.parametrize(
    ("final", "last", "step"),
    [
        ({"global_step": 250}, {"global_step": 200}, 250),
        ({}, {"global_step": 200, "max_steps": 230}, 230),
        ({}, {"global_step": 200, "max_steps": 150}, None),
        ({}, {}, None),
        ({"global_step": "250"}, {}, None),
        ({"global_step": True}, {}, None),
        ({"global_step": -1}, {}, None),
    ],
)
def test_the_step_of_the_final_adapter_is_its_own_or_where_the_training_was_to_end(
    final: dict[str, object], last: dict[str, object], step: int | None
) -> None:
    checkpoint("out/checkpoint-200", 5, **last)
    checkpoint("out", 6, **final)
    assert steps("out") == [200, step]


@pytest.mark.parametrize("state", [b"{", b"[]", b"\xff", b"null", b'{"global_step": 1e9}'])
def test_a_state_that_cannot_be_used_leaves_the_step_to_the_name(state: bytes) -> None:
    folder = checkpoint("out/checkpoint-30")
    (folder / "trainer_state.json").write_bytes(state)
    assert steps("out") == [30]


def test_the_state_is_believed_before_the_name() -> None:
    checkpoint("out/checkpoint-1", global_step=120)
    checkpoint("out/epoch-2", global_step=60)
    assert names("out") == ["epoch-2", "checkpoint-1"]
    assert steps("out") == [60, 120]


@pytest.mark.parametrize("inside", ["default", "actor/lora_adapter"])
def test_a_checkpoint_may_hold_its_adapter_below_itself(inside: str) -> None:
    checkpoint(f"out/global_step_20/{inside}")
    checkpoint(f"out/global_step_40/{inside}")
    assert names("out") == ["global_step_20", "global_step_40"]
    assert steps("out") == [20, 40]
    assert names("out/global_step_40") == ["global_step_40"]
    assert adapters("out/global_step_40")[0].training == Path("out").resolve()


def test_what_else_a_trainer_leaves_in_a_checkpoint_is_no_checkpoint() -> None:
    training("out", 300)
    Path("out/checkpoint-300/global_step300").mkdir()
    (found,) = adapters("out/checkpoint-300")
    assert (found.name, found.step, found.training) == (
        "checkpoint-300",
        300,
        Path("out").resolve(),
    )
    assert notes("out/checkpoint-300") == ""


def test_a_final_adapter_beside_checkpoints_without_any_is_compared_alone() -> None:
    checkpoint("out", global_step=40)
    Path("out/checkpoint-20").mkdir()
    assert (names("out"), steps("out")) == (["out"], [40])
    assert "out: the final adapter" in notes("out")
    assert "left out for want of an adapter: checkpoint-20" in notes("out")


def test_a_checkpoint_with_two_adapters_asks_which() -> None:
    for name in ("chosen", "other"):
        checkpoint(f"out/checkpoint-1/{name}")
    text = said("out")
    assert "holds 2 adapters (chosen, other)" in text
    assert "out/*/chosen" in text


def test_a_checkpoint_without_an_adapter_is_left_out_and_said() -> None:
    training("out", 10)
    Path("out/checkpoint-20/global_step20").mkdir(parents=True)
    checkpoint("out/tmp-checkpoint-30")
    assert names("out") == ["checkpoint-10"]
    assert "left out for want of an adapter: checkpoint-20, tmp-checkpoint-30" in notes("out")


def test_checkpoints_of_whole_models_are_told_from_adapters(tmp_path: Path) -> None:
    write_base(tmp_path / "out/checkpoint-10")
    assert "none of its checkpoints holds" in said("out", **VLLM)


def test_a_folder_of_training_runs_says_how_to_take_them_all() -> None:
    training("runs/exp1", 1)
    training("runs/exp2", 1)
    assert "--adapter 'runs/*'" in said("runs", **VLLM)
    assert names("runs/*") == ["exp1/checkpoint-1", "exp2/checkpoint-1"]


def test_a_folder_of_finished_training_runs_is_their_final_adapters_and_says_so() -> None:
    training("runs/exp1", 1)
    training("runs/exp2", 1)
    checkpoint("runs/exp1", global_step=2)
    checkpoint("runs/other")
    assert (names("runs"), steps("runs")) == (["exp1", "other"], [2, None])
    assert "runs: the checkpoints in exp1, exp2 are left out" in notes("runs")
    assert "--adapter 'runs/*'" in notes("runs")


def test_a_broken_checkpoint_is_named_and_the_others_are_still_read() -> None:
    training("out", 1, 2)
    Path("out/checkpoint-2/adapter_model.safetensors").unlink()
    assert "checkpoint-2: has no adapter_model.safetensors" in said("out")
    assert [arm.name for arm in opened("out").arms] == ["baseline", "checkpoint-1"]


# Copies


def test_the_final_adapter_is_left_out_where_it_is_the_last_checkpoint() -> None:
    training("out", 100, 200)
    shutil.copytree("out/checkpoint-200", "out", dirs_exist_ok=True)
    assert names("out") == ["checkpoint-100", "checkpoint-200"]
    assert (
        "out: is the same adapter as checkpoint-200, so it is left out; \n" in notes("out") + "\n"
    )


@pytest.mark.parametrize("inside", [".", "../checkpoint-200", "../../out/checkpoint-200/."])
def test_a_checkpoint_given_from_inside_of_it_keeps_its_name_and_step(
    inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(training("out", 100, 200) / "checkpoint-200")
    assert (names(inside), steps(inside)) == (["checkpoint-200"], [200])


@needs_permissions
@pytest.mark.parametrize("given", ["volume", "volume/*", "volume/more", "volume/more/*"])
def test_a_folder_that_is_not_for_us_is_no_obstacle_to_the_adapters_beside_it(
    given: str,
) -> None:
    training("volume", 100)
    training("volume/more/a", 200)
    no_entry("volume/lost+found")
    no_entry("volume/more/lost+found")
    found = opened(given, **VLLM)
    assert "Permission denied" not in "".join(map(str, found.problems))
    assert len(found.arms) > 1 or "volume/more/*" in "".join(map(str, found.problems))


@needs_permissions
def test_a_checkpoint_that_cannot_be_entered_is_named() -> None:
    training("out", 100)
    no_entry("out/checkpoint-200")
    for given in ("out", "out/*"):
        assert re.search(r"Permission denied \(.*out/checkpoint-200", said(given))


def test_a_link_to_a_checkpoint_has_its_step() -> None:
    training("out", 100, 200)
    Path("best").symlink_to("out/checkpoint-200")
    assert (names("best"), steps("best")) == (["best"], [200])


def test_the_glob_offered_for_a_folder_with_brackets_can_be_given() -> None:
    training("runs[1]/a", 100)
    (offered,) = re.findall(r"--adapter '(.+?)'", said("runs[1]", **VLLM))
    assert names(offered) == ["checkpoint-100"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("a/X", "b/y", "a/x"), "'X' (a/X, a/x)"),
        (("b/y", "baseline=a/x"), "'a/x' would be called 'baseline', as the base model is"),
    ],
)
def test_of_names_that_are_the_same_those_are_named(given: tuple[str, ...], why: str) -> None:
    for path in ("a/X", "a/x", "b/y"):
        checkpoint(path)
    assert why in said(*given)


def test_a_link_to_the_best_checkpoint_is_no_second_adapter() -> None:
    training("out", 100, 200)
    Path("out/best").symlink_to("checkpoint-100")
    assert names("out") == ["checkpoint-100", "checkpoint-200"]


def test_two_checkpoints_that_are_alike_are_a_warning() -> None:
    checkpoint("out/checkpoint-1", 5)
    checkpoint("out/checkpoint-2", 5)
    assert names("out") == ["checkpoint-1"]
    assert "checkpoint-2: is the same adapter as checkpoint-1" in notes("out")
    assert "did training change it?" in notes("out")


@pytest.mark.parametrize("second", ["b", "a/", "./a", "other=a", "other=b", "shelf/*"])
def test_an_adapter_that_was_given_twice_is_an_error(second: str) -> None:
    checkpoint("a", 5)
    checkpoint("b", 5)
    checkpoint("shelf/c", 5)
    assert "leave one out" in said("a", second)


# Globs


@pytest.mark.parametrize("pattern", ["runs/exp1/checkpoint-*", "runs/*/*", "r*/exp?/*[0-9]"])
def test_a_quoted_glob_takes_the_folders_that_hold_an_adapter(pattern: str) -> None:
    training("runs/exp1", 100, 20)
    Path("runs/exp1/checkpoint-3.txt").write_text("no folder", "utf-8")
    Path("runs/exp1/logs1").mkdir()
    assert names(pattern) == ["checkpoint-20", "checkpoint-100"]


def test_a_glob_is_looked_up_in_the_adapter_folders_too(tmp_path: Path) -> None:
    training("shelf/exp1", 1, 2)
    found = names("exp1/checkpoint-*", adapter_dirs=(str(tmp_path / "shelf"),))
    assert found == ["checkpoint-1", "checkpoint-2"]


def test_a_folder_whose_name_is_a_glob_wins() -> None:
    checkpoint("run[1]")
    checkpoint("run1")
    assert adapters("run[1]")[0].path == Path("run[1]").resolve()


def test_a_glob_without_a_match_names_what_is_like_it() -> None:
    training("runs/exp1", 100)
    text = said("runs/exp1/chekpoint-*")
    assert "matches no folder" in text
    assert "did you mean 'runs/exp1/checkpoint-100'?" in text


def test_a_glob_that_matches_no_adapter_says_so() -> None:
    Path("runs/exp1").mkdir(parents=True)
    assert "matches 1 folder, such as runs/exp1, but no adapter" in said("runs/*")


def test_words_after_the_option_are_further_adapters(bench: Bench) -> None:
    run = answered(bench, "--adapter", "a", "b", "--retries", "0", "--adapter-path", "c", "d")
    assert list(run.result("comparison")["arms"]) == ["baseline", "a", "b", "c", "d"]


def test_a_word_after_another_option_is_no_adapter(bench: Bench) -> None:
    run = bench.call("check", "--adapter", "a", "--retries", "0", "b")
    assert run.code == 2
    assert "unexpected extra argument" in run.err


def test_a_mistyped_command_is_told_as_one(bench: Bench) -> None:
    assert "No such command 'chekc'" in bench.call("chekc", "--adapter", "a").err


def test_a_command_among_the_adapters_is_told_as_one(bench: Bench) -> None:
    run = bench.call("--adapter", "a", "check")
    assert run.code == 2
    assert "'check' is a command: write it before the options" in run.err


# Names


def test_an_adapter_may_be_given_a_name() -> None:
    checkpoint("runs/exp1")
    assert names("first=runs/exp1") == ["first"]
    assert adapters("first=runs/exp1")[0].name == "first"


def test_a_named_adapter_on_a_server_is_loaded_from_the_path_given() -> None:
    (_, student) = opened("own=/srv/models/a", engine="openai").arms
    assert (student.name, student.adapter, student.given) == ("own", None, "/srv/models/a")


def test_a_name_takes_the_final_adapter_alone() -> None:
    training("runs/exp1", 1, 2)
    checkpoint("runs/exp1", global_step=3)
    assert (names("end=runs/exp1"), steps("end=runs/exp1")) == (["end"], [3])


def test_a_name_is_not_for_several_adapters() -> None:
    training("runs/exp1", 1, 2)
    assert "a name is for one adapter, but this holds 2" in said("all=runs/exp1")
    assert "not for all that a glob matches" in said("all=runs/exp1/*")


def test_a_path_with_an_equals_sign_is_a_path_where_it_exists() -> None:
    checkpoint("runs/lr=1")
    checkpoint("size=2")
    assert names("runs/lr=1", "size=2") == ["lr_1", "size_2"]


def test_a_missing_path_with_an_equals_sign_is_told_as_a_path() -> None:
    checkpoint("runs/lr=1")
    assert "did you mean 'runs/lr=1'?" in said("runs/lr=2", **VLLM)


@pytest.mark.parametrize("name", ["baseline", "BaseLine", "a b", "a+b", "..", "x" * 101])
def test_a_name_that_cannot_name_files_is_refused(name: str) -> None:
    checkpoint("a")
    assert "adapters:" in said(f"{name}=a")


def test_adapters_of_one_name_get_their_parents_with_their_siblings() -> None:
    training("runs/exp1", 100, 300)
    training("runs/exp2", 300)
    assert names("runs/exp1", "runs/exp2") == [
        *("exp1/checkpoint-100", "exp1/checkpoint-300", "exp2/checkpoint-300"),
    ]


def test_names_get_as_many_parents_as_it_takes() -> None:
    training("a/out", 1)
    training("b/out", 1)
    checkpoint("b/out")
    checkpoint("c/other")
    assert names("a/out", "b/out", "c/other") == [
        *("a/out/checkpoint-1", "b/out/checkpoint-1", "b/out", "other"),
    ]


def test_a_given_name_stays_and_others_give_way() -> None:
    checkpoint("runs/pupil")
    checkpoint("other")
    assert names("pupil=other", "runs/pupil") == ["pupil", "runs/pupil"]


@pytest.mark.parametrize(("one", "other"), [("x/Abc", "y/aBC"), ("x/a b", "y/a_b"), ("x/ä", "y/ö")])
def test_names_differ_in_the_names_of_files_too(one: str, other: str) -> None:
    checkpoint(one, 1)
    checkpoint(other, 2)
    first, second = names(one, other)
    assert (first[:2], second[:2]) == ("x/", "y/")


def test_an_adapter_called_baseline_gets_its_parent() -> None:
    checkpoint("runs/baseline")
    assert names("runs/baseline") == ["runs/baseline"]


# Paths that are not there


@pytest.mark.parametrize(
    "given", ["./gone/x", "runs/x", "a/b/c", "~/x", "gone/", "a\\b", "/x/y", "runs/*", "../x"]
)
def test_what_looks_like_a_path_is_never_asked_from_the_hub(given: str) -> None:
    Path("runs").mkdir()
    text = said(given, **VLLM)
    assert f"adapter {given!r}: " in text
    assert "hub" not in text


def test_a_missing_path_names_what_is_like_it() -> None:
    training("runs/exp1", 100)
    assert "did you mean 'runs/exp1/checkpoint-100'?" in said("runs/epx1/checkpoint-100", **VLLM)
    assert "did you mean 'runs/exp1'?" in said("runs/epx1/checkpoint-7", **VLLM)


def test_a_missing_name_names_what_is_like_it_in_the_adapter_folders() -> None:
    checkpoint("adapters/po_student")
    assert "did you mean 'adapters/po_student'?" in said("po_studnet", **VLLM)


# Runs


def answered(bench: Bench, *options: str) -> Run:
    """A run of the scripted engine in which every arm answers, the adapters as given."""
    bench.dataset(1)
    bench.answers({"text": "any"})
    run = bench.call(
        *("--engine", "scripted", "--script", str(bench.script), *options),
        *("--dataset-path", str(bench.cases), "--output-dir", str(bench.output_dir)),
        *("--profile", "none", "--no-report"),
    )
    assert run.code == 1, run.err
    return run


def test_a_run_takes_the_folder_of_a_training_run(bench: Bench) -> None:
    training("runs/exp1", 20, 100)
    run = answered(bench, "--adapter", "runs/exp1")
    assert "adapters: runs/exp1: 2 checkpoints" in run.out
    assert run.result("manifest")["adapters"]["checkpoint-100"]["step"] == 100
    assert run.result("student_checkpoint-20")["arm"] == "checkpoint-20"


def test_the_check_says_what_was_left_out(bench: Bench) -> None:
    training("out", 1)
    Path("out/checkpoint-2").mkdir()
    found = check_config(Config(engine="scripted", adapters=("out",)))
    (left_out,) = [f for f in found if "left out" in f.what]
    assert (left_out.level, left_out.where) == ("warning", "adapters")


def test_an_arm_with_a_parent_in_its_name_has_a_file_of_its_own(bench: Bench) -> None:
    training("a", 1)
    training("b", 1)
    run = answered(bench, "--adapter", "a", "b", "--adapter", "a_checkpoint-1=c")
    files = [json.loads(path.read_bytes()) for path in run.folder.glob("student_*")]
    arms = {file["arm"] for file in files}
    assert len(files) == len(arms) == 3
    assert {"a_checkpoint-1", "b/checkpoint-1"} < arms


def test_the_folder_of_a_run_is_named_after_what_was_compared(bench: Bench) -> None:
    training("runs/exp1", 20, 100)
    assert answered(bench, "--adapter", "runs/exp1").folder.name.startswith("exp1_")


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (("a",), "a"),
        (("x/a", "y/a"), "x_a_vs_y_a"),
        (("a", "b", "c"), "a_vs_b_vs_c"),
        (("a", "b", "c", "d"), "a_and_3_more"),
    ],
)
def test_a_run_without_a_tag_is_called_by_its_adapters(given: tuple[str, ...], label: str) -> None:
    assert run_label(opened(*given).arms) == label


def test_the_name_of_a_run_is_not_too_long_for_a_folder() -> None:
    long = [letter * 90 for letter in "abcd"]
    assert len(run_label(opened(*long[:2]).arms)) <= MAX_LABEL
    assert len(run_label(opened(*long).arms)) <= MAX_LABEL


def test_the_stored_configuration_keeps_what_was_given(bench: Bench) -> None:
    training("runs/exp1", 20, 100)
    run = answered(bench, "--adapter", "runs/exp1")
    assert "adapters:\n- runs/exp1\n" in (run.folder / "config.yaml").read_text("utf-8")


def test_a_checkpoint_that_is_new_since_is_named_when_the_run_is_resumed(bench: Bench) -> None:
    training("runs/exp1", 20, 100)
    folder = answered(bench, "--adapter", "runs/exp1").folder
    training("runs/exp1", 200)
    run = bench.call("--resume", str(folder))
    assert run.code == 2
    assert "(new: checkpoint-200)" in run.err
    again = re.search(r"its own adapters are (--adapter .*)", run.err)
    assert again
    assert bench.call("--resume", str(folder), *again[1].split()).code == 1


def test_python_takes_paths_of_training_runs(bench: Bench) -> None:
    training("runs/exp1", 20, 100)
    options: dict[str, Any] = {"engine": "scripted", "report": False, "profile": "none"}
    options |= {"script": str(bench.answers({"text": "any"})), "output_dir": "out"}
    result = api.evaluate(Path("runs") / "exp1", dataset_path=str(bench.dataset(1)), **options)
    assert [verdict.arm for verdict in result.verdicts] == ["checkpoint-20", "checkpoint-100"]


def test_the_working_folder_may_be_a_training_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(training("runs/exp1", 1))
    checkpoint(".", 3)
    assert names(".") == ["checkpoint-1", "exp1"]
