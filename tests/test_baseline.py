"""`--baseline RUN`: the baseline's answers of an earlier run are taken, where they may be.

Covered: what is copied, refused, counted and said, by the scripted engine; the proof that the base
is the same, by servers that only speak the protocol, by drawn noise, and once by the real engine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers import BASE, FakeServer, hash_words
from vllm_eval import evaluate
from vllm_eval.config.settings import resolve_path
from vllm_eval.engines import canary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.conftest import Answers, Bench, Run


@pytest.fixture
def earlier(bench: Bench, answers: Answers) -> Path:
    """A run of `pupil` over three cases; the baseline needs a second attempt at K2."""
    bench.dataset(3)
    bench.answers(
        {"text": answers.text()},
        {"concept_id": "K2", "arm": "baseline", "attempt": 1, "text": answers.bad()},
        {"concept_id": "K3", "arm": "second", "text": answers.bad()},
    )
    assert bench.run("--tag", "earlier").code == 0
    (folder,) = bench.output_dir.iterdir()
    return folder


def again(bench: Bench, earlier: Path, *more: str) -> Run:
    """A run of another adapter with the baseline of the earlier one."""
    arguments = bench.arguments("--baseline", str(earlier), "--tag", "later", *more)
    arguments[arguments.index("pupil")] = "second"
    return bench.call(*arguments)


def later(bench: Bench) -> Path:
    (folder,) = bench.output_dir.glob("later*")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "attempts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def comparison(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_bytes())
    return found


def test_it_asks_only_the_student(bench: Bench, earlier: Path) -> None:
    run = again(bench, earlier)
    journal = lines(later(bench))
    assert "baseline: 3 of 3 answers of" in run.out
    assert {(line["arm"], line["reused"]) for line in journal} == {
        ("baseline", True),
        ("second", False),
    }


def test_the_figures_are_those_of_a_run_that_asks_it_anew(bench: Bench, earlier: Path) -> None:
    again(bench, earlier)
    figures = comparison(later(bench))
    arguments = bench.arguments("--tag", "anew")
    arguments[arguments.index("pupil")] = "second"
    bench.call(*arguments)
    (folder,) = bench.output_dir.glob("anew*")
    same = comparison(folder)
    for key in ("word", "arms", "students", "verdicts", "failures", "repair", "cases"):
        assert figures[key] == same[key], key
    by_attempt = [each["attempts"]["baseline"]["by_attempt"] for each in (figures, same)]
    assert by_attempt[0] == by_attempt[1]


def test_every_report_says_whose_answers_they_are(bench: Bench, earlier: Path) -> None:
    run = again(bench, earlier, "--report")
    day = comparison(earlier)["environment"]["started_at"][:10]
    note = f"3 answers re-used from {earlier.name} of {day}"
    assert f"baseline: {note}; a script has no base to prove" in run.out
    for name in ("report.md", "summary.md", "report.html"):
        text = (later(bench) / name).read_text(encoding="utf-8")
        assert "answers re-used from" in text.replace("\\", ""), name
    said = comparison(later(bench))["baseline_from"]
    assert said["path"] == str(earlier.resolve())
    assert (said["answers"], said["attempts"], said["cases"]) == (3, 4, 3)
    assert said["engine"]["engine"] == "scripted"


def test_a_run_that_asked_its_own_says_nothing(bench: Bench, earlier: Path) -> None:
    assert comparison(earlier)["baseline_from"] is None
    assert not any(line["reused"] for line in lines(earlier))


def test_only_what_this_run_asked_takes_time_and_tokens(bench: Bench, earlier: Path) -> None:
    again(bench, earlier)
    figures = comparison(later(bench))
    own = [line for line in lines(later(bench)) if line["arm"] == "second"]
    tokens = sum(line["output_tokens"] for line in own)
    timing, costs = figures["timing"], figures["attempts"]
    assert (timing["attempts"], timing["output_tokens"]) == (len(own), tokens)
    assert timing["all"] == timing["arms"]["second"]
    assert timing["arms"]["baseline"]["attempts"] == 0
    assert costs["baseline"]["all"]["output_tokens"] == 0
    assert costs["baseline"]["retries"]["attempts"] == 0
    assert all(line["finished_at"] == 0 for line in lines(later(bench)) if line["reused"])


def forget_canary(folder: Path) -> None:
    """Leave a run as one that did not keep what its base answered the canary."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["canary"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def cut(folder: Path, keep: int) -> None:
    """Leave of a run what a process leaves that is killed after so many attempts."""
    journal = folder / "attempts.jsonl"
    whole = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(whole[:keep]) + b'{"torn')
    for made_at_the_end in ("comparison.json", "baseline_*", "student_*", "evidence.json", "*.zip"):
        for path in folder.glob(made_at_the_end):
            path.unlink()


