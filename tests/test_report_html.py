"""`report.html` as a file: whole by itself, true to the stored run, and nobody's markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from tests.report_runs import WEAK, make_run, open_run, without
from vllm_eval.report import words
from vllm_eval.report.display import show
from vllm_eval.report.history import write_history
from vllm_eval.report.html import write_html
from vllm_eval.report.junit import write_junit
from vllm_eval.report.markdown import render_summary, write_markdown
from vllm_eval.report.stored_run import StoredRun
from vllm_eval.text import is_hidden, plain

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench

ATTACK = "</script><script>alert(1)</script><!--<b onclick='x'>\u2028\u202e"
VOID = frozenset(("meta", "rect", "br", "path", "input"))


@dataclass
class Element:
    """A tag with its attributes and the text directly inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Parsed(HTMLParser):
    """The elements of a page."""

    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in (element.tag for element in self._open):
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Those of one tag with these attributes."""
        wanted = attributes.items()
        return [e for e in self.elements if e.tag == tag and wanted <= e.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        """The only one."""
        (element,) = self.all(tag, **attributes)
        return element


def parse(page: Path) -> Parsed:
    parsed = Parsed()
    parsed.feed(page.read_text(encoding="utf-8"))
    return parsed


def rendered(folder: Path) -> Parsed:
    return parse(write_html(open_run(folder), folder / "report.html"))


def unpacked(page: Parsed) -> list[dict[str, Any]]:
    """The texts of all cases."""
    packed = [e.text for e in page.all("script", type="application/octet-stream")]
    return [case for one in packed for case in json.loads(zlib.decompress(base64.b64decode(one)))]


def index_of(page: Parsed) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(page.one("script", id="index").text)
    return index


def test_the_page_refers_to_nothing_outside_itself(bench: Bench, answers: Answers) -> None:
    bench.dataset()
    bench.answers({"text": answers.text()})
    page = rendered(bench.run().folder)
    for element in page.elements:
        assert not {"src", "srcset", "data", "action", "ping"} & element.attributes.keys()
        assert element.attributes.get("href", "#").startswith("#")
        assert element.tag not in ("link", "iframe", "object", "embed", "base")
    styles = "".join(element.text for element in page.all("style"))
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles)


def test_only_our_own_script_may_run(bench: Bench, answers: Answers) -> None:
    bench.dataset()
    bench.answers({"text": answers.text()})
    page = rendered(bench.run().folder)
    (script,) = (e for e in page.all("script") if "type" not in e.attributes)
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_20_cases_and_2_arms_stay_under_3_mb(bench: Bench, answers: Answers) -> None:
    """Answers five times as long as real ones, and none like another."""
    bench.dataset(20)
    noise = "".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(400))
    lines = [
        {"concept_id": f"K{n}", "arm": arm, "text": answers.text() + noise[n * 7 :]}
        for n in range(1, 21)
        for arm in ("baseline", "pupil")
    ]
    bench.answers(*lines)
    folder = bench.run().folder
    assert write_html(open_run(folder), folder / "r.html").stat().st_size < 3_000_000


def test_every_attempt_is_in_it_as_it_was_recorded(bench: Bench, answers: Answers) -> None:
    bench.dataset()
    bench.answers(
        {"arm": "baseline", "attempt": 1, "text": "\N{GRINNING FACE} no\n" + answers.bad()},
        {"text": answers.text()},
    )
    run = bench.run("--retries", "1")
    page = rendered(run.folder)
    index, cases = index_of(page), unpacked(page)
    for row, texts in zip(index["cases"], cases, strict=True):
        for arm, attempts in zip(index["arms"], texts["arms"], strict=True):
            recorded = run.attempts(arm, row["id"])
            assert [
                {key: attempt[key] for key in line if key in attempt}
                for line, attempt in zip(recorded, attempts, strict=True)
            ] == [
                {key: line[key] for key in line if key not in ("arm", "concept_id", "tier")}
                for line in recorded
            ]


def test_blocks_are_placed_in_the_browser_s_units(bench: Bench, answers: Answers) -> None:
    """A character outside the basic plane counts two there; equal blocks are told apart."""
    bench.dataset(1)
    same = "status: \N{GRINNING FACE}\n"
    text = f"\N{GRINNING FACE}\n```yaml VISION\n{same}```\n```yaml REVIEW\n{same}```\n"
    bench.answers({"text": text})
    (case,) = unpacked(rendered(bench.run("--retries", "0").folder))
    (attempt,) = case["arms"][0]
    units = text.encode("utf-16-le")
    starts = []
    for start, length in attempt["blocks"].values():
        assert units[2 * start : 2 * (start + length)].decode("utf-16-le") == same
        starts.append(start)
    assert len(set(starts)) == 2


def test_the_index_is_the_comparison_s_own_cases(bench: Bench, answers: Answers) -> None:
    bench.dataset(3)
    bench.answers({"concept_id": "K2", "arm": "pupil", "text": ""}, {"text": answers.text()})
    run = bench.run("--retries", "0")
    comparison = json.loads((run.folder / "comparison.json").read_text(encoding="utf-8"))
    index = index_of(rendered(run.folder))
    for row, case in zip(index["cases"], comparison["cases"], strict=True):
        assert row["id"] == case["concept_id"]
        for arm, cell in zip(index["arms"], row["arms"], strict=True):
            assert case["arms"][arm].items() <= cell.items()


def test_each_student_has_its_verdict_with_margin_and_certainty(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(12)
    weak = answers.text(vision=answers.vision(target_users=[], value_proposition=[]))
    bench.answers({"arm": "poor", "text": weak.replace("lending", "x")}, {"text": answers.text()})
    run = bench.run("--adapter", "poor", "-c", "gate.min_ratio=0.95")
    comparison = json.loads((run.folder / "comparison.json").read_text(encoding="utf-8"))
    page = rendered(run.folder)
    assert page.one("h1").text == "1 of 2 students is good enough to ship"
    for verdict in comparison["verdicts"]:
        card = page.one("article", **{"aria-label": f"Verdict on {verdict['arm']}"}).text
        assert verdict["verdict"] in card
        assert words.percent(verdict["pass_chance"]) in card
        for rule in verdict["rules"]:
            assert words.score(rule["value"]) in card
            assert words.signed(rule["margin"]) in card


def test_a_partial_run_says_what_is_missing(bench: Bench, answers: Answers) -> None:
    bench.dataset(4)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    journal = folder / "attempts.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    pending = [("K4", "baseline"), ("K4", "pupil"), ("K3", "pupil")]
    rows = [(json.loads(line), line) for line in lines]
    kept = [line for row, line in rows if (row["concept_id"], row["arm"]) not in pending]
    journal.write_bytes(b"".join(kept))
    for made in (*folder.glob("comparison.json"), *folder.glob("report.*")):
        made.unlink()
    page = rendered(folder)
    assert page.one("h1").text == "Not finished"
    banner = page.one("div", **{"class": "banner"}).text
    assert "3 answers are still pending" in banner
    statuses = {
        row["id"]: [cell["status"] for cell in row["arms"]] for row in index_of(page)["cases"]
    }
    whole = ["success", "success"]
    assert statuses == {"K1": whole, "K2": whole, "K3": ["success", "unfinished"]}


def test_a_case_with_some_of_its_samples_is_shown_unfinished(tmp_path: Path) -> None:
    made = make_run(
        tmp_path, [{"text": WEAK}], 2, ("pupil",), "--samples-per-case", "3", "--temperature", "1"
    )
    last = {"concept_id": "K2", "arm": "pupil", "sample": 2}
    folder = without(made, lambda row: last.items() <= row.items())
    rows = {row["id"]: row["arms"] for row in index_of(rendered(folder))["cases"]}
    assert [cell["status"] for cell in rows["K1"]] == ["success", "success"]
    assert [cell["status"] for cell in rows["K2"]] == ["success", "unfinished"]
    assert rows["K2"][1]["samples"] == 2


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pupil` has answered all cases and keeps every rule; `other` has answered none."""
    folder = tmp_path_factory.mktemp("run")
    made = make_run(folder, [{"text": WEAK}], 3, ("pupil", "other"))
    return without(made, lambda row: bool(row["arm"] == "other"))


