"""A further run of the same adapter on the same cases says which look it is.

Evidence files of other runs are of unknown origin: none of them stops a run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REQUIREMENTS, Answers, Bench, Run
from tests.report_runs import interrupt

Change = Callable[[dict[str, Any]], object]


def cases(bench: Bench, first: int, last: int, prefix: str = "K") -> None:
    """Cases whose texts differ; `prefix` is of their ids."""
    rows: list[dict[str, object]] = [
        {
            "concept_id": f"{prefix}{n}",
            "concept": f"Tool library {n}",
            "requirements_yaml": REQUIREMENTS,
        }
        for n in range(first, last + 1)
    ]
    bench.write(bench.cases, rows)


@pytest.fixture
def run(bench: Bench, answers: Answers) -> Callable[..., Run]:
    """One run more on cases K`first` to K`last`, and what it printed."""
    bench.answers({"text": answers.text()})

    def call(first: int, last: int, *more: str, prefix: str = "K") -> Run:
        cases(bench, first, last, prefix)
        return bench.run(*more)

    return call


def folders(bench: Bench) -> list[Path]:
    """The run folders, oldest first."""
    return sorted(bench.output_dir.glob("*/"), key=lambda path: path.stat().st_ctime_ns)


def newest(bench: Bench) -> Path:
    found = (json.loads((path / "manifest.json").read_text()) for path in folders(bench))
    ordered = sorted(zip([one["started_at"] for one in found], folders(bench), strict=True))
    return ordered[-1][1]


def looks(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())["looks"]
    return found


def test_a_second_run_on_the_same_cases_says_look_2(bench: Bench, run: Callable[..., Run]) -> None:
    assert "look" not in run(1, 4).out
    again = run(1, 4)
    assert "pupil: This is look 2 at these cases." in again.out
    assert looks(newest(bench)) == {"pupil": {"number": 2, "shared": 4, "cases": 4}}
    assert "look 3 at these cases" in run(1, 4).out


def test_other_cases_say_nothing(run: Callable[..., Run]) -> None:
    run(1, 4)
    assert "look" not in run(5, 8).out


def test_a_partial_overlap_says_how_many_cases(run: Callable[..., Run]) -> None:
    run(1, 4)
    assert "look 2 at 3 of these 5 cases" in run(2, 6).out


def test_runs_that_share_different_cases_are_not_added_up(run: Callable[..., Run]) -> None:
    run(1, 2)
    run(3, 4)
    assert "look 2 at these cases" in run(1, 4).out


def test_the_same_cases_in_another_file_are_the_same(run: Callable[..., Run]) -> None:
    run(1, 4)
    assert "look 2 at 3 of these 5 cases" in run(2, 6, prefix="other-").out


def test_another_gate_is_a_further_look(run: Callable[..., Run]) -> None:
    run(1, 4)
    assert "look 2 at these cases" in run(1, 4, "--min-ratio", "0.8").out
    assert "look 3 at these cases" in run(1, 4, "--temperature", "0.5").out


def test_an_adapter_of_the_same_name_with_other_answers_is_no_further_look(
    bench: Bench, answers: Answers, run: Callable[..., Run]
) -> None:
    """A scripted arm has no weights: its name and its script stand for them."""
    run(1, 4)
    bench.answers({"text": answers.text() + "\n"})
    assert "look" not in run(1, 4).out


@pytest.mark.parametrize("key", ["base_model", "task"])
def test_another_base_or_task_is_another_question(
    key: str, bench: Bench, run: Callable[..., Run]
) -> None:
    run(1, 4)
    (first,) = folders(bench)
    damaged(first / "evidence.json", lambda found: found["identity"].update({key: "other"}))
    assert "look" not in run(1, 4).out


def test_a_run_that_stopped_early_is_no_look(bench: Bench, run: Callable[..., Run]) -> None:
    run(1, 4)
    (first,) = folders(bench)
    part = interrupt(first, 3)
    shutil.rmtree(first)
    assert bench.call("diagnose", str(part)).code == 0
    assert "look" not in run(1, 4).out


def test_a_run_in_which_an_arm_never_answered_is_no_look(
    bench: Bench, answers: Answers, run: Callable[..., Run]
) -> None:
    bench.answers({"text": answers.text()}, {"arm": "pupil", "error": "out of memory"})
    run(1, 4)
    (first,) = folders(bench)
    assert not (first / "evidence.json").exists()


def test_a_run_that_is_resumed_keeps_its_number(bench: Bench, run: Callable[..., Run]) -> None:
    run(1, 4)
    (first,) = folders(bench)
    run(1, 4)
    again = run(1, 4, "--resume", str(first))
    assert "look" not in again.out
    assert looks(first)["pupil"]["number"] == 1


def test_a_run_that_is_resumed_with_another_threshold_is_a_further_look(
    bench: Bench, run: Callable[..., Run]
) -> None:
    run(1, 4)
    (first,) = folders(bench)
    again = bench.call("--resume", str(first), "--min-ratio", "0.8")
    assert "pupil: This is look 2 at these cases." in again.out
    assert "look 2 at these cases" in bench.call("--resume", str(first)).out


def test_a_run_that_is_rendered_or_concluded_again_keeps_its_number(
    bench: Bench, run: Callable[..., Run]
) -> None:
    run(1, 4)
    run(1, 4)
    second, number = newest(bench), looks(newest(bench))
    run(1, 4)
    assert bench.call("report", str(second)).code == 0
    assert looks(second) == number
    (second / "comparison.json").unlink()
    assert bench.call("diagnose", str(second)).code == 0
    assert looks(second) == number


def test_a_copy_of_a_run_is_not_a_run(bench: Bench, run: Callable[..., Run]) -> None:
    run(1, 4)
    (first,) = folders(bench)
    shutil.copytree(first, first.with_name("copy"))
    run(1, 4)
    assert looks(newest(bench))["pupil"]["number"] == 2


def test_the_reports_and_the_history_say_it(bench: Bench, run: Callable[..., Run]) -> None:
    run(1, 4)
    run(1, 4, "--report")
    second = newest(bench)
    for name in ("report.html", "report.md", "summary.md"):
        assert "look 2 at these cases" in (second / name).read_text("utf-8")
    page = bench.folder / "history.html"
    command = ["report", *map(str, folders(bench)), "--output", str(page)]
    assert bench.call(*command).code == 0
    assert page.read_text("utf-8").count("look 2 at these cases") == 1


def test_compare_says_it(bench: Bench, run: Callable[..., Run]) -> None:
    run(1, 4)
    (first,) = folders(bench)
    run(1, 4)
    second = newest(bench)
    told = bench.call("compare", str(first), str(second))
    assert f"{second}: pupil: look 2 at these cases" in told.out
    found = json.loads(bench.call("compare", str(second), str(first), "--json").out)
    assert found["looks"] == [f"{second}: pupil: look 2 at these cases"]


def damaged(path: Path, change: Change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def moved(path: Path) -> Path:
    """The same name, free again."""
    path.rename(path.with_name("moved"))
    return path


HOSTILE: dict[str, Callable[[Path], object]] = {
    "not JSON": lambda path: path.write_text("{"),
    "no object": lambda path: path.write_text("[[]]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another schema": lambda path: damaged(path, lambda found: found.update(schema_version=2)),
    "cases are numbers": lambda path: damaged(path, lambda found: found.update(cases=[1])),
    "cases are missing": lambda path: damaged(path, lambda found: found.pop("cases")),
    "a rule of another kind": lambda path: damaged(
        path, lambda found: found["students"][0]["rules"][0].update(kind="<b>")
    ),
    "an e-value that is no number": lambda path: path.write_text(
        path.read_text().replace('"e_shown": ', '"e_shown": NaN, "was": ')
    ),
    "a negative e-value": lambda path: path.write_text(
        path.read_text().replace('"e_shown": ', '"e_shown": -1, "was": ')
    ),
    "look 0": lambda path: damaged(
        path, lambda found: found["students"][0]["look"].update(number=0)
    ),
    "too large": lambda path: os.truncate(path, 2**26),
    "a pipe": lambda path: os.mkfifo(moved(path)),
    "a folder": lambda path: moved(path).mkdir(),
    "a link": lambda path: moved(path).symlink_to("moved"),
}


def test_hostile_evidence_files_stop_nothing(bench: Bench, run: Callable[..., Run]) -> None:
    code = run(1, 4).code
    (first,) = folders(bench)
    hostile = {what: first.with_name(f"hostile {n:02}") for n, what in enumerate(HOSTILE)}
    for what, folder in hostile.items():
        shutil.copytree(first, folder)
        HOSTILE[what](folder / "evidence.json")
    shutil.rmtree(first)
    again = run(1, 4)
    assert again.code == code
    assert "look 2" not in again.out
    told = again.out.replace("\n", " ")
    assert told.count("not a file of at most") == 3
    for what, folder in hostile.items():
        assert f"not counted among the looks at these cases: {folder}/evidence.json" in told, what
        assert bench.call("compare", str(newest(bench)), str(folder)).code == 0, what


def test_a_run_with_a_hostile_file_of_its_own_is_concluded_again(
    bench: Bench, run: Callable[..., Run]
) -> None:
    run(1, 4)
    (first,) = folders(bench)
    (first / "evidence.json").write_text("[]")
    (first / "comparison.json").unlink()
    assert bench.call("diagnose", str(first)).code == 0
    assert looks(first)["pupil"]["number"] == 1


def test_a_link_to_a_run_folder_is_not_followed(bench: Bench, run: Callable[..., Run]) -> None:
    run(1, 4)
    (first,) = folders(bench)
    first.rename(bench.folder / "elsewhere")
    first.symlink_to(bench.folder / "elsewhere")
    assert "look" not in run(1, 4).out


def test_only_the_cases_that_counted_before_a_verdict_was_settled_have_been_looked_at(
    bench: Bench, run: Callable[..., Run]
) -> None:
    run(1, 200, "--until-settled", "--certify", "0.95")
    (first,) = folders(bench)
    settled = json.loads((first / "comparison.json").read_text())["settled"]["cases"]
    assert settled < 100
    assert len(json.loads((first / "evidence.json").read_text())["cases"]) == settled
    assert f"look 2 at {settled} of these 200 cases" in run(1, 200).out
