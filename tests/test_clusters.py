"""Why an answer failed, by the shape of its text: every answer of two corpora, and any text."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.attempts import attempt, failed, graded
from tests.malformed import CORPUS, GOOD, Malformed
from tests.malformed_repairs import CORPUS as CARELESS
from vllm_eval.diagnose.clusters import KINDS, find_cause
from vllm_eval.records import Case

if TYPE_CHECKING:
    from tests.careless import Careless
    from tests.conftest import Answers
    from vllm_eval.tasks import Task

LABELLED = "mislabelled_fence"
RESERVED = "reserved_character"
CLUSTERS = {
    "empty answer": "empty",
    "prose instead of blocks": "prose",
    "refusal": "prose",
    "last fence not closed": "unclosed_fence",
    "cut in the review": "unclosed_fence",
    "cut in the vision": "unclosed_fence",
    "blank review": "empty",
    "colon in plain text": "unquoted_colon",
    "colon in the narrative": "unquoted_colon",
    "continuation not indented": "unindented_continuation",
    "narrative goes on unindented": "unindented_continuation",
    "tab as indentation": "tab",
    "quote not closed": "broken_quotes",
    "text after a quoted item": "broken_quotes",
    "apostrophe opens a quote": "broken_quotes",
    "bracket not closed": RESERVED,
    "brace not closed": RESERVED,
    "at sign at the start": RESERVED,
    "backtick at the start": RESERVED,
    "percent at the start": RESERVED,
    "asterisks as emphasis": RESERVED,
    "unknown anchor": RESERVED,
    "exclamation tag": RESERVED,
    "python tag": RESERVED,
    "list item dedented": "bad_indentation",
    "key dedented by one": "bad_indentation",
    "key without its space": "missing_colon",
    "vision is a text": "not_a_mapping",
    "review is a list": "not_a_mapping",
    "review is a comment": "not_a_mapping",
    "alignment is a list": "wrong_type",
    "alignment is null": "missing_key",
    "gaps without items": "missing_key",
    "gaps is a text": "wrong_type",
    "conflicts is a text": "wrong_type",
    "one action": "too_few",
    "no actions": "too_few",
    "actions as text": "wrong_type",
    "narrative too long": "too_long",
    "narrative is a list": "wrong_type",
    "narrative is null": "missing_key",
}
"""Of the answers of `malformed`; the others follow from their reasons."""
BY_REASON = {
    "missing_yaml_blocks": LABELLED,
    "invalid_vision_yaml": "other_yaml",
    "invalid_review_yaml": "other_yaml",
    "no_requirement_ids": "no_ids",
}
LOOSE = "narrative: The requirements carry the vision and leave two decisions open.\n"
MORE = (
    Malformed(
        "item goes on at the margin", "is clear.", "is clear\nto all.", "unindented_continuation"
    ),
    Malformed("words without a colon", "status: aligned", "status aligned", "missing_colon"),
    Malformed("key swallowed by a text", "  gaps:", "      gaps:", "bad_indentation"),
    Malformed(
        "text and list", "recommended_actions:", "recommended_actions: none", "bad_indentation"
    ),
    Malformed(
        "colon in an item", "- Set a response", "- Set one: a response: time", "unquoted_colon"
    ),
    Malformed(
        "colon in a continuation", LOOSE, LOOSE[:-6] + "\n  and by now: open.\n", "unquoted_colon"
    ),
    Malformed("unknown escape", '"FR001: berths', '"FR001: \\d berths', "broken_quotes"),
    Malformed("folded sign with text", "narrative: The", "narrative: > The", RESERVED),
    Malformed("one block only", GOOD[GOOD.index("```yaml REVIEW") :], "", "missing_block"),
)
"""Further answers; what stands for the reason is the cluster."""


@pytest.mark.parametrize("malformed", CORPUS, ids=lambda one: one.name)
def test_a_malformed_answer_has_its_cluster(task: Task, case: Case, malformed: Malformed) -> None:
    cause = find_cause(graded(task, case, malformed.text), task.blocks, task.declaration)
    by_reason = BY_REASON.get(malformed.reason, "missing_key")
    assert cause.cluster == CLUSTERS.get(malformed.name, by_reason)


@pytest.mark.parametrize("malformed", MORE, ids=lambda one: one.name)
def test_a_further_answer_has_its_cluster(task: Task, case: Case, malformed: Malformed) -> None:
    cause = find_cause(graded(task, case, malformed.text), task.blocks, task.declaration)
    assert cause.cluster == malformed.reason


@pytest.mark.parametrize("careless", CARELESS, ids=lambda one: one.name)
def test_an_answer_of_the_repairs_corpus_has_its_cluster(
    task: Task, case: Case, careless: Careless
) -> None:
    one = graded(task, case, careless.text, truncated=careless.truncated)
    assert find_cause(one, task.blocks, task.declaration).cluster == careless.cluster


@pytest.mark.parametrize("text", ["```yaml VISION\nproduct_name: x", "Let me think."])
def test_an_answer_without_all_blocks_that_the_limit_ended_is_truncated(
    task: Task, case: Case, text: str
) -> None:
    one = graded(task, case, text, truncated=True)
    assert find_cause(one, task.blocks, task.declaration).cluster == "truncated"


def test_an_answer_that_is_whole_before_the_limit_is_not_called_truncated(
    task: Task, case: Case, answers: Answers
) -> None:
    one = graded(task, case, answers.bad() + "and on and on", truncated=True)
    assert find_cause(one, task.blocks, task.declaration).cluster == "missing_key"


def test_a_missing_answer_is_no_fault_of_its_text(task: Task) -> None:
    one = attempt(status="error", reason="engine_error", raw_response="no blocks")
    assert find_cause(one, task.blocks, task.declaration).cluster == "no_answer"


@pytest.mark.parametrize("key", ["owner", "requirements_alignment.aligned"])
def test_a_rule_that_is_not_declared_is_the_task_s_own(task: Task, key: str) -> None:
    entry = GOOD.replace('"FR001: berths are shown"', "FR001: berths are shown")  # a mapping
    one = failed(reason="two_owners", block="REVIEW", key=key, raw_response=entry)
    assert find_cause(one, task.blocks, task.declaration).cluster == "other_rule"


def test_what_is_wrong_is_named_with_its_place_and_size(task: Task, case: Case) -> None:
    (long,) = (one for one in CORPUS if one.name == "narrative too long")
    cause = find_cause(graded(task, case, long.text), task.blocks, task.declaration)
    assert (cause.place, cause.size) == ("REVIEW.narrative", 121)


def test_every_text_has_a_cluster(task: Task, case: Case) -> None:
    """Good answers with pieces taken out, doubled and swapped, wherever the parser then stops."""
    rng = random.Random(7)
    pieces = ["```", "\t", "'", '"', ": ", "- ", "\n", "  ", "{", "[", "&a", "\u2028", "\x07", "é"]
    for _ in range(300):
        text = GOOD
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text))
            text = text[:start] + rng.choice([*pieces, ""]) + text[start + rng.randint(0, 9) :]
        problem = task.grade(case, text).problem
        if problem is not None:
            one = graded(task, case, text, truncated=rng.random() < 0.2)
            assert find_cause(one, task.blocks, task.declaration).cluster in KINDS


@pytest.mark.parametrize("piece", ["\n", ".\n", ". ", "a.", "```yaml\n"])
def test_much_of_nothing_behind_one_block_is_looked_at_at_once(task: Task, piece: str) -> None:
    text = "```yaml VISION\na: 1\n```" + (piece * 60_000)[:60_000]
    one = failed(reason="missing_yaml_blocks", raw_response=text)
    began = time.process_time()
    assert find_cause(one, task.blocks, task.declaration).cluster in KINDS
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("piece", ["- 'a\n", "\t", "`` ", '"\\', "a\n", "- [\n", "x: "])
def test_a_hostile_text_is_looked_at_at_once(task: Task, piece: str) -> None:
    """A parser's word for it is made up, so that every shape is looked for."""
    text = (piece * 60_000)[:60_000]
    whole = f"```yaml VISION\n{text}\n```\n```yaml REVIEW\na: 1\n```"
    place: dict[str, Any] = {"line": 9_000, "column": 1, "block": "VISION", "raw_response": whole}
    began = time.process_time()
    for words in ("mapping values", "did not find expected key", "could not find expected ':'"):
        one = failed(reason="invalid_vision_yaml", error=words, **place)
        assert find_cause(one, task.blocks, task.declaration).cluster in KINDS
    assert time.process_time() - began < 1.5


def test_the_guide_lists_every_cluster() -> None:
    guide = (Path(__file__).parents[1] / "docs/diagnose.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", guide, flags=re.MULTILINE)
    assert rows == [(name, kind.what) for name, kind in KINDS.items()]


def test_the_failed_ones_of_real_answers_have_the_clusters_a_reader_gave_them(
    task: Task, shared_data: Path
) -> None:
    lines = (shared_data / "po_known_answers.jsonl").read_text(encoding="utf-8").splitlines()
    found: Counter[str] = Counter()
    for row in map(json.loads, lines):
        if not row["valid"]:
            inputs = {key: row[key] for key in ("concept", "requirements_yaml")}
            one = graded(task, Case("K", 1, None, inputs), row["response"])
            found[find_cause(one, task.blocks, task.declaration).cluster] += 1
    assert found == {
        "too_few": 50,
        "missing_key": 16,
        "bad_indentation": 8,
        "mislabelled_fence": 7,
        "missing_colon": 3,
        "unclosed_fence": 2,
        "unindented_continuation": 1,
    }