def test_a_whole_student_of_a_partial_run_does_not_pass_on_the_page(half_done: Path) -> None:
    page = rendered(half_done)
    assert page.one("title").text.startswith("NOT FINISHED")
    for arm in ("pupil", "other"):
        card = page.one("article", **{"aria-label": f"Verdict on {arm}"})
        assert card.attributes["class"] == "card verdict open"
        assert "NOT FINISHED" in card.text
        assert "of resamples" not in card.text
    assert not page.all("span", **{"class": "badge pass"})
    assert "PASS" not in "".join(e.text for e in page.all("main"))


def test_no_other_text_says_that_a_student_of_a_partial_run_passes(half_done: Path) -> None:
    run = open_run(half_done)
    shown = show(half_done)
    page = write_history([run], half_done / "history.html").read_text("utf-8")
    texts = [
        *(render_summary(run), repr(shown), shown._repr_html_(), page.partition("<body>")[2]),
        write_markdown(run, half_done / "made.md").read_text("utf-8"),
        write_junit(run, half_done / "made.xml").read_text("utf-8"),
    ]
    for text in texts:
        assert "NOT FINISHED" in text
        assert "PASS" not in text
        assert "#0b6b41" not in text
        assert 'class="badge pass"' not in text


def test_a_case_with_nothing_but_a_failed_first_attempt_is_shown_unfinished(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(1)
    bench.answers({"text": answers.bad()})
    folder = bench.run("--retries", "1").folder
    journal = folder / "attempts.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if json.loads(line)["attempt"] == 1))
    (folder / "comparison.json").unlink()
    (row,) = index_of(rendered(folder))["cases"]
    assert [cell["status"] for cell in row["arms"]] == ["unfinished", "unfinished"]
    assert row["arms"][0]["reasons"] == ["review_missing_narrative"]


def first_cases(run: StoredRun, count: int) -> StoredRun:
    """The run as if so many of its cases were all that is shown of very many."""
    rows, index = run.comparison["cases"][:count], run.comparison["index"]
    cases = {row["concept_id"]: index["cases"][row["concept_id"]] for row in rows}
    sample = {"cases": rows, "cases_sampled": True, "index": {**index, "cases": cases}}
    return StoredRun(run.folder, {**run.comparison, **sample})


def test_a_sample_of_very_many_cases_says_that_it_is_one(bench: Bench, answers: Answers) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.text()})
    run = open_run(bench.run().folder)
    rows = run.comparison["cases"][:2]
    sampled = first_cases(run, 2)
    many = StoredRun(run.folder, {**sampled.comparison, "cases_total": 54_321})
    page = parse(write_html(many, bench.folder / "r.html"))
    assert "2 of 54,321 cases" in page.one("p", id="sampled").text
    assert "".join(element.text for element in page.all("main")).count("54,321") == 1
    assert [row["id"] for row in index_of(page)["cases"]] == [row["concept_id"] for row in rows]


