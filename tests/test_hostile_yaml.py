"""Answers made to exhaust, confuse or break the parser: each is graded, by name, within a second.

Processor time is measured, so that a busy machine fails nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import PRODUCT_OWNER, po_inputs
from tests.depth import count
from vllm_eval.errors import DatasetError
from vllm_eval.inputs.cases import open_dataset
from vllm_eval.records import Case

if TYPE_CHECKING:
    from tests.conftest import Answers, Bench
    from vllm_eval.tasks import Task

LIMIT_S = 1.0
MERSENNE = 2**61 - 1
"""Every multiple of it has the hash 0."""


def doubling(levels: int, width: int) -> str:
    """A list that holds the one before it so many times, by alias, so often."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


LONG_TEXT = "word " * 20_000
INVALID = {
    "billion laughs": doubling(10, 10),
    "self reference many times": f"a: &a [{', '.join(['*a'] * 100)}]",
    "flow nest": "[" * 100_000,
    "closed flow nest": "a: " + "[" * 5_000 + "]" * 5_000,
    "mapping nest": "a: " + "{b: " * 5_000 + "}" * 5_000,
    "indented nest": "\n".join(" " * depth + "a:" for depth in range(600)),
    "indented nest with old line ends": "\r".join(" " * depth + "a:" for depth in range(600)),
    "dashes": "- " * 100_000,
    "question marks": "? " * 100_000,
    "colons": ": " * 100_000,
    "long integer": f"a: {'9' * 5_000}",
    "very long integer": f"a: {'9' * 250_000}",
    "long hexadecimal": f"a: 0x{'f' * 200_000}",
    "sexagesimal": f"a: {'1:' * 100_000}1",
    "sexagesimal float": f"a: !!float {'1:' * 100_000}1.5",
    "python object": "a: !!python/object/apply:os.system [echo]",
    "python name": "a: !!python/name:os.system",
    "unknown tag": "a: !mine 1",
    "impossible date": "a: 2025-02-30",
    "not a boolean": "a: !!bool perhaps",
    "not an integer": "a: !!int perhaps",
    "not a timestamp": "a: !!timestamp perhaps",
    "not binary": "a: !!binary é",
    "nul": "a: b\0c",
    "escape character": "a: \x1b[31m",
    "lone surrogate": "a: \ud800",
    "unhashable key": "? [1, 2]\n: a",
    "merge of a scalar": "<<: 7",
    "two documents": "a: 1\n---\nb: 2",
    "undefined alias": "a: *b",
    "unclosed quote": 'a: "' + "x" * 100_000,
    "tabs": "a:\n\tb: 1",
    "directive": "%YAML 9.9\n---\na: 1",
    "ten megabytes": "a: " + "x" * 10_000_000,
}
PARSES = {
    "duplicate keys": "a: 1\na: 2",
    "non-string keys": "1: a\nnull: b\n2.5: c\ntrue: d",
    "infinite number": "a: .inf\nb: .nan\nc: 1.0e+999",
    "recursive list": "a: &a [*a]",
    "recursive mapping": "a: &a {b: *a}",
    "recursive merge": "a: &a\n  <<: *a\n  b: 1",
    "right to left": "a: \u202eabc",
    "set": "a: !!set {x, y}",
    "binary": "a: !!binary aGk=",
    "long quoted text": 'a: "' + "word " * 2_000 + '"',
}
EXPENSIVE = {
    "late error, twice tried": "- a\n" * 60_000 + "`x`: : [",
    "late error in a flow": "[" + "[]," * 80_000 + "`a`",
    "many keys": "".join(f"? a{n}\n" for n in range(25_000)),
    "many empty lists": "a: [" + "[]," * 80_000 + "]",
    "colliding keys": "{" + ",".join(hex(MERSENNE * n) for n in range(1, 12_000)) + "}",
    "merge of many": "{<<: [" + "{a: 1}, " * 30_000 + "]}",
    "merge bomb": "a: &a {"
    + ",".join(f"k{n}" for n in range(8_000))
    + "}\nb: &b {<<: [*a,*a,*a,*a]}\nc: &c {<<: [*b,*b,*b,*b]}\n"
    "d: &d {<<: [*c,*c,*c,*c]}\ne: {<<: [*d,*d,*d,*d]}",
    "printing bomb": f"a: &a {LONG_TEXT}\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c]\nsummary: [[*d,*d,*d,*d]]",
    "printing bomb in a bucket": f"a: &a {LONG_TEXT}\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c]\nrequirements_alignment: {gaps: [[*d,*d,*d,*d]]}",
}


def grade_in_time(task: Task, case: Case, text: str) -> str | None:
    """The reason, once the time has been found short enough."""
    start = time.process_time()
    grade = task.grade(case, text)
    assert time.process_time() - start < LIMIT_S
    assert grade.score is None or 0 <= grade.score <= 1
    return grade.problem.reason if grade.problem else None