@pytest.mark.parametrize("keep", [4, 5])
def test_a_resumed_run_copies_nothing_again(bench: Bench, earlier: Path, keep: int) -> None:
    """Also where the other run is gone."""
    again(bench, earlier)
    whole = comparison(later(bench))
    cut(later(bench), keep)
    shutil.rmtree(earlier)
    assert bench.call("--resume", str(later(bench))).code == 1
    assert comparison(later(bench))["arms"] == whole["arms"]
    assert comparison(later(bench))["baseline_from"] == whole["baseline_from"]
    ended = Counter(
        (line["arm"], line["concept_id"]) for line in lines(later(bench)) if line["final"]
    )
    assert set(ended.values()) == {1}
    assert sum(line["reused"] for line in lines(later(bench))) == 4


def test_what_is_killed_while_it_copies_is_no_run_yet(bench: Bench, earlier: Path) -> None:
    again(bench, earlier)
    killed = later(bench)
    cut(killed, 2)
    (killed / "manifest.json").unlink()
    killed = killed.rename(killed.with_name("killed"))
    run = again(bench, earlier, "--resume", "auto")
    assert run.code == 1
    assert sum(line["reused"] for line in lines(later(bench))) == 4


OTHERWISE = {
    "temperature": ("--temperature", "0.9"),
    "top_p": ("--top-p", "0.5"),
    "seed": ("--seed", "7"),
    "retries": ("--retries", "0"),
    "samples_per_case": ("--samples-per-case", "2"),
    "max_new_tokens": ("--max-new-tokens", "64"),
    "prompt_format": ("--prompt-format", "chat"),
    "constrain": ("--constrain", "only"),
}


@pytest.mark.parametrize("key", OTHERWISE)
def test_another_way_of_asking_is_refused_by_name(bench: Bench, earlier: Path, key: str) -> None:
    given = OTHERWISE[key] if key != "constrain" else ("-c", "constrain=only")
    run = again(bench, earlier, *given)
    assert run.code == 2
    assert f"{key} was " in run.err
    assert "leave out --baseline, and it is asked anew" in run.err
    assert len(list(bench.output_dir.iterdir())) == 1


def test_another_script_or_data_set_is_refused(
    bench: Bench, earlier: Path, answers: Answers
) -> None:
    bench.answers({"text": answers.bad()})
    assert "script was " in again(bench, earlier).err
    bench.dataset(4)
    assert "dataset was " in again(bench, earlier).err


def test_other_cases_are_asked_anew(bench: Bench, answers: Answers) -> None:
    bench.dataset(6)
    bench.answers({"text": answers.text()})
    bench.run("--tag", "earlier", "--max-samples", "2")
    (earlier,) = bench.output_dir.iterdir()
    run = again(bench, earlier, "--max-samples", "4")
    assert "baseline: 2 of 4 answers of" in run.out
    base = [line for line in lines(later(bench)) if line["arm"] == "baseline"]
    assert sorted(line["reused"] for line in base) == [False, False, True, True]
    assert comparison(later(bench))["pending"] == 0


def test_only_the_cases_drawn_now_are_taken(bench: Bench, earlier: Path) -> None:
    run = again(bench, earlier, "--max-samples", "1")
    assert "baseline: 1 of 1 answers of" in run.out
    assert len({line["concept_id"] for line in lines(later(bench))}) == 1


def test_an_answer_that_was_only_begun_is_asked_anew(bench: Bench, earlier: Path) -> None:
    journal = [json.dumps(line) for line in lines(earlier)]
    ended = [n for n, line in enumerate(lines(earlier)) if line["arm"] == "baseline"]
    last = next(n for n in ended if lines(earlier)[n]["attempt"] == 2)
    bench.write(earlier / "attempts.jsonl", journal[:last] + journal[last + 1 :])
    run = again(bench, earlier)
    assert "2 of 3 answers" in run.out
    assert "1 are asked anew" in run.out
    base = [line for line in lines(later(bench)) if line["arm"] == "baseline"]
    assert [line["attempt"] for line in base if line["concept_id"] == "K2"] == [1, 2]


