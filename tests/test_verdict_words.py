"""What every report says of a verdict and how sure it is: PASS, FAIL or UNDECIDED.

The numbers behind the words are those of `test_certify.py`, `test_gate.py` and `test_ranking.py`.
"""

from __future__ import annotations

import functools
import html
import re
import shlex
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import Answers
from tests.report_runs import WEAK, make_run, open_run, without
from vllm_eval.compare.intervals import Interval
from vllm_eval.report import words
from vllm_eval.report.display import show
from vllm_eval.report.history import write_history
from vllm_eval.report.html import write_html
from vllm_eval.report.junit import write_junit
from vllm_eval.report.markdown import render_summary, write_markdown
from vllm_eval.report.next_steps import next_steps
from vllm_eval.report.stored_run import StoredRun
from vllm_eval.report.tables import interval_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.conftest import Bench

    Script = Sequence[Mapping[str, object]]

GOOD, BAD = Answers().text(), Answers().bad()
BETTER: Script = [{"arm": "baseline", "text": WEAK}, {"text": GOOD}]
AS_GOOD: Script = [{"text": WEAK}]
CERTIFY = ("--certify", "0.95")
UNEVEN: Script = [
    *({"arm": "baseline", "concept_id": f"K{n}", "text": WEAK} for n in range(1, 19)),
    *({"arm": "pupil", "concept_id": f"K{n}", "text": BAD} for n in (19, 20)),
    {"text": GOOD},
]
"""The student fails the two cases on which the base is best."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten of forty cases: too few to tell."""
    folder = tmp_path_factory.mktemp("few")
    return make_run(folder, AS_GOOD, 40, ("pupil",), *CERTIFY, "--max-samples", "10")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students that cannot be told apart, and one that fails often."""
    lost = [{"arm": "third", "concept_id": f"K{n}", "text": BAD} for n in range(1, 21)]
    other = {"arm": "second", "concept_id": "K30", "text": WEAK}
    students = ("third", "second", "first")
    return make_run(tmp_path_factory.mktemp("three"), [*lost, other, *BETTER], 40, students)


@functools.cache
def texts(folder: Path) -> dict[str, str]:
    """What each report says, without its markup."""
    run, shown = open_run(folder), show(folder)
    found = {
        "page": write_html(run, folder / "made.html").read_text("utf-8"),
        "report": write_markdown(run, folder / "made.md").read_text("utf-8"),
        "summary": render_summary(run),
        "notebook": shown._repr_html_(),
        "console": repr(shown),
    }
    found["page"] = found["page"].partition("<main")[2].partition('<section id="plots"')[0]
    for name in ("page", "notebook"):
        found[name] = html.unescape(re.sub(r"<[^>]+>", "", found[name]))
    return {name: flat(text) for name, text in found.items()}


def flat(text: str) -> str:
    """On one line, without marks for names."""
    return re.sub(r"\s+", " ", text.replace("`", ""))


def steps(folder: Path, **changes: Any) -> str:
    return "\n".join(next_steps(StoredRun(folder, {**open_run(folder).comparison, **changes})))


def gate_tests(folder: Path) -> dict[str, ET.Element]:
    root = ET.parse(write_junit(open_run(folder), folder / "made.xml")).getroot()
    suite = next(suite for suite in root if suite.get("name") == "gate of pupil")
    return {str(test.get("name")): test for test in suite}


def rule_of(folder: Path, kind: str, arm: str = "pupil") -> dict[str, Any]:
    (verdict,) = open_run(folder).comparison["verdicts"]
    rule: dict[str, Any] = next(r for r in verdict["rules"] if (r["kind"], r["arm"]) == (kind, arm))
    return rule


def test_a_run_that_is_undecided_exits_with_4_and_so_does_its_score(bench: Bench) -> None:
    bench.dataset(10)
    bench.answers(*AS_GOOD)
    run = bench.run(*CERTIFY)
    assert run.code == 4
    assert "\nUNDECIDED  pupil\n" in run.out
    scored = bench.call("score", str(run.folder))
    assert (scored.code, "\nUNDECIDED  pupil\n" in scored.out) == (4, True)
    assert bench.call("score", str(run.folder), "--json").code == 4


def test_one_failed_student_is_a_fail_whatever_is_undecided(bench: Bench) -> None:
    bench.dataset(10)
    bench.answers({"arm": "poor", "text": BAD}, *AS_GOOD)
    run = bench.run("--adapter", "poor", *CERTIFY)
    assert (run.code, show(run.folder).word) == (1, "FAIL")
    assert "\nUNDECIDED  pupil\n" in run.out
    assert "\nFAIL  poor\n" in run.out


def test_a_student_that_passes_does_not_decide_for_another(bench: Bench) -> None:
    bench.dataset(60)
    lost = [{"arm": "other", "concept_id": f"K{n}", "text": BAD} for n in range(1, 8)]
    bench.answers(*lost, *BETTER)
    run = bench.run("--adapter", "other", *CERTIFY)
    assert (run.code, show(run.folder).word) == (4, "UNDECIDED")
    assert "\nPASS  pupil\n" in run.out


def test_the_word_of_a_result_is_that_of_the_whole_run(few: Path) -> None:
    shown = show(few)
    assert (shown.word, shown.passed) == ("UNDECIDED", False)
    comparison = open_run(few).comparison
    assert (comparison["word"], comparison["passed"]) == ("UNDECIDED", False)
    part = without(few, lambda row: bool(row["arm"] == "pupil"))
    assert show(part).word == "NOT FINISHED"


def test_every_report_says_undecided_and_how_many_cases_it_takes(few: Path) -> None:
    cases = open_run(few).comparison["verdicts"][0]["cases_to_settle"]
    assert cases > 10
    for text in texts(few).values():
        assert "UNDECIDED" in text
        assert f"About {cases} cases like these would settle the verdict with a chance of" in text
        assert "PASS" not in text
        assert "FAIL" not in text


def test_undecided_has_a_colour_of_its_own_and_a_headline(few: Path) -> None:
    run = open_run(few)
    page = write_html(run, few / "made.html").read_text("utf-8")
    assert "<title>UNDECIDED" in page
    assert '<span class="badge undecided">UNDECIDED</span>' in page
    assert 'class="card verdict undecided"' in page
    assert "Undecided: these cases do not show whether to ship</h1>" in page
    assert '<span class="badge undecided">' in write_history([run], few / "h.html").read_text()


def test_the_headline_counts_those_that_are_undecided(bench: Bench) -> None:
    bench.dataset(60)
    lost = [{"arm": "other", "concept_id": f"K{n}", "text": BAD} for n in range(1, 8)]
    bench.answers(*lost, *BETTER)
    page = write_html(
        open_run(bench.run("--adapter", "other", *CERTIFY).folder), bench.folder / "p"
    )
    assert "1 of 2 students is good enough to ship, 1 undecided</h1>" in page.read_text("utf-8")


def test_where_the_number_of_cases_is_unknown_the_reason_stands_instead(few: Path) -> None:
    run = open_run(few)
    verdict = run.comparison["verdicts"][0]
    unknown = {"cases_to_settle": None, "unsettled": "the ratio is too close to its threshold"}
    changed = StoredRun(few, {**run.comparison, "verdicts": [{**verdict, **unknown}]})
    said = "There is no estimate of how many cases would settle the verdict: the ratio is too close"
    assert said in render_summary(changed)
    assert "Evaluate it on further cases." in "\n".join(next_steps(changed))


def test_each_rule_is_shown_open_or_refuted_with_its_p_value(few: Path, tmp_path: Path) -> None:
    (summary,) = (texts(few)[name] for name in ("summary",))
    p = rule_of(few, "ratio")["evidence"]["p_shown"]
    assert f"+0.100 | **open**: not shown at 0.95 (p = {p:.3f}) |" in summary
    lost = [{"arm": "pupil", "concept_id": f"K{n}", "text": BAD} for n in range(1, 31)]
    folder = make_run(tmp_path, [*lost, *AS_GOOD], 60, ("pupil",), *CERTIFY)
    assert rule_of(folder, "valid_rate")["state"] == "refuted"
    shown = rule_of(folder, "valid_rate", "baseline")["evidence"]["p_shown"]
    found = texts(folder)
    assert (
        f"| valid rate of baseline | 1.000 | ≥ 0.900 | +0.100 | shown, p = {shown:.3f} |"
        in (found["report"])
    )
    assert "**fails**: refuted at 0.95 (p < 0.001)" in found["report"]
    assert f"✓ shown p = {shown:.3f}" in found["page"]
    assert "✕ fails refuted at 0.95 (p < 0.001)" in found["page"]
    assert f"shown, p = {shown:.3f}" in found["notebook"]


def test_an_open_rule_is_skipped_in_junit_and_a_refuted_one_fails(
    few: Path, tmp_path: Path
) -> None:
    found = gate_tests(few)["mean of pupil / mean of baseline"].find("skipped")
    assert found is not None
    assert found.get("message", "").startswith("not shown at 0.95 (p = ")
    lost = [{"arm": "pupil", "concept_id": f"K{n}", "text": BAD} for n in range(1, 31)]
    refuted = gate_tests(make_run(tmp_path, [*lost, *AS_GOOD], 60, ("pupil",), *CERTIFY))
    assert refuted["valid rate of pupil"].find("failure") is not None
    assert len(refuted["valid rate of baseline"]) == 0


def test_a_pass_says_its_level_and_what_certify_would_say_and_does_say(bench: Bench) -> None:
    bench.dataset(20)
    bench.answers(*BETTER)
    run = bench.run()
    p = open_run(run.folder).comparison["verdicts"][0]["p"]
    sure = run.out.partition("\nPASS  pupil\n")[2]
    assert re.search(r"shown at level 0\.\d\d?; `--certify 0.95` would say UNDECIDED", sure)
    level = float(re.findall(r"level (\S+);", sure)[0])
    assert level <= 1 - p < level + 0.01
    assert all("would say UNDECIDED" in text for text in texts(run.folder).values())
    certified = bench.call("score", str(run.folder), *CERTIFY)
    assert (certified.code, "\nUNDECIDED  pupil\n" in certified.out) == (4, True)


def test_a_certified_pass_says_that_every_rule_is_shown(bench: Bench) -> None:
    bench.dataset(60)
    bench.answers(*BETTER)
    run = bench.run(*CERTIFY)
    assert run.code == 0
    assert "Every rule is shown at 0.95 (p = 0.0" in run.out.partition("\nPASS  pupil\n")[2]
    assert "resamples of these cases. Evaluate more" not in steps(run.folder)


@pytest.mark.parametrize(
    ("script", "cases", "would"),
    [(AS_GOOD, 10, "UNDECIDED"), ([{"arm": "pupil", "text": BAD}, *AS_GOOD], 10, "FAIL too")],
)
def test_a_fail_says_what_certify_would_say(
    bench: Bench, script: Script, cases: int, would: str
) -> None:
    bench.dataset(cases)
    bench.answers(*script)
    run = bench.run("-c", "gate.min_ratio=1.01")
    assert run.code == 1
    assert f"`--certify 0.95` would say {would}." in run.out.partition("\nFAIL  pupil\n")[2]


def test_ratios_on_two_sides_of_the_bound_are_told_in_the_verdict_s_first_lines(
    bench: Bench,
) -> None:
    bench.dataset(20)
    bench.answers(*UNEVEN)
    run = bench.run("-c", "gate.min_ratio=1.0")
    said = "It depends on the cases: the ratio is"
    assert run.out.partition("  pupil\n  ")[2].startswith(said)
    found = texts(run.folder)
    for name, text in found.items():
        verdict, _, rest = text.partition(said)
        assert rest, name
        assert "Gate" not in verdict.partition("pupil")[2], name


def test_a_base_that_no_student_can_match_is_told_beside_the_word(bench: Bench) -> None:
    bench.dataset(12)
    bench.answers({"arm": "baseline", "text": BAD}, *AS_GOOD)
    run = bench.run()
    said = "No student can pass against this baseline (valid rate of baseline: 0 is below 0.9"
    assert f"\nFAIL  pupil\n  {said}" in run.out
    assert all(said in text for text in texts(run.folder).values())


def test_a_pass_that_is_lost_among_several_students_says_so_and_what_it_takes(
    tmp_path: Path,
) -> None:
    students = ("pupil", *(f"s{n}" for n in range(1, 8)))
    folder = make_run(tmp_path, BETTER, 36, students, *CERTIFY)
    run = open_run(folder)
    verdict = run.comparison["verdicts"][0]
    assert {rule["state"] for rule in verdict["rules"]} == {"", "shown"}
    assert verdict["word"] == "UNDECIDED"
    assert verdict["cases_to_settle"] > 36
    for text in texts(folder).values():
        assert "for this student alone, but not among 8 students: p = " in text
        assert f"About {verdict['cases_to_settle']} cases like these would settle" in text
    skipped = gate_tests(folder)["among several students"].find("skipped")
    assert skipped is not None
    assert "not among 8 students" in skipped.get("message", "")


def test_the_ranking_shows_intervals_p_values_and_ties_by_name(three: Path) -> None:
    first, second, _ = open_run(three).comparison["ranking"]["students"]
    assert (first["arm"], first["tied"], second["arm"]) == ("first", True, "second")
    found = texts(three)
    for name in ("page", "report", "notebook"):
        for interval, form in ((first["mean_all"], "score"), (second["ahead"], "signed")):
            assert (
                f"{words.NUMBERS[form](interval['value'])} {words.ends(interval, form)}"
                in (found[name])
            )
        assert "tied with second" in found[name]
        assert "p < 0.001" in found[name]


def test_the_terminal_ranks_with_intervals_and_ties_by_name(bench: Bench) -> None:
    bench.dataset(10)
    bench.answers({"arm": "poor", "text": BAD}, *AS_GOOD)
    run = bench.run("--adapter", "twin", "--adapter", "poor")
    row = next(line for line in run.out.splitlines() if re.match(r"  1 +pupil +PASS", line))
    assert re.search(r"0\.909 \[0\.\d{3}, 0\.\d{3}\] +\+0\.000 \[-0\.\d{3}, \+0\.\d{3}\]", row)
    assert row.rstrip().endswith("tied with twin")


def test_integrate_is_said_of_one_student_and_why_of_that_one(three: Path) -> None:
    said = steps(three)
    assert said.count("Integrate ") == 1
    selected = open_run(three).comparison["selected"]
    assert selected["tied_with"] == ["second"]
    assert "It cannot be told apart from `second` (" in selected["why"]
    assert f"Integrate `first`. {selected['why']} {selected['caution']}" in said
    assert "`second` passes too." in said
    assert "Do not integrate `third`." in said


def test_the_first_student_is_integrated_without_a_tie_where_it_is_ahead(
    tmp_path: Path,
) -> None:
    folder = make_run(tmp_path, [{"arm": "best", "text": GOOD}, *AS_GOOD], 12, ("next", "best"))
    found = steps(folder).splitlines()
    assert found[0].startswith("Integrate `best`. `best` is selected: of the 2 students that pass ")
    assert "told apart" not in found[0]
    assert "`next` passes too." in found


def test_nothing_is_integrated_while_the_verdict_is_open(few: Path) -> None:
    said = steps(few)
    assert "Do not integrate `pupil` yet." in said
    assert "Open: `valid rate of baseline`, `valid rate of pupil`" in said
    assert "Integrate `" not in said


def test_the_command_for_more_cases_can_be_run_as_it_stands(few: Path, bench: Bench) -> None:
    (command,) = re.findall(r"`python -m vllm_eval (.* --max-samples \d+)`", steps(few))
    assert bench.call(*shlex.split(command), "--no-report").code == 0


def test_where_the_data_set_has_no_more_cases_more_data_is_asked_for(bench: Bench) -> None:
    bench.dataset(10)
    bench.answers(*AS_GOOD)
    assert "The data set has 10 cases: add more." in steps(bench.run(*CERTIFY).folder)


def test_a_rule_that_is_only_open_is_not_put_down_to_the_model(bench: Bench) -> None:
    """The ratio is refuted; the valid rate is 100 %, though not shown by so few cases."""
    bench.dataset(20)
    bench.answers({"arm": "pupil", "text": WEAK}, {"text": GOOD})
    run = bench.run(*CERTIFY, "-c", "gate.min_ratio=1.5")
    assert (run.code, rule_of(run.folder, "valid_rate")["state"]) == (1, "open")
    said = steps(run.folder)
    assert "Too few answers" not in said
    assert "`pupil` scores too low." in said


def test_a_score_that_is_low_only_by_failed_answers_is_put_down_to_them(bench: Bench) -> None:
    bench.dataset(60)
    bad = [{"arm": "pupil", "concept_id": f"K{n}", "text": BAD} for n in range(1, 60, 3)]
    bench.answers({"text": GOOD}, *bad)
    run = bench.run(*CERTIFY, "--min-valid-rate", "0.3")
    assert (run.code, rule_of(run.folder, "ratio")["state"]) == (1, "refuted")
    said = steps(run.folder)
    assert "`pupil` that failed or are missing count as 0, and are too many." in said
    assert "(20 of 20 answers, `review_missing_narrative`)" in said
    assert "scores too low" not in said


def test_a_score_that_is_low_only_by_missing_answers_is_not_put_down_to_the_model(
    bench: Bench,
) -> None:
    bench.dataset(60)
    gone = [{"arm": "pupil", "concept_id": f"K{n}", "error": "gone"} for n in range(1, 60, 3)]
    bench.answers({"text": GOOD}, *gone)
    run = bench.run(*CERTIFY, "--min-valid-rate", "0.3")
    assert rule_of(run.folder, "ratio")["state"] == "refuted"
    assert "scores too low" not in steps(run.folder)


def test_more_cases_are_not_advised_where_no_number_of_them_is_enough(bench: Bench) -> None:
    bench.dataset(20)
    bench.answers({"text": GOOD})
    said = steps(bench.run(*CERTIFY, "--min-valid-rate", "1").folder)
    assert "no number of cases shows so high a bound" in said
    assert "Lower a bound of 1" in said
    assert "further cases" not in said


def test_a_pass_that_few_cases_do_not_show_is_to_be_relied_on_only_after_more(bench: Bench) -> None:
    bench.dataset(10)
    bench.answers({"text": GOOD})
    run = bench.run()
    assert (run.code, run.result("comparison")["verdicts"][0]["pass_chance"]) == (0, 1.0)
    assert "These cases are too few to show it for others." in steps(run.folder)


def test_cases_to_settle_are_told_only_where_there_is_such_a_number(bench: Bench) -> None:
    bench.dataset(10)
    half = [{"arm": "pupil", "concept_id": f"K{n}", "text": GOOD} for n in range(1, 6)]
    bench.answers({"arm": "baseline", "concept_id": "K1", "text": GOOD}, *half, *AS_GOOD)
    run = bench.run("-c", "gate.min_ratio=1.02")
    verdict = open_run(run.folder).comparison["verdicts"][0]
    said = f"About {verdict['cases_to_settle']} cases like these would settle the ratio"
    found = texts(run.folder)
    assert said in flat(run.out)
    assert all(said in found[name] for name in ("page", "report", "summary", "notebook"))
    bench.answers({"arm": "pupil", "text": BAD}, *AS_GOOD)
    other = bench.call(*bench.arguments("--tag", "other"))
    folder = next(bench.output_dir.glob("other_*"))
    assert open_run(folder).comparison["verdicts"][0]["unsettled"]
    assert not any("would settle" in text for text in [other.out, *texts(folder).values()])


def test_the_share_of_resamples_is_said_to_be_no_error_rate(bench: Bench) -> None:
    bench.dataset(10)
    bench.answers(*AS_GOOD)
    run = bench.run()
    said = "Passes on 100% of resamples of these cases, which is not an error rate: see"
    assert said in run.out
    found = texts(run.folder)
    assert all(said in found[name] for name in ("page", "report", "summary", "notebook"))


def test_compare_prints_small_p_values_as_small(bench: Bench) -> None:
    bench.dataset(20)
    bench.answers(*AS_GOOD)
    bench.run("--tag", "one")
    bench.answers(*BETTER)
    bench.run("--tag", "two")
    one, two = (str(next(bench.output_dir.glob(f"{name}_*"))) for name in ("one", "two"))
    compared = bench.call("compare", one, two).out
    assert "Wilcoxon signed-rank: p < 0.001" in compared
    assert "Wilcoxon signed-rank: p = 1.000" in compared
    assert "p = 0.0000" not in compared


def test_an_interval_without_an_upper_end_is_open_to_the_right() -> None:
    interval = Interval(1.2, 0.9, None, 0.95, "betting", "these cases set the ratio no upper limit")
    assert interval_words(interval) == "1.200 [0.900, \N{INFINITY}) (0.95, betting)"
    data = {"value": 1.2, "low": 0.9, "high": None}
    assert words.ends(data) == "[0.900, \N{INFINITY})"
    assert words.span(data, 0.9)["high"] == 100.0


def test_a_ratio_without_an_upper_end_is_drawn_to_the_edge(few: Path) -> None:
    run = open_run(few)
    paired = run.comparison["students"]["pupil"]
    why = {"high": None, "reason": "these cases set the ratio no upper limit"}
    students = {"pupil": {**paired, "ratio": {**paired["ratio"], **why}}}
    changed = StoredRun(few, {**run.comparison, "students": students})
    page = write_html(changed, few / "made.html").read_text("utf-8")
    ends = f"[{paired['ratio']['low']:.3f}, \N{INFINITY})"
    assert ends in page
    assert ends in render_summary(changed)
    reach = re.search(r'class="reach" style="left:([\d.]+)%;width:([\d.]+)%', page)
    assert reach is not None
    assert sum(map(float, reach.groups())) == pytest.approx(100)