@pytest.mark.parametrize("name", INVALID)
def test_a_hostile_vision_is_invalid_yaml(
    task: Task, case: Case, answers: Answers, name: str
) -> None:
    text = answers.text(vision=INVALID[name])
    assert grade_in_time(task, case, text) == "invalid_vision_yaml"


@pytest.mark.parametrize("name", INVALID)
def test_a_hostile_review_is_invalid_yaml(
    task: Task, case: Case, answers: Answers, name: str
) -> None:
    text = answers.text(review=INVALID[name])
    assert grade_in_time(task, case, text) == "invalid_review_yaml"


@pytest.mark.parametrize("name", PARSES)
def test_an_odd_review_that_parses_fails_by_its_keys(
    task: Task, case: Case, answers: Answers, name: str
) -> None:
    text = answers.text(review=PARSES[name])
    assert grade_in_time(task, case, text) in ("review_missing_status", "review_not_mapping")


@pytest.mark.parametrize("name", EXPENSIVE)
def test_two_blocks_that_could_cost_much_are_graded_in_time(
    task: Task, case: Case, answers: Answers, name: str
) -> None:
    reason = grade_in_time(task, case, answers.text(EXPENSIVE[name], EXPENSIVE[name]))
    assert reason in ("invalid_vision_yaml", "vision_missing_product_name")


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        "`" * 10_000_000,
        "```yaml VISION" + " " * 10_000_000,
        "```yaml" + "\n" * 10_000_000,
        "```yaml VISION\n" * 600_000,
        "```yaml VISION```" * 600_000,
        "\0" * 1_000_000,
        "\ud800" * 1_000_000,
    ],
    ids=["text", "ticks", "spaces", "lines", "openings", "fences", "nul", "surrogates"],
)
def test_a_huge_answer_without_blocks_is_missing_them(task: Task, case: Case, text: str) -> None:
    reason = grade_in_time(task, case, text)
    assert reason in ("missing_yaml_blocks", "invalid_vision_yaml")


def test_the_last_of_two_equal_keys_counts(task: Task, case: Case, answers: Answers) -> None:
    text = answers.text("product_name: x\nproduct_summary: y\nproduct_name: ''")
    assert grade_in_time(task, case, text) == "vision_missing_product_name"


def test_a_tag_is_never_obeyed(
    task: Task, case: Case, answers: Answers, capfd: pytest.CaptureFixture[str]
) -> None:
    grade_in_time(task, case, answers.text('a: !!python/object/apply:os.system ["echo obeyed"]'))
    assert "obeyed" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["billion laughs", "flow nest", "python object", "nul"])
def test_hostile_requirements_are_an_error_of_their_line(bench: Bench, name: str) -> None:
    rows = [{"concept": "c", "requirements_yaml": text} for text in ("a: 1", INVALID[name])]
    with pytest.raises(DatasetError, match="line 2: requirements_yaml is not valid YAML"):
        open_dataset(bench.write(bench.cases, rows), None, 42, PRODUCT_OWNER)


FRAGMENTS = st.sampled_from(
    [
        *("```", "```yaml ", "VISION", "REVIEW", "\n", "\r\n", "  ", "\t", "- ", ": ", "? ", "`"),
        *("[", "]", "{", "}", "&a ", "*a", "<<: ", "!!int ", "!!set ", "!!timestamp ", "|\n", '"'),
        *("product_name", "product_summary", "summary", "requirements_alignment", "narrative"),
        *("aligned", "gaps", "conflicts", "FR001", "null", "2025-01-01", "1e999", "0b", "---\n"),
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=5), max_size=25).map("".join)
GENERATED = count(250, deep=2_500)
"""Examples drawn; each is graded in eight arrangements, so 20,000 answers in a deep run."""


@settings(
    max_examples=GENERATED,
    deadline=None,  # the wall clock of a busy machine proves nothing; CPU time is held below
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(one=TEXTS, other=TEXTS)
def test_no_answer_makes_the_grade_raise_take_long_or_leave_its_range(
    task: Task, one: str, other: str
) -> None:
    for vision, review, around in (
        *((one, other, ""), (other, one, one), (one, one, other), (other, other, one)),
        *(
            ("a: b", one, other),
            (other, "a: b", one),
            (one + other, other, ""),
            (other, one, other),
        ),
    ):
        text = f"{around}```yaml VISION\n{vision}\n```{around}```yaml REVIEW\n{review}\n```"
        begin = time.process_time()
        grade = task.grade(Case("x", 1, None, po_inputs("c", other)), text)
        assert time.process_time() - begin < 1
        assert grade.score is None or 0 <= grade.score <= 1