def test_an_example_is_linked_only_to_a_case_that_is_on_the_page(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(3)
    bench.answers({"text": answers.bad()})
    run = open_run(bench.run("--retries", "0").folder)
    page = parse(write_html(first_cases(run, 1), bench.folder / "r"))
    examples = [e.text.split()[0] for e in page.all("div", **{"class": "example"})]
    assert set(examples) == {"K1", "K2", "K3"}
    links = [e.attributes["href"] for e in page.all("a") if "#case=" in e.attributes["href"]]
    assert links
    assert set(links) == {f"#case={run.comparison['cases'][0]['concept_id']}"}


def test_nothing_from_outside_becomes_markup(bench: Bench, answers: Answers) -> None:
    """Neither an answer, nor an error that quotes it, nor a case's id and tier."""
    bench.write(
        bench.cases,
        [
            {
                "concept_id": ATTACK,
                "concept": ATTACK,
                "requirements_yaml": "functional_requirements: [{id: FR001, description: x}]",
                "tier": ATTACK,
            }
        ],
    )
    bench.answers({"text": f"```yaml VISION\n{ATTACK}: [\n```\n```yaml REVIEW\na: b\n```\n"})
    page = rendered(bench.run("--retries", "0").folder)
    kinds = [element.attributes.get("type", "ours") for element in page.all("script")]
    assert kinds == ["application/json", "application/octet-stream", "ours"]
    assert not [e for e in page.elements if any(name.startswith("on") for name in e.attributes)]
    (row,) = index_of(page)["cases"]
    assert row["id"] == row["tier"] == ATTACK
    shown = page.one("section", id="failures").text
    assert "</script><script>alert(1)</script><!--<b onclick='x'>U+2028U+202E" in shown
    assert not {"\u2028", "\u202e"} & set("".join(e.text for e in page.all("main")))


def test_rendering_again_gives_the_same_page(bench: Bench, answers: Answers) -> None:
    bench.dataset()
    bench.answers({"text": answers.text()})
    run = open_run(bench.run().folder)
    pages = [write_html(run, bench.folder / f"{n}.html").read_bytes() for n in range(2)]
    assert pages[0] == pages[1]


def test_a_moved_folder_renders_as_well(bench: Bench, answers: Answers) -> None:
    bench.dataset()
    bench.answers({"text": answers.text()})
    folder = bench.folder / "elsewhere" / "renamed"
    shutil.copytree(bench.run().folder, folder)
    assert "renamed" in rendered(folder).one("title").text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0%"),
        (0.004, "0.4%"),
        (0.42, "42%"),
        (0.996, "99.6%"),
        (1.0, "100%"),
    ],
)
def test_a_share_never_looks_whole_when_it_is_not(value: float | None, shown: str) -> None:
    assert words.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\N{EN DASH}"),
        (0.0074, "7.4 ms"),
        (0.5, "500 ms"),
        (7.034, "7.03 s"),
        (68.94, "68.9 s"),
        (1234.5, "1,234 s"),
    ],
)
def test_durations_carry_about_three_figures(value: float | None, shown: str) -> None:
    assert words.seconds(value) == shown


