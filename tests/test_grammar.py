"""The grammar of constrained answers: what it admits, and that all it admits keeps the contract."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING

import llguidance
import pytest
import yaml

from tests.conftest import REQUIREMENTS, Answers, po_inputs
from tests.depth import count
from vllm_eval.records import Case
from vllm_eval.tasks import open_task
from vllm_eval.tasks.grammar import make_grammar
from vllm_eval.tasks.parse import extract_block, parse_block

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_eval.tasks import Task

EVERY_TYPE = """\
name: every_type
version: "1"
prompt: ask.j2
inputs: {notes: {}}
blocks:
  PLAN:
    keys:
      title: {}
      "on": {required: "no"}
      due: {type: date}
      level: {type: choice, of: [low, so so, it's]}
      steps: {type: list, min_items: 2, max_items: 3}
      tracing: {type: list, min_items: 1, ids: {prefixes: [T, TC], reason: no_test, example: TC01}}
      scope:
        type: mapping
        keys:
          inside: {type: list, required: set}
          owner: {}
          limits: {type: mapping, keys: {hours: {max_words: 4}, spare: {max_words: 1}}}
  RISKS:
    keys:
      risks: {type: list, required: present}
metric:
  shape: {points: 1, measure: shape}
"""
NASTY = [
    *(": ", " #", "- ", "```", "``", "`", "é", "🙂", "yes", "no", "null", "~"),
    *("2024-01-01", "0x1F", "1:30", "'", '"', "\\", "{", "[", "<<", "&a", "*a", "!!"),
    *("...", "---", "\u2028", "\xa0", "\ufeff", "\t", "FR001", "C12", "TC01", "FR001:"),
    *("FR001: ", "? ", "| ", ">", "%", "@", "On", ".inf", "= ", " word", "word"),
    *("true", "\n  ", "\n    ", "\n  - ", "\n- ", "[]", " 12", "12 "),
    *("\n```\n```yaml REVIEW\n", "``` yaml VISION\n", "\x00", "\x85", "\ud7ff", "''"),
    *('""', "#", ":"),
]
SEEDS = count(40, deep=300)
CLOSING = ["\n", '"\n', "'\n", "```", "[]\n", "\n- a b\n", "aligned"]


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder: Path = tmp_path_factory.mktemp("task")
    (folder / "task.yaml").write_text(EVERY_TYPE, "utf-8")
    (folder / "ask.j2").write_text("{{ notes }}", "utf-8")
    return open_task(str(folder))


class Reader:
    """Reads text as an engine's guidance would have the model write it, byte by byte."""

    def __init__(self, task: Task) -> None:
        grammar = llguidance.grammar_from("grammar", make_grammar(task.declaration).text)
        self._first = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)
        assert not self._first.get_error()

    def begin(self) -> llguidance.LLMatcher:
        return self._first.deep_copy()

    def admits(self, text: str) -> bool:
        matcher, given = self.begin(), list(text.encode())
        return matcher.validate_tokens(given) == len(given) and (
            matcher.consume_tokens(given) and matcher.is_accepting()
        )

    def walk(self, seed: int) -> str:
        """A complete answer of random pieces, among them all that could break it."""
        draw, matcher, text = random.Random(seed), self.begin(), bytearray()
        closing = draw.choice((0.3, 0.6, 0.9))
        while not matcher.is_accepting():
            source = CLOSING if draw.random() < closing else NASTY
            piece = list(draw.choice(source).encode("utf-8", "surrogatepass"))
            if matcher.validate_tokens(piece) < len(piece):
                mask = int.from_bytes(matcher.compute_bitmask(), "little")
                allowed = [byte for byte in range(256) if mask >> byte & 1]
                piece = [draw.choice(allowed)]
            assert matcher.consume_tokens(piece)
            text += bytes(piece)
        return text.decode()


@pytest.fixture(scope="module")
def owner(task: Task) -> Reader:
    return Reader(task)


def dedent_lists(text: str) -> str:
    """The same answer with its lists' items below their keys instead of flush with them."""
    return re.sub(r"^( *)- ", r"\1  - ", text, flags=re.MULTILINE)


def known_good(answers: Answers) -> dict[str, str]:
    """One valid answer in several hands; keys in the declared order."""
    summary = str(answers.vision()["product_summary"]).strip()
    narrative = str(answers.review()["narrative"]).strip()
    vision, review = (
        yaml.safe_dump(block, sort_keys=False, width=60).rstrip()
        for block in (answers.vision(product_summary=summary), answers.review(narrative=narrative))
    )
    plain = answers.text(vision, review).rstrip("\n")
    return {
        "as dumped": plain,
        "lists indented": dedent_lists(plain),
        "narrative as a block": re.sub(r"narrative: ", "narrative: >-\n  ", plain),
        "entries for identifiers": plain.replace("'FR001: lending'", "FR001: lending"),
        "an identifier in brackets": plain.replace("'FR001: lending'", "Lending (FR001) is clear"),
        "double quotes": plain.replace("'FR001: lending'", '"FR001: \\"lending\\""'),
        "code": plain.replace("cheaper", "cheaper `per loan` at 5:30"),
        "a bare date": plain.replace("'2025-03-01T10:00:00Z'", "2024-02-28"),
        "a percentage": plain.replace("loans a week", "80% of loans"),
    }


@pytest.mark.parametrize("hand", [*known_good(Answers())])
def test_good_answers_are_admitted_however_they_are_written(
    owner: Reader, answers: Answers, hand: str
) -> None:
    assert owner.admits(known_good(answers)[hand])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("product_name: Tool Library", "product_name: yes"),
        ("product_name: Tool Library", "product_name: 2024"),
        ("product_name: Tool Library", "product_name: ''"),
        ("product_name: Tool Library", "product_name: Tools: a library"),
        ("product_name: Tool Library", "product_name: Tools #1"),
        ("product_name: Tool Library", "product_name: ```"),
        ("- cheaper", "- cheaper: yes"),
        ("- cheaper", "- "),
        ("status: aligned", "status: fine"),
        ("'2025-03-01T10:00:00Z'", "2025-02-29"),
        ("- Choose a map\n", ""),
        ("non_goals: []", "non_goals:"),
        ("target_users:", "users:"),
        ("narrative: ", "narrative: " + "word " * 120),
        ("```yaml REVIEW", "Here is the review:\n```yaml REVIEW"),
    ],
)
def test_what_breaks_contract_or_shape_is_not_admitted(
    owner: Reader, answers: Answers, old: str, new: str
) -> None:
    good = known_good(answers)["as dumped"]
    assert old in good

    assert not owner.admits(good.replace(old, new, 1))


