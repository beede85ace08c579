"""`junit.xml`: each rule of the gate and each case of each arm as a test, for CI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vllm_eval.diagnose.example import Example
from vllm_eval.report.stored_run import StoredRun, read_failures
from vllm_eval.report.verdicts import beside, headline, result, still_open
from vllm_eval.store.folder import index_rows, write_text
from vllm_eval.text import plain

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped (section 2.2, production 2)."""
KINDS = ("failure", "error", "skipped")


def write_junit(run: StoredRun, path: Path) -> Path:
    """A suite for each student's gate and one for each arm's cases.

    A rule that fails and a broken contract are a `failure`, a missing answer an `error`, an open
    rule is `skipped`. In a partial run, a case with a pending answer is `skipped`, and so is every
    rule. If there are very many cases, the sample in
    `comparison.json` is listed. The time of an arm's suite is the sum over its attempts, which ran
    side by side; the time of all is that of the generation.
    """
    root = ET.Element("testsuites", name=_text(run.folder.name))
    suites = [*_gates(run.comparison), *_arms(run)]
    for suite in suites:
        root.append(suite)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, 0)) for suite in suites)))
    root.set("time", f"{run.comparison['timing']['generation_s']:.3f}")
    ET.indent(root)
    xml = ET.tostring(root, encoding="unicode")
    return write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}\n')


def _note(suite: ET.Element, selected: Mapping[str, Any]) -> None:
    """Say in a suite's properties that its student is selected, and where it is."""
    properties = ET.Element("properties")
    for name, key in (("selected", "arm"), ("selected.path", "path"), ("selected.step", "step")):
        if selected[key] is not None:
            ET.SubElement(properties, "property", name=name, value=_text(str(selected[key])))
    suite.insert(0, properties)


def _gates(comparison: Mapping[str, Any]) -> Iterator[ET.Element]:
    selected = headline(comparison)
    for verdict in comparison["verdicts"]:
        name, rules = f"gate.{verdict['arm']}", verdict["rules"]
        if comparison["partial"]:
            why = f"{verdict['verdict']}: answers are still pending"
            tests = [_test(name, rule["name"], "skipped", None, why) for rule in rules]
        else:
            tests = [_rule(name, rule) for rule in rules]
            if verdict["word"] == "UNDECIDED" and not still_open(verdict):
                why = " ".join(beside(verdict))
                tests.append(_test(name, "among several students", "skipped", None, why))
        how = ", constrained answers" if comparison["constrained"]["mode"] == "only" else ""
        suite = _suite(f"gate of {verdict['arm']}{how}", tests)
        if selected and selected["arm"] == verdict["arm"]:
            _note(suite, selected)
        yield suite


def _rule(name: str, rule: Mapping[str, Any]) -> ET.Element:
    """A rule that is neither shown nor refuted is skipped."""
    word, _, why = result(rule)
    kind = {"PASS": None, "FAIL": "failure", "UNDECIDED": "skipped"}[word]
    return _test(name, rule["name"], kind, "rule" if word == "FAIL" else None, why)


def _arms(run: StoredRun) -> Iterator[ET.Element]:
    comparison = run.comparison
    cases = {row["concept_id"]: row["arms"] for row in comparison["cases"]}
    sampled, samples = comparison["cases_sampled"], run.environment["identity"]["samples_per_case"]
    counted = islice(index_rows(run.folder).order, comparison["cases_total"])
    drawn = list(cases if sampled else counted)
    failed = {
        (case, arm)
        for case, cells in cases.items()
        for arm, cell in cells.items()
        if cell["status"] != "success" and cell["samples"] == samples
    }
    examples = read_failures(run, failed)
    for arm in run.arms:
        cells = ((case, cases.get(case, {}).get(arm)) for case in drawn)
        tests = [_case(arm, case, cell, examples.get((case, arm)), samples) for case, cell in cells]
        made = comparison["attempts"].get(arm)
        yield _suite(f"cases of {arm}", tests, made["all"]["seconds"] if made else 0.0)


def _case(
    arm: str, case: str, cell: Mapping[str, Any] | None, example: Example | None, samples: int
) -> ET.Element:
    """The status of a case with fewer answers than `samples` is not known yet."""
    name = f"cases.{arm}"
    if cell is None or cell["samples"] < samples:
        there = cell["samples"] if cell else 0
        why = f"the run ended with {there} of its {samples} answers"
        return _test(name, case, "skipped", None, why)
    if cell["status"] == "success":
        return _test(name, case)
    kind = "error" if cell["status"] == "error" else "failure"
    message = f"{cell['valid']} of {cell['samples']} answers valid in {cell['attempts']} attempts"
    if example and example.message:
        message += f"; {example.message}"
    if cell["repairs"]:
        message += f"; a repair would make it valid: {', '.join(cell['repairs'])}"
    return _test(name, case, kind, cell["reason"], message, example.excerpt if example else ())


def _suite(name: str, tests: Sequence[ET.Element], seconds: float = 0.0) -> ET.Element:
    suite = ET.Element("testsuite", name=_text(name), tests=str(len(tests)))
    counts = (str(sum(test.find(kind) is not None for test in tests)) for kind in KINDS)
    suite.attrib |= dict(zip(("failures", "errors", "skipped"), counts, strict=True))
    suite.set("time", f"{seconds:.3f}")
    suite.extend(tests)
    return suite


def _test(
    classname: str,
    name: str,
    kind: str | None = None,
    why: str | None = None,
    message: str = "",
    lines: Sequence[str] = (),
) -> ET.Element:
    test = ET.Element("testcase", classname=_text(classname), name=_text(name))
    if kind is not None:
        result = ET.SubElement(test, kind, message=_text(message))
        if why is not None:
            result.set("type", _text(why))
        if lines:
            result.text = "\n".join(_text(line) for line in lines)
    return test


def _text(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", plain(text))
