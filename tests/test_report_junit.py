"""junit.xml as CI systems read it: totals that add up, failures apart from errors, sound XML."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import Answers
from tests.report_runs import (
    FAILING,
    HOSTILE_ID,
    HOSTILE_TEXT,
    WEAK,
    interrupt,
    make_run,
    open_run,
    without,
)
from vllm_eval.report.junit import write_junit

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), FAILING)


def _root(folder: Path) -> ET.Element:
    return ET.parse(write_junit(open_run(folder), folder / "made.xml")).getroot()


def test_the_totals_are_those_of_the_tests(failing: Path) -> None:
    root = _root(failing)
    for element in (root, *root.iter("testsuite")):
        assert element.get("tests") == str(len(list(element.iter("testcase"))))
        for key, tag in RESULTS.items():
            assert element.get(key) == str(len(list(element.iter(tag))))
        assert float(element.get("time", "nan")) >= 0


def test_every_test_has_a_name_of_its_own_and_at_most_one_result(failing: Path) -> None:
    tests = list(_root(failing).iter("testcase"))
    assert len({(test.get("classname"), test.get("name")) for test in tests}) == len(tests)
    assert all(len(test) <= 1 for test in tests)


def test_rules_and_cases_are_tests_and_their_verdicts_results(failing: Path) -> None:
    root, comparison = _root(failing), open_run(failing).comparison
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["gate of pupil", "cases of baseline", "cases of pupil"]
    failed = {
        test.get("name") for test in suites["gate of pupil"] if test.find("failure") is not None
    }
    rules = comparison["verdicts"][0]["rules"]
    assert failed == {rule["name"] for rule in rules if not rule["passed"]} != set()
    tests = {test.get("name"): test for test in suites["cases of pupil"]}
    assert len(tests) == 8
    failure, error = tests["K2"].find("failure"), tests["K4"].find("error")
    assert failure is not None
    assert failure.get("type") == "review_missing_narrative"
    assert "narrative" in (failure.text or "") + failure.get("message", "")
    assert error is not None
    assert "out of memory" in error.get("message", "")
    assert len(tests["K3"]) == 0


def test_what_is_pending_in_a_partial_run_is_skipped_not_passed(failing: Path) -> None:
    folder = interrupt(failing, 5)
    root = _root(folder)
    assert root.get("skipped") == str(6 + open_run(folder).comparison["pending"])
    assert len(list(root.iter("testcase"))) == 6 + 2 * 8


def test_a_case_is_skipped_until_all_of_its_samples_are_there(tmp_path: Path) -> None:
    script = [{"text": WEAK}]
    made = make_run(tmp_path, script, 2, ("pupil",), "--samples-per-case", "3")
    folder = without(
        made, lambda row: row["sample"] > 0 and (row["arm"], row["concept_id"]) == ("pupil", "K2")
    )
    root = _root(folder)
    skipped = [
        (test.get("classname"), test.get("name"))
        for test in root.iter("testcase")
        if test.find("skipped") is not None and "gate" not in (test.get("classname") or "")
    ]
    assert skipped == [("cases.pupil", "K2")]


def test_no_rule_of_a_partial_run_passes_or_fails(tmp_path: Path) -> None:
    """Of two students one has answered every case, and keeps every rule."""
    made = make_run(tmp_path, [{"text": WEAK}], 2, ("pupil", "other"))
    root = _root(without(made, lambda row: bool(row["arm"] == "other")))
    gates = [suite for suite in root if (suite.get("name") or "").startswith("gate of ")]
    assert len(gates) == 2
    for suite in gates:
        assert suite.get("skipped") == suite.get("tests") != "0"
        assert suite.get("failures") == "0"


def test_no_answer_and_no_name_can_break_the_file(tmp_path: Path) -> None:
    """Control characters have no place in XML, not even escaped."""
    folder = make_run(tmp_path, [{"text": HOSTILE_TEXT}], [{"concept_id": HOSTILE_ID}])
    root = _root(folder)
    names = {test.get("name") for test in root.iter("testcase")}
    assert any("<script>alert(1)</script> @octocat" in str(name) for name in names)
    assert any("\ufffd" in (failure.text or "") for failure in root.iter("failure"))


def test_cases_that_a_settled_run_does_not_count_are_no_tests(tmp_path: Path) -> None:
    script = [{"text": Answers().text()}]
    settle = ("--certify", "0.95", "--until-settled")
    folder = make_run(tmp_path, script, 120, ("pupil",), *settle)
    cases = open_run(folder).comparison["settled"]["cases"]
    root = _root(folder)
    assert [suite.get("tests") for suite in root] == ["6", str(cases), str(cases)]
    assert root.get("skipped") == "0"