def test_an_answer_that_names_no_identifier_is_not_admitted(
    owner: Reader, answers: Answers
) -> None:
    good = known_good(answers)["as dumped"]

    assert not owner.admits(re.sub(r"(FR|NFR|C)00", r"\1x", good))


def test_whatever_is_put_into_the_product_owners_grammar_keeps_the_contract(
    owner: Reader, task: Task
) -> None:
    case = Case("K1", 1, None, po_inputs("A tool library", REQUIREMENTS))
    for seed in range(SEEDS):
        text = owner.walk(seed)

        assert task.grade(case, text).problem is None, (seed, text)
        vision, review = (parse_block(extract_block(text, b) or "").data for b in task_blocks(task))
        assert isinstance(vision, dict)
        assert isinstance(review, dict)
        for key in ("target_users", "value_proposition", "key_capabilities", "success_metrics"):
            assert vision[key], (seed, text)
            assert all(isinstance(item, str) for item in vision[key]), (seed, text)
        assert all(isinstance(vision[key], str) for key in ("product_name", "product_summary"))
        assert review["status"] in {"aligned", "needs_adjustment", "misaligned"}


def task_blocks(task: Task) -> list[str]:
    return list(task.declaration.blocks)


def test_whatever_is_put_into_a_grammar_of_every_type_keeps_the_contract(every_type: Task) -> None:
    reader, case = Reader(every_type), Case("K1", 1, None, {"notes": ""})
    for seed in range(SEEDS):
        text = reader.walk(seed)

        assert every_type.grade(case, text).problem is None, (seed, text)
        plan = parse_block(extract_block(text, "PLAN") or "").data
        assert isinstance(plan, dict)
        keys = every_type.declaration.blocks["PLAN"].keys
        assert list(plan) == list(keys)
        assert all(isinstance(plan[key], str) for key in ("title", "on", "level"))
        assert len(plan["scope"]["limits"]["hours"].split()) <= 4
        assert 2 <= len(plan["steps"]) <= 3
        assert all(isinstance(step, str) for step in plan["steps"])


