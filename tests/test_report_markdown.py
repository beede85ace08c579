"""report.md and summary.md: what they say, and that nothing in them is markup but our own.

Rendered with the parser that GitHub's own dialect is closest to (tables on); what GitHub adds after
parsing (mentions, references, emoji) it leaves alone inside of code, so all foreign text must be
code.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

from tests.conftest import Answers
from tests.report_runs import (
    FAILING,
    HOSTILE_ID,
    HOSTILE_TEXT,
    HOSTILE_TIER,
    WEAK,
    interrupt,
    make_run,
    open_run,
)
from vllm_eval.report.junit import write_junit
from vllm_eval.report.markdown import MOST_CASES, failed_cases, render_summary, write_markdown
from vllm_eval.report.next_steps import next_steps
from vllm_eval.report.stored_run import StoredRun
from vllm_eval.report.write import write_reports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from markdown_it.token import Token

GITHUB = MarkdownIt("commonmark").enable("table")


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = [{"concept_id": HOSTILE_ID, "tier": HOSTILE_TIER}, {"concept_id": "a\\|b"}]
    script: list[dict[str, object]] = [{"text": HOSTILE_TEXT}, {"arm": "baseline", "text": WEAK}]
    script.append({"concept_id": "a\\|b", "arm": "pupil", "error": "`<b>` | @octocat"})
    return make_run(tmp_path_factory.mktemp("run"), script, cases)


def _report(folder: Path) -> str:
    path = folder / "made.md"
    write_markdown(open_run(folder), path)
    text = path.read_text("utf-8")
    path.unlink()
    return text


def _tokens(text: str) -> Iterator[Token]:
    for token in GITHUB.parse(text):
        yield token
        yield from token.children or ()


def _bare(text: str) -> str:
    """All text of a document that is not code."""
    html = GITHUB.render(text)
    return re.sub(r"<code.*?</code>", "", html, flags=re.DOTALL)


def test_the_verdict_is_the_first_thing_said(failing: Path) -> None:
    first, second = [line for line in _report(failing).splitlines() if line][:2]
    assert first.startswith("# ")
    assert first.endswith(": FAIL")
    assert second.startswith("- **FAIL** `pupil`: cases of pupil with an answer: ")


def test_the_comparison_shows_every_arm_s_figures(failing: Path) -> None:
    rows = [line for line in _report(failing).splitlines() if line.startswith("| `pupil` | 8 |")]
    assert rows == ["| `pupil` | 8 | 6 (75%) | 5 (62%) | 1.000 | 0.000 | 1.000 | 1.000 | 0.750 |"]


def test_a_failed_case_stands_with_tier_arm_reason_and_the_place_in_its_answer(
    failing: Path,
) -> None:
    text = _report(failing)
    assert "| `K2` | `simple` | `pupil` | `format_error` | `review_missing_narrative` | 2 |" in text
    assert "| `K4` | `simple` | `pupil` | `error` | `engine_error` | 0 |" in text
    assert "| `K3` |" not in text  # repaired by its retry
    assert re.search(r"`K2`, `pupil`, .*\n\n```text\n +\d+ \| ", text)


def test_a_failed_case_is_shown_with_a_failure_of_the_same_reason(tmp_path: Path) -> None:
    """The attempts of each student fail for two reasons, in either order."""
    good, bad = Answers().text(), Answers().bad()
    texts = {"first": ("prose", bad), "second": (bad, "prose")}
    script: list[dict[str, object]] = [{"text": good}]
    for arm, pair in texts.items():
        script += [{"arm": arm, "attempt": n, "text": text} for n, text in enumerate(pair, start=1)]
    folder = make_run(tmp_path, script, 1, tuple(texts))
    written = write_markdown(open_run(folder), tmp_path / "report.md").read_text("utf-8")
    lines = [line for line in written.splitlines() if line.startswith("`K1`, ")]
    assert "narrative" in lines[0].partition("`: ")[2]
    assert "is missing, empty or not closed" in lines[1]
    assert [line.split("`")[3] for line in lines] == ["first", "second"]


def test_each_of_the_first_failed_cases_is_shown_with_its_own_last_answer(tmp_path: Path) -> None:
    """More cases fail for one reason than `comparison.json` has examples of."""
    script: list[dict[str, object]] = [{"text": Answers().text()}]
    script += [
        {"concept_id": f"K{n}", "arm": "pupil", "attempt": attempt, "text": f"{word} of K{n}"}
        for n in range(1, 13)
        for attempt, word in ((1, "first"), (2, "last"))
    ]
    run = open_run(make_run(tmp_path, script, 12))
    text = write_markdown(run, tmp_path / "report.md").read_text("utf-8")
    failed = text.partition("## Failed cases")[2].partition("## Failed attempts")[0]
    last = [f"last of {row['concept_id']}" for row in run.comparison["cases"]]
    assert re.findall(r"```text\n +1 \| (.*)\n```", failed) == last[:10]
    assert len(last) == 12
    junit = write_junit(run, tmp_path / "junit.xml").read_text("utf-8")
    assert re.findall(r"\d \| (.*)</failure>", junit) == last


def test_every_rule_of_the_gate_stands_with_value_bound_and_margin(failing: Path) -> None:
    text = _report(failing)
    rules = open_run(failing).comparison["verdicts"][0]["rules"]
    for rule in rules:
        line = next(row for row in text.splitlines() if row.startswith(f"| {rule['name']} | "))
        assert f" {rule['value']:.3f} | ≥ {rule['threshold']:.3f} | " in line
        assert ("holds" in line) == rule["passed"]


def test_versions_hardware_and_hashes_are_said(failing: Path) -> None:
    text, about = _report(failing), open_run(failing).environment
    for said in (about["vllm_eval"], about["machine"]["python"], about["machine"]["system"]):
        assert f"`{said}`" in text
    assert about["identity"]["dataset"][:12] in text


def test_every_file_of_the_run_is_listed_with_its_time(failing: Path) -> None:
    text = _report(failing)
    for name in ("attempts.jsonl", "comparison.json", "manifest.json"):
        assert re.search(rf"\| `{re.escape(name)}` \| `\d{{4}}-\d\d-\d\d \d\d:", text)


def test_a_pass_says_integrate_and_a_fail_names_what_dominates(
    failing: Path, tmp_path: Path
) -> None:
    good = make_run(tmp_path, [{"text": WEAK}, {"arm": "pupil", "text": Answers().text()}])
    assert "- Integrate `pupil`." in _report(good)
    bad = make_run(tmp_path, [{"text": WEAK}, {"arm": "pupil", "text": Answers().bad()}])
    steps = _report(bad).partition("## Comparison")[0]
    assert "key is missing or empty (8 of 8 answers, `review_missing_narrative`)" in steps
    assert "`--constrain` at most 8" in steps
    assert "Check every training target" in steps
    assert "Answers of `pupil` are missing" in _report(failing)


def test_a_count_stands_beside_the_reason_that_it_counts(tmp_path: Path) -> None:
    """Of six answers that lack a key, five lack another one than most attempts do."""
    lacks_summary = Answers().review()
    del lacks_summary["summary"]
    no_summary = Answers().text(review=lacks_summary)
    script: list[dict[str, object]] = [
        {"text": Answers().text()},
        {"arm": "pupil", "text": Answers().bad()},
        {"arm": "pupil", "attempt": 1, "text": no_summary},
        {"arm": "pupil", "concept_id": "K6", "text": no_summary},
    ]
    cases = [{"concept_id": f"K{n}", "tier": "hard" if n == 6 else "simple"} for n in range(1, 7)]
    folder = make_run(tmp_path, script, cases)
    comparison = open_run(folder).comparison
    reasons = {"review_missing_narrative": 5, "review_missing_summary": 1}
    assert comparison["reasons"]["pupil"] == reasons
    steps = _steps(comparison, folder)
    assert "(6 of 6 answers, 5 of them `review_missing_narrative`)" in steps
    for group in comparison["diagnosis"]["clusters"]:
        assert sum(group["reasons"].values()) == group["attempts"]
        assert sum(group["final_reasons"].values()) == group["outcomes"]


def test_a_base_that_fails_is_not_answered_with_training(tmp_path: Path) -> None:
    script = [{"text": Answers().text()}, {"arm": "baseline", "text": Answers().bad()}]
    steps = _report(make_run(tmp_path, script)).partition("## Comparison")[0]
    assert "the base's failure, not the adapter's" in steps
    assert "training target" not in steps


def _steps(comparison: Mapping[str, Any], folder: Path) -> str:
    return "\n".join(next_steps(StoredRun(folder, comparison)))


def test_missing_answers_are_put_down_to_what_kept_them_away(tmp_path: Path) -> None:
    """Two broken answers are more frequent than the one that is missing."""
    script: list[dict[str, object]] = [
        {"text": Answers().text()},
        {"concept_id": "K1", "arm": "pupil", "error": "out of memory"},
        {"concept_id": "K2", "arm": "pupil", "text": Answers().bad()},
        {"concept_id": "K3", "arm": "pupil", "text": Answers().bad()},
    ]
    folder = make_run(tmp_path, script)
    steps = _steps(open_run(folder).comparison, folder)
    missing, _, rest = steps.partition("are missing. ")[2].partition("\n")
    assert "`engine_error` (1 answer)" in missing
    assert "(2 of 2 answers, `review_missing_narrative`)" in rest


def test_a_base_without_a_valid_answer_is_not_put_down_to_the_student(tmp_path: Path) -> None:
    script = [{"text": Answers().text()}, {"arm": "baseline", "text": Answers().bad()}]
    folder = make_run(tmp_path, script)
    steps = _steps(open_run(folder).comparison, folder)
    assert "Too few answers of `baseline` are valid" in steps
    assert "scores too low" not in steps


def test_a_rule_without_a_number_is_told_where_nothing_else_is(failing: Path) -> None:
    comparison = open_run(failing).comparison
    (verdict,) = comparison["verdicts"]
    rules = [
        rule | {"passed": False, "value": None, "reason": "there is no such number"}
        for rule in verdict["rules"]
        if rule["kind"] == "ratio"
    ]
    steps = _steps({**comparison, "verdicts": [{**verdict, "rules": rules}]}, failing)
    assert "is unknown: `there is no such number`" in steps


@pytest.mark.parametrize(("truncated", "told"), [((9, 1), False), ((9, 90), True)])
def test_answers_are_called_truncated_where_most_of_all_tiers_were(
    failing: Path, truncated: tuple[int, int], told: bool
) -> None:
    """Fifty answers lack a key, and of each tier some were truncated."""
    comparison = open_run(failing).comparison
    diagnosis = comparison["diagnosis"]
    group = next(g for g in diagnosis["clusters"] if g["cluster"] == "missing_key")
    groups = [group | {"outcomes": 50}] + [
        group | {"cluster": "truncated", "tier": tier, "outcomes": times}
        for tier, times in zip(("simple", "hard"), truncated, strict=True)
    ]
    steps = _steps({**comparison, "diagnosis": {**diagnosis, "clusters": groups}}, failing)
    assert ("truncated at the token limit" in steps) == told


def test_doubt_that_is_not_known_is_not_told(failing: Path) -> None:
    comparison = open_run(failing).comparison
    (verdict,) = comparison["verdicts"]
    rule = verdict["rules"][0] | {"kind": "ratio_low", "passed": False, "value": 0.5}
    unknown = {"rules": [rule], "pass_chance": None, "cases_to_settle": None}
    steps = _steps({**comparison, "verdicts": [{**verdict, **unknown}]}, failing)
    assert steps.endswith("is too uncertain. Evaluate more cases")


def test_a_partial_run_says_what_is_pending_and_how_to_go_on(failing: Path) -> None:
    folder = interrupt(failing, 5)
    run = open_run(folder)
    assert run.comparison["pending"] > 0
    text = _report(folder)
    assert "NOT FINISHED" in text.splitlines()[0]
    assert f"{run.comparison['pending']} answers are still pending" in text
    assert f"--resume {folder.name}" in text


def test_long_lists_end_with_how_many_more(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [{"text": "nothing"}], MOST_CASES)
    text = _report(folder)
    assert f"and {MOST_CASES} more in `comparison.json`" in text
    assert text.count("| `format_error` |") == MOST_CASES


def test_the_students_failed_cases_come_before_the_baseline_s(tmp_path: Path) -> None:
    """Of both arms there are as many as the table holds."""
    folder = make_run(tmp_path, [{"text": "nothing"}], MOST_CASES, ("pupil", "other"))
    failed = failed_cases(open_run(folder).comparison)
    assert [case.arm for case in failed[::MOST_CASES]] == ["pupil", "other", "baseline"]
    text = _report(folder)
    shown = re.findall(r"\| `(\w+)` \| `format_error` \|", text)
    assert shown == ["pupil"] * MOST_CASES


@pytest.mark.parametrize("kind", ["report", "summary"])
def test_hostile_text_is_code_and_nothing_else(hostile: Path, kind: str) -> None:
    text = _report(hostile) if kind == "report" else render_summary(open_run(hostile))
    html = [token.content for token in _tokens(text) if token.type.startswith("html")]
    assert set(html) <= {"<code>", "</code>"}
    assert not [token for token in _tokens(text) if token.type in ("link_open", "image")]
    for mark in ("octocat", "alert", "script", "example.com", "$x", "#1"):
        assert mark not in _bare(text)
    assert "octocat" in text
    assert not set("\u202e\x07") & set(text)


@pytest.mark.parametrize("kind", ["report", "summary"])
def test_no_hostile_text_breaks_a_table(hostile: Path, kind: str) -> None:
    text = _report(hostile) if kind == "report" else render_summary(open_run(hostile))
    html = GITHUB.render(text)
    tables = re.findall(r"<table>.*?</table>", html, flags=re.DOTALL)
    assert len(tables) >= 2
    for table in tables:
        rows = re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL)
        assert len({len(re.findall(r"<t[hd]", row)) for row in rows}) == 1
    outside = re.sub(r"<table>.*?</table>", "", html, flags=re.DOTALL)
    assert "---" not in _bare(outside)


def test_a_raw_answer_cannot_leave_its_block(hostile: Path) -> None:
    blocks = [token.content for token in _tokens(_report(hostile)) if token.type == "fence"]
    assert any("end" in block and "````" in block for block in blocks)


def test_the_summary_says_verdict_gate_failures_and_next_step(failing: Path) -> None:
    text = render_summary(open_run(failing))
    for said in ("FAIL", "| valid rate of pupil |", "### Failed attempts", "### Next step"):
        assert said in text
    assert len(text) < 6000


def test_a_quantised_base_is_said_beside_the_verdict(tmp_path: Path) -> None:
    run = make_run(tmp_path, FAILING)
    path = run / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["engine"]["quantization"] = "bitsandbytes"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    (run / "comparison.json").unlink()
    write_reports(open_run(run))
    said = "All arms use a base quantised by `bitsandbytes`."
    assert said in (run / "report.md").read_text(encoding="utf-8")
    assert said in (run / "summary.md").read_text(encoding="utf-8")