def test_an_answer_that_the_engine_never_gave_is_asked_anew(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers(
        {"text": answers.text()}, {"concept_id": "K2", "arm": "baseline", "error": "out of memory"}
    )
    bench.run("--tag", "earlier")
    (earlier,) = bench.output_dir.iterdir()
    assert "1 of 2 answers" in again(bench, earlier).out


def forge(earlier: Path, **changes: object) -> None:
    """Change the baseline's answer to K1."""
    journal = lines(earlier)
    key = ("baseline", "K1")
    next(line for line in journal if (line["arm"], line["concept_id"]) == key).update(changes)
    text = "".join(f"{json.dumps(line)}\n" for line in journal)
    (earlier / "attempts.jsonl").write_text(text, encoding="utf-8")


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "score": ({"score": 0.01}, "graded success with 0.01 there"),
    "status": ({"status": "format_error", "reason": "x"}, "graded format_error"),
    "text": ({"raw_response": "nothing"}, "and format_error with None here"),
    "number": ({"attempt": 7}, "cannot be of a run like this one"),
    "time": ({"total_s": float("nan")}, "cannot be of a run like this one"),
    "count": ({"output_tokens": 10**30}, "cannot be of a run like this one"),
    "sample": ({"sample": 5}, "of a sample that was not asked"),
    "type": ({"score": "high"}, "the journal is damaged here"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_no_evaluation_wrote_is_refused(bench: Bench, earlier: Path, what: str) -> None:
    changes, words = FORGED[what]
    forge(earlier, **changes)
    run = again(bench, earlier)
    assert run.code == 2
    assert words in run.err
    assert not list(bench.output_dir.glob("later*/manifest.json"))


def test_an_outcome_twice_is_refused(bench: Bench, earlier: Path) -> None:
    journal = [json.dumps(line) for line in lines(earlier)]
    bench.write(earlier / "attempts.jsonl", journal + journal)
    assert "it has attempts after its last one" in again(bench, earlier).err


@pytest.mark.parametrize(
    "change",
    [
        {"engine": None},
        {"engine": {"engine": ["scripted"]}},
        {"started_at": 5},
        {"baseline_from": {"run": "x"}},
    ],
)
def test_a_manifest_that_no_run_wrote_is_refused(
    bench: Bench, earlier: Path, change: dict[str, Any]
) -> None:
    path = earlier / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change), encoding="utf-8")
    assert again(bench, earlier).code == 2
    assert not list(bench.output_dir.glob("later*"))


def test_a_long_value_of_another_identity_is_shown_in_part(bench: Bench, earlier: Path) -> None:
    path = earlier / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["identity"]["top_p"] = "x" * 100_000
    path.write_text(json.dumps(manifest), encoding="utf-8")
    run = again(bench, earlier)
    assert (run.code, "top_p was 'xxx" in run.err) == (2, True)
    assert len(run.err) < 2_000


@pytest.mark.parametrize("name", ["attempts.jsonl", "manifest.json"])
def test_no_link_is_followed(bench: Bench, earlier: Path, name: str) -> None:
    elsewhere = bench.folder / "elsewhere"
    (earlier / name).rename(elsewhere)
    (earlier / name).symlink_to(elsewhere)
    run = again(bench, earlier)
    assert (run.code, "it is missing, or a link" in run.err) == (2, True)


def test_a_name_that_is_no_run_is_told(bench: Bench, earlier: Path) -> None:
    run = again(bench, earlier.with_name("nowhere"))
    assert (run.code, "no run at" in run.err) == (2, True)


def test_its_name_in_the_output_folder_is_enough(bench: Bench, earlier: Path) -> None:
    arguments = bench.arguments("--baseline", earlier.name, "--tag", "later")
    assert bench.call(*arguments).code == 0
    assert comparison(later(bench))["baseline_from"]["run"] == earlier.name


def test_a_chain_names_the_run_that_asked(bench: Bench, earlier: Path) -> None:
    again(bench, earlier)
    between = later(bench).rename(bench.output_dir / "between")
    arguments = bench.arguments("--baseline", str(between), "--tag", "later")
    arguments[arguments.index("pupil")] = "third"
    assert bench.call(*arguments).code == 0
    assert comparison(later(bench))["baseline_from"]["run"] == earlier.name


def test_a_baseline_asked_by_two_runs_is_the_later_ones(bench: Bench, answers: Answers) -> None:
    bench.dataset(4)
    bench.answers({"text": answers.text()})
    bench.run("--tag", "earlier", "--max-samples", "2")
    (earlier,) = bench.output_dir.iterdir()
    again(bench, earlier)
    between = later(bench).rename(bench.output_dir / "between")
    bench.call(*bench.arguments("--baseline", str(between), "--tag", "later"))
    said = comparison(later(bench))["baseline_from"]
    assert (said["run"], said["answers"]) == ("between", 4)