def test_hidden_characters_are_named() -> None:
    shown = str(words.visible("a\u202eb<\U000e0041"))
    assert ">U+202E<" in shown
    assert 'title="Right-to-left override"' in shown
    assert "&lt;" in shown
    assert "U+E0041" in shown


HIDDEN = {
    "a control": "\x07",
    "a control of Latin-1": "\x85",
    "a format": "\u200b",
    "a direction": "\u202e",
    "a tag": "\U000e0041",
    "a line end": "\u2028",
    "a paragraph end": "\u2029",
    "a lone surrogate": "\udc80",
    "private use": "\ue000",
    "private use of a high plane": "\U00100000",
    "a grapheme joiner": "\u034f",
    "a Hangul filler": "\u3164",
    "a half-width Hangul filler": "\uffa0",
    "a Hangul choseong filler": "\u115f",
    "a Hangul jungseong filler": "\u1160",
    "a Khmer vowel": "\u17b4",
    "a Mongolian variation": "\u180b",
    "a variation": "\ufe00",
    "the last variation but the emoji's": "\ufe0e",
    "a supplementary variation": "\U000e0100",
    "the last supplementary variation": "\U000e01ef",
    "an unassigned one to be ignored": "\ufff0",
}


@pytest.mark.parametrize("character", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_hidden_character_is_named_on_the_page_and_replaced_on_a_terminal(character: str) -> None:
    text = f"a{character}b"
    assert f">U+{ord(character):04X}<" in str(words.visible(text))
    assert character not in str(words.visible(text))
    assert plain(text) == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("text", ["caf\xe9", "\u4e2d\u6587", "\u2764\ufe0f", "\ud55c\uae00", "a b"])
def test_what_is_to_be_seen_is_left_as_it_is(text: str) -> None:
    assert str(words.visible(text)) == f"<bdi>{text}</bdi>"
    assert plain(text) == text
    assert not any(map(is_hidden, text))
