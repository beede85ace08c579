"""Repairs of an answer's text: which careless answer takes which, and that no word is lost.

The corpus holds one edit each; the generated answers hold many, written from data that is known.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import malformed, test_hostile_yaml
from tests.careless import GOOD, Careless
from tests.careless_writer import flat, make_data, write_carelessly, write_well
from tests.conftest import po_inputs
from tests.depth import count
from tests.malformed_repairs import CORPUS
from vllm_eval.records import Case
from vllm_eval.tasks.parse import extract_block, parse_block
from vllm_eval.tasks.repair import MAX_CHARACTERS, NAMES, Repaired, keys_of, repair

if TYPE_CHECKING:
    from vllm_eval.tasks import Task

LABELS = ("VISION", "REVIEW")
LIMIT_S = 1.0
SEEDS = count(120, deep=400)
HOSTILE = test_hostile_yaml.INVALID | test_hostile_yaml.PARSES | test_hostile_yaml.EXPENSIVE


def mended(task: Task, text: str, *, ended: bool = True) -> Repaired:
    return repair(text, LABELS, keys_of(task.declaration), ended=ended)


def parses(text: str) -> bool:
    blocks = [extract_block(text, label) for label in LABELS]
    return all(block is not None and parse_block(block).error is None for block in blocks)


def test_the_corpus_holds_at_least_sixty_answers_of_different_names_and_texts() -> None:
    assert len({one.name for one in CORPUS}) == len({one.text for one in CORPUS}) == len(CORPUS)
    assert len(CORPUS) >= 60


def test_the_corpus_has_every_repair() -> None:
    assert {name for one in CORPUS for name in one.repairs} == set(NAMES)


def test_the_answer_they_all_come_from_is_valid(task: Task, case: Case) -> None:
    assert task.grade(case, GOOD).problem is None


@pytest.mark.parametrize("one", CORPUS, ids=lambda one: one.name)
def test_each_careless_answer_is_rejected_for_its_reason(
    task: Task, case: Case, one: Careless
) -> None:
    problem = task.grade(case, one.text).problem
    assert problem is not None
    assert problem.reason == one.reason


@pytest.mark.parametrize("one", CORPUS, ids=lambda one: one.name)
def test_each_careless_answer_takes_its_repairs(task: Task, one: Careless) -> None:
    found = mended(task, one.text, ended=not one.truncated)
    assert found.names == one.repairs
    assert parses(found.text) if one.repairs else found.text == one.text


@pytest.mark.parametrize("one", [o for o in CORPUS if o.repairs], ids=lambda one: one.name)
def test_each_repaired_answer_is_graded_by_the_same_contract(
    task: Task, case: Case, one: Careless
) -> None:
    problem = task.grade(case, mended(task, one.text).text).problem
    assert (problem.reason if problem else None) == one.after


@pytest.mark.parametrize(
    "one", [o for o in CORPUS if o.repairs and o.after is None], ids=lambda one: one.name
)
def test_no_repair_adds_or_removes_a_word(task: Task, one: Careless) -> None:
    marks = str.maketrans(dict.fromkeys("'\"`~ \t\n\xa0", ""))
    before, after = (text.translate(marks) for text in (one.text, mended(task, one.text).text))
    if "label_fence" not in one.repairs:
        assert after == before
    else:  # the label and its language are written anew
        assert after[-200:] == before[-200:]


@pytest.mark.parametrize("one", malformed.CORPUS, ids=lambda one: one.name)
def test_an_answer_whose_blocks_parse_is_left_as_it_is(
    task: Task, one: malformed.Malformed
) -> None:
    found = mended(task, one.text)
    if parses(one.text):
        assert found == Repaired(one.text, ())
    assert mended(task, found.text) == Repaired(found.text, ())


def test_an_answer_not_known_to_have_ended_keeps_its_last_fence_open(task: Task) -> None:
    text = GOOD.removesuffix("```\n")
    assert mended(task, text).names == ("close_fence",)
    assert mended(task, text, ended=False) == Repaired(text, ())


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("Seeds: a site", "Seeds: a site"),
        ("the town's wish: it's so", "the town's wish: it's so"),
        ("**bold** at first", "**bold** at first"),
        ('"first" and "last"', '"first" and "last"'),
        ('"all "of" it"', 'all "of" it'),
        ('"never closed', "never closed"),
        ("> 90 % of it", "> 90 % of it"),
        ("[FR001] as [FR002]", "[FR001] as [FR002]"),
        ("two: short\nlines", "two: short lines"),
        ("two\nlines", "two lines"),
        (">\nfolded\nlines", "folded lines"),
        ("|\nlines\n  kept", "lines\n  kept"),
    ],
)
def test_a_value_comes_to_what_was_written(value: str, data: str) -> None:
    text = f"```yaml A\nkey: {value}\nlast: x\n```"
    found = repair(text, ["A"])
    assert found.names or '"first"' in value
    block = extract_block(found.text, "A")
    assert block is not None
    parsed = parse_block(block).data
    assert isinstance(parsed, dict)
    assert str(parsed["key"]).rstrip("\n") == data


def test_a_remark_below_a_fence_that_is_not_closed_does_not_become_a_key(task: Task) -> None:
    text = GOOD.removesuffix("```\n") + "\nNote: there is more to come.\n"
    assert mended(task, text) == Repaired(text, ())


def test_an_item_keeps_its_first_colon() -> None:
    found = repair("```yaml A\n- FR001: one: two\n- FR002: three\n```", ["A"])
    block = extract_block(found.text, "A")
    assert block is not None
    assert parse_block(block).data == [{"FR001": "one: two"}, {"FR002": "three"}]


def test_the_page_names_every_repair() -> None:
    page = (Path(__file__).parents[1] / "docs/repair.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in page] == []


def test_only_the_repairs_that_are_needed_are_named() -> None:
    text = "```yaml A\na: b: c\nd: !e f\ng: > 3\n```"
    assert repair(text, ["A"]).names == ("quote_specials", "quote_colons")
    assert repair(text.replace("b: c", "b c"), ["A"]).names == ("quote_specials",)


@pytest.mark.parametrize(
    "block",
    [
        "a: b\nrest of it # a remark\nc: d",
        "a: b: c # a remark",
        "a: !!set b",
        "a: [b, c",
        "a: &x 1\nb: *x c",
        "a: b\nc:d\ne: f",
        "a: b\nNote: c: d",
        "a: b\nnext thing: c\nd: e: f",
        "a: b\n> c: d\ne: f",
        "a: b\nna\nme_of: c\nd: e",
        "a: b my_key: c",
        'a: "b" my_key: c',
        "a: b: c\n  d: e",
        "a: b: c\n  - d",
        'a: "b" "" c',
        'a: "b" \\" c',
        "a: 'b' c'",
    ],
)
def test_what_could_mean_two_things_is_left_alone(block: str) -> None:
    text = f"```yaml A\n{block}\n```"
    assert repair(text, ["A"], ["a", "d", "my_key", "name_of"]) == Repaired(text, ())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_block_is_looked_at_within_a_second(task: Task, name: str) -> None:
    block = HOSTILE[name][: MAX_CHARACTERS // 2 - 100]
    text = f"```yaml VISION\n{block}\n```\n```yml REVIEW\n{block}\n"
    begin = time.process_time()
    found = mended(task, text)
    assert time.process_time() - begin < LIMIT_S
    assert found.text == text or parses(found.text)


@pytest.mark.parametrize(
    "line",
    [
        *("- [\n", "- {a\n", '- "\n', "- '\n", "- @\n", "- a: b: c\n", "- *a b\n", "\t- a\n"),
        *("a: b\nc\n", "a: |\nb\n", "\xa0a: b\n", "- '\"\n", "```\n", "```yaml\n", "~~~\n", "``\n"),
        *("VISION\n", "a: > b\n\n", '- "a" "b\n', "?\n", "- - - -\n", "a: [b] c\n", "\\\n", "'"),
        *("a: ", '"a" ', "[] ", "[a] ", "- ", "\t", "\xa0", "a_b ", "a:b ", "# ", "``` ", "'a "),
    ],
)
def test_a_block_of_one_line_over_and_over_is_looked_at_within_a_second(
    task: Task, line: str
) -> None:
    block = line * ((MAX_CHARACTERS - 100) // len(line))
    text = f"```yaml VISION\na: b\n```\n```yaml REVIEW\n{block}\n```\n"[:MAX_CHARACTERS]
    begin = time.process_time()
    mended(task, text)
    assert time.process_time() - begin < LIMIT_S


def test_ten_of_the_known_answers_that_do_not_parse_do_after_a_repair(
    task: Task, shared_data: Path
) -> None:
    lines = (shared_data / "po_known_answers.jsonl").read_text(encoding="utf-8").splitlines()
    known = [json.loads(line) for line in lines]
    unread = [one for one in known if not parses(one["response"])]
    assert len(unread) == 21
    found = [mended(task, one["response"]) for one in unread]
    counts = Counter(name for one in found for name in one.names)
    assert counts == {"label_fence": 7, "close_fence": 2, "indent_continuation": 1}
    kept = [
        task.grade(Case("x", 1, None, po_inputs(k["concept"], k["requirements_yaml"])), f.text)
        for k, f in zip(unread, found, strict=True)
        if f.names
    ]
    assert sum(grade.problem is None for grade in kept) == 6


def test_a_longer_answer_is_not_repaired(task: Task) -> None:
    text = GOOD.replace("The requirements", "The requirements: " + "word " * MAX_CHARACTERS)
    assert mended(task, text) == Repaired(text, ())


@settings(max_examples=count(150, deep=600), deadline=None, database=None)
@given(one=test_hostile_yaml.TEXTS, other=test_hostile_yaml.TEXTS)
def test_repair_is_idempotent_and_leaves_what_parses_on_any_text(one: str, other: str) -> None:
    keys = ("product_name", "summary", "narrative")
    for text in (f"```yaml VISION\n{one}\n```{other}```yaml REVIEW\n{other}\n```", one + other):
        found = repair(text, LABELS, keys)
        assert repair(found.text, LABELS, keys) == Repaired(found.text, ())
        assert (not found.names) == (found.text == text)
        if parses(text):
            assert found == Repaired(text, ())
        elif found.names:
            assert parses(found.text)


ODDMENTS = ("a: ", "- ", "*", '"', "'", ": ", "|", "\n", "\n", "\xa0", "\x0c", "\u2028", "x y", "`")


@settings(max_examples=count(150, deep=600), deadline=None, database=None)
@given(parts=st.lists(st.sampled_from(ODDMENTS), max_size=20))
@example(parts=["a: ", "*"])
@example(parts=["a: ", "\xa0", "\n", "a: ", "x y", ": ", "x y"])
@example(parts=['"', "\n", "a: ", "\n", ": ", ": ", "x y"])
def test_no_pieces_of_yaml_make_a_repair_raise(parts: list[str]) -> None:
    block = "".join(parts)
    text = f"```yaml VISION\n{block}\n```\n```yaml REVIEW\nx: 1\n```"
    found = repair(text, LABELS, ("a_b",))
    assert (not found.names) == (found.text == text)
    assert parses(found.text) or found.text == text


@settings(max_examples=count(75, deep=300), deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_an_answer_written_well_is_left_as_it_is_byte_for_byte(seed: int) -> None:
    text = write_well(make_data(random.Random(seed)), random.Random(seed))
    assert parses(text)
    assert repair(text, LABELS) == Repaired(text, ())


def test_answers_written_carelessly_are_left_or_come_to_the_data_they_were_written_from() -> None:
    failed = repaired = 0
    used: set[str] = set()
    for seed in range(SEEDS):
        rng = random.Random(seed)
        data = make_data(rng)
        text = write_carelessly(data, rng)
        found = repair(text, LABELS)
        failed += not parses(text)
        repaired += bool(found.names)
        used |= set(found.names)
        if found.names:
            blocks = {label: extract_block(found.text, label) for label in LABELS}
            for label, block in blocks.items():
                if block and block not in text:  # what parsed is left, whatever it came to
                    assert flat(parse_block(block or "").data) == flat(data[label]), seed
    assert failed > SEEDS / 2
    assert repaired > 0.8 * failed  # what is left could mean two things
    assert used == set(NAMES)