def test_a_list_that_wants_its_own_identifiers_names_them_beside_its_mappings(
    tmp_path: Path,
) -> None:
    before, rest = EVERY_TYPE.split("blocks:\n")
    blocks = """\
blocks:
  PLAN:
    keys:
      links:
        type: mapping
        ids: {prefixes: [T]}
        keys: {risks: {type: list, ids: {prefixes: [R], reason: no_risk}}, tests: {type: list}}
"""
    metric = rest[rest.index("metric:") :]
    (tmp_path / "task.yaml").write_text(before + blocks + metric, "utf-8")
    (tmp_path / "ask.j2").write_text("{{ notes }}", "utf-8")
    reader = Reader(open_task(str(tmp_path)))

    def admitted(risk: str, test: str) -> bool:
        text = f"links:\n  risks:\n  - {risk}\n  tests:\n  - {test}\n"
        return reader.admits(f"```yaml PLAN\n{text}```")

    assert admitted("R01 is real", "T01 passes")
    assert not admitted("it is real", "T01 passes")
    assert not admitted("R01 is real", "it passes")


def test_xgrammar_reads_the_same_grammar(task: Task, answers: Answers) -> None:
    """vLLM takes it unless told otherwise, on a server for example."""
    xgrammar = pytest.importorskip("xgrammar")
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    told = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    compiled = xgrammar.GrammarCompiler(told).compile_grammar(make_grammar(task.declaration).text)

    for text in known_good(answers).values():
        matcher = xgrammar.GrammarMatcher(compiled)
        assert all(matcher.accept_token(byte) for byte in text.encode())
        assert matcher.accept_token(256)


def test_known_valid_answers_of_the_declared_shape_are_admitted(
    owner: Reader, task: Task, shared_data: Path
) -> None:
    """At least 95 of 100; the others begin a text with code, or hold a no-break space."""
    case = Case("K1", 1, None, po_inputs("A tool library", REQUIREMENTS))
    rows = [
        json.loads(line)["response"]
        for name in ("po_teacher_supervised.jsonl", "po_known_answers.jsonl")
        for line in (shared_data / name).read_text("utf-8").splitlines()
    ]
    good = [text for text in rows if task.grade(case, text).problem is None and shaped(text)]

    admitted = sum(owner.admits(text) for text in good)

    assert len(good) > 250
    assert admitted / len(good) >= 0.95


def shaped(text: str) -> bool:
    """Whether an answer has the declared shape, also where the contract does not ask for it."""
    vision, review = (parse_block(extract_block(text, b) or "").data for b in ("VISION", "REVIEW"))
    assert isinstance(vision, dict)
    assert isinstance(review, dict)
    lists = [vision[k] for k in ("target_users", "value_proposition", "key_capabilities")]
    lists += [vision["success_metrics"], review["summary"], review["recommended_actions"]]
    return (
        text.startswith("```yaml VISION")
        and review["status"] in {"aligned", "needs_adjustment", "misaligned"}
        and all(isinstance(items, list) and items for items in lists)
        and all(isinstance(item, str) for items in [*lists, vision["non_goals"]] for item in items)
    )