def test_several_samples_are_taken(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    bench.run("--tag", "earlier", "--samples-per-case", "3")
    (earlier,) = bench.output_dir.iterdir()
    run = again(bench, earlier, "--samples-per-case", "3")
    assert "6 of 6 answers" in run.out
    assert {line["reused"] for line in lines(later(bench)) if line["arm"] == "baseline"} == {True}


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("beside", "beside", "4 of 4"),
        ("none", "beside", "2 of 4"),
        ("beside", "none", "2 of 2"),
    ],
)
def test_constrained_answers_beside_it_are_taken_too(
    bench: Bench, answers: Answers, first: str, second: str, taken: str
) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    bench.run("--tag", "earlier", "-c", f"constrain={first}")
    (earlier,) = bench.output_dir.iterdir()
    run = again(bench, earlier, "-c", f"constrain={second}")
    assert (run.code, f"baseline: {taken} answers" in run.out) == (0, True)
    assert comparison(later(bench))["pending"] == 0


def test_a_run_until_the_verdict_is_settled_takes_it(bench: Bench, answers: Answers) -> None:
    bench.dataset(60)
    bench.answers({"text": answers.text()})
    settle = ("--certify", "0.95", "--until-settled")
    bench.run("--tag", "earlier", *settle)
    (earlier,) = bench.output_dir.iterdir()
    run = again(bench, earlier, *settle)
    ours, theirs = comparison(later(bench)), comparison(earlier)
    assert (run.code, ours["settled"]["cases"]) == (0, theirs["settled"]["cases"])


def test_check_says_whether_it_can_be_used(bench: Bench, earlier: Path) -> None:
    arguments = bench.arguments("--baseline", str(earlier))
    arguments.remove("--no-report")
    run = bench.call("check", *arguments)
    assert run.code == 0
    assert f"baseline: 3 of 3 answers of {earlier} can be re-used" in run.out
    refused = bench.call("check", *arguments, "--temperature", "0.9")
    assert (refused.code, "temperature was 0.2, is 0.9" in refused.out) == (2, True)


def test_python_takes_it_by_key(bench: Bench, earlier: Path) -> None:
    options: dict[str, Any] = {
        "engine": "scripted",
        "script": str(bench.script),
        "dataset_path": str(bench.cases),
        "output_dir": str(bench.output_dir),
        "profile": "none",
        "report": False,
    }
    result = evaluate("second", baseline=str(earlier), **options)
    assert result.run.comparison["baseline_from"]["run"] == earlier.name


def test_stored_answers_are_graded_again_as_ever(bench: Bench, earlier: Path) -> None:
    again(bench, earlier)
    run = bench.call("score", str(later(bench)))
    assert (run.code, "3 of 3" in run.out or "reproduced" in run.out) == (1, True)


@pytest.fixture
def servers(bench: Bench, answers: Answers) -> Iterator[Callable[..., Run]]:
    """Runs the program against a server with these fields, made for the call."""
    made: list[FakeServer] = []
    bench.dataset(3)

    def run(student: str, *more: str, **fields: Any) -> Run:
        models = {BASE: None, "pupil": BASE, "second": BASE}

        def answer(body: Mapping[str, Any]) -> str:
            return hash_words(body) if body.get("prompt") in canary.TEXTS else answers.text()

        server = FakeServer(models=models, answer=answer, **fields)
        made.append(server)
        return bench.call(
            *("--engine", "openai", "--base-url", server.url, "--adapter", student),
            *("--dataset-path", str(bench.cases), "--profile", "none", "--no-report"),
            *("--output-dir", str(bench.output_dir), "-c", "server_patience_s=10", *more),
        )

    yield run
    for server in made:
        server.loopback.stop()


def asked(folder: Path) -> list[tuple[str, bool]]:
    return sorted({(line["arm"], line["reused"]) for line in lines(folder)})


@pytest.mark.parametrize("log_probabilities", [True, False])
def test_the_canary_proves_that_the_base_is_the_same(
    bench: Bench, servers: Callable[..., Run], log_probabilities: bool
) -> None:
    servers("pupil", "--tag", "earlier", log_probabilities=log_probabilities)
    (earlier,) = bench.output_dir.iterdir()
    run = servers(
        *("second", "--tag", "later", "--baseline", str(earlier)),
        log_probabilities=log_probabilities,
    )
    assert "its base was proven to be this engine's by the canary" in run.out
    assert asked(later(bench)) == [("baseline", True), ("second", False)]
    proof = comparison(later(bench))["baseline_from"]["proof"]
    assert (proof["away"], proof["by"] == "texts") == (0.0, not log_probabilities)


def test_another_base_is_refused_and_then_asked_anew(
    bench: Bench, servers: Callable[..., Run]
) -> None:
    """Its files may say the same: a server tells only the name."""
    servers("pupil", "--tag", "earlier")
    (earlier,) = bench.output_dir.iterdir()
    more = ("second", "--tag", "later", "--baseline", str(earlier))
    run = servers(*more, other_base=0.1)
    assert run.code == 3
    assert "the base of this engine answers the canary" in run.err
    assert f"--resume {later(bench)} asks the baseline anew" in run.err
    assert lines(later(bench)) == []
    again = servers("second", "--resume", str(later(bench)), other_base=0.1)
    assert asked(later(bench)) == [("baseline", False), ("second", False)]
    assert (again.code, comparison(later(bench))["baseline_from"]) == (0, None)


def test_another_base_under_a_begun_run_is_refused(
    bench: Bench, servers: Callable[..., Run]
) -> None:
    servers("pupil", "--tag", "earlier")
    (earlier,) = bench.output_dir.iterdir()
    servers("second", "--tag", "later", "--baseline", str(earlier))
    before = lines(later(bench))[:4]
    cut(later(bench), 4)
    run = servers("second", "--resume", str(later(bench)), other_base=0.1)
    assert (run.code, "continue with the engine and hardware" in run.err) == (3, True)
    assert lines(later(bench)) == before


def test_another_release_is_refused(bench: Bench, servers: Callable[..., Run]) -> None:
    servers("pupil", "--tag", "earlier", version="0.32.0")
    (earlier,) = bench.output_dir.iterdir()
    more = ("second", "--tag", "later", "--baseline", str(earlier))
    run = servers(*more, version="0.33.0")
    assert (run.code, "were begun with vllm '0.32.0', not '0.33.0'" in run.err) == (3, True)


def test_a_baseline_asked_of_two_bases_is_refused(
    bench: Bench, servers: Callable[..., Run]
) -> None:
    servers("pupil", "--tag", "earlier")
    (earlier,) = bench.output_dir.iterdir()
    cut(earlier, 3)
    assert servers("pupil", "--resume", str(earlier), other_base=0.1).code == 0
    run = servers("second", "--tag", "later", "--baseline", str(earlier))
    assert (run.code, "starts disagree" in run.err) == (2, True)


def test_a_run_that_kept_no_canary_is_refused(bench: Bench, servers: Callable[..., Run]) -> None:
    servers("pupil", "--tag", "earlier")
    (earlier,) = bench.output_dir.iterdir()
    forget_canary(earlier)
    run = servers("second", "--tag", "later", "--baseline", str(earlier))
    assert (run.code, "evaluate the baseline once more" in run.err) == (2, True)


def test_a_run_that_kept_no_canary_of_its_first_start_is_refused(
    bench: Bench, servers: Callable[..., Run]
) -> None:
    servers("pupil", "--tag", "earlier")
    (earlier,) = bench.output_dir.iterdir()
    cut(earlier, 3)
    forget_canary(earlier)
    assert servers("pupil", "--resume", str(earlier)).code == 0
    run = servers("second", "--tag", "later", "--baseline", str(earlier))
    assert (run.code, "evaluate the baseline once more" in run.err) == (2, True)


@pytest.mark.engine
def test_the_real_engine_takes_it_and_proves_its_base(tmp_path: Path) -> None:
    """The demo, and then its adapter with another scale; then a forged base."""
    scaled = tmp_path / "scaled"
    shutil.copytree(resolve_path("package:demo/po_student_demo"), scaled)
    settings = json.loads((scaled / "adapter_config.json").read_bytes())
    settings["lora_alpha"] *= 0.9
    (scaled / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vllm_eval", "--config", "demo", "--no-report"]
        command += ["--max-samples", "4", "--output-dir", str(tmp_path / "out"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    run("--tag", "earlier")
    (earlier,) = (tmp_path / "out").iterdir()
    more = ("--adapter", str(scaled), "--tag", "later", "--baseline", "earlier")
    done = run(*more[:-1], str(earlier))
    assert "its base was proven to be this engine's by the canary" in done.stdout, done.stderr
    (folder,) = (tmp_path / "out").glob("later*")
    assert asked(folder) == [("baseline", True), ("scaled", False)]
    assert comparison(folder)["baseline_from"]["proof"]["away"] <= canary.NEGLIGIBLE

    manifest = json.loads((earlier / "manifest.json").read_bytes())
    token, likelihood = next(iter(manifest["canary"]["rows"][0].items()))
    manifest["canary"]["rows"][0][token] = likelihood - 0.1
    (earlier / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused = run("--adapter", str(scaled), "--tag", "other", "--baseline", str(earlier))
    assert refused.returncode == 3
    assert "the base of this engine answers the canary" in refused.stderr
