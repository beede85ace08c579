"""`report.html` in a real browser: what a reader sees, does, and is safe from."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import DARK, LIGHT, PHONE, browsing, opened
from tests.conftest import REQUIREMENTS, Answers
from tests.report_runs import open_run, without
from vllm_eval import cli
from vllm_eval.report import words
from vllm_eval.report.html import write_html
from vllm_eval.text import SPANS, is_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from playwright.sync_api import Browser, Page

CASES = 60
MARKUP = (
    "<script>window.canary=1</script><img src=x onerror=window.canary=1>"
    "<svg onload=window.canary=1></svg></script><!--<script>]]>--><b title='\"`{{7*7}}'>"
)
HOSTILE = MARKUP + "\u202egnp.exe\u2066\u200b\u0000\u0085\u2028\ufeff\U000e0041end"
LONG = 200_000
AXE = {"resultTypes": ["violations"]}
MEASURE = """
import re, sys, time
from pathlib import Path
from vllm_eval.report.html import write_html
from vllm_eval.report.stored_run import load_run
write_html(load_run(Path(sys.argv[1])), Path(sys.argv[2]))
# Not ru_maxrss, which a process inherits from the one that started it.
most = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(time.process_time(), int(most[1]) / 2**20)
"""

SORT_BY_ALL = """() => [...document.querySelectorAll('#table .sort')].map((_, n) => {
  const press = () => {
    document.querySelectorAll('#table .sort')[n].click();
    return document.querySelectorAll('#table th[aria-sort]')[n].getAttribute('aria-sort');
  };
  return [press(), press(), document.querySelectorAll('#table tbody tr').length];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty cases, retries, a place to blame, an answer that is missing, and a hostile case."""
    folder = tmp_path_factory.mktemp("run")
    answers = Answers()
    broken = answers.text(review="status: aligned\nsummary:\n- one\n- FR001: two: views\n")
    weak = answers.text(vision=answers.vision(target_users=["one"], product_summary="Short. " * 9))
    hostile = answers.text(vision=answers.vision(product_name=MARKUP)) + HOSTILE
    script: list[dict[str, object]] = [
        {"concept_id": "*", "arm": "baseline", "text": weak},
        {"concept_id": "*", "arm": "pupil", "text": answers.text()},
        {"concept_id": "K3", "arm": "baseline", "attempt": 1, "text": "Well.\n" + broken},
        {"concept_id": "K5", "arm": "pupil", "error": f"out of luck {HOSTILE}"},
        {"concept_id": "K7", "arm": "pupil", "text": "x" * LONG},
        {"concept_id": MARKUP, "arm": "baseline", "text": hostile},
        {"concept_id": MARKUP, "arm": "pupil", "text": f"```yaml VISION\n{HOSTILE}"},
    ]
    names = [f"K{n}" for n in range(1, CASES)] + [MARKUP]
    tiers = {name: "medium" if n % 3 == 0 else "simple" for n, name in enumerate(names)}
    made = make_run(folder, tiers | {MARKUP: MARKUP}, script, "--retries", "1")
    return write_html(open_run(made), folder / "report.html")


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of four cases; `pupil` has none of K2 and one of K3, which has no tier."""
    folder = tmp_path_factory.mktemp("run")
    script: list[dict[str, object]] = [{"concept_id": "*", "text": Answers().text()}]
    script.append({"concept_id": "K3", "arm": "baseline", "text": Answers().bad()})
    tiers: dict[str, str | None] = {"K1": "simple", "K2": "simple", "K3": None, "K4": "none"}
    made = make_run(folder, tiers, script, "--retries", "0", "--samples-per-case", "2")
    pending = [("pupil", "K2", 0), ("pupil", "K2", 1), ("pupil", "K3", 1)]
    part = without(made, lambda row: (row["arm"], row["concept_id"], row["sample"]) in pending)
    return write_html(open_run(part), part / "report.html")


def make_run(
    folder: Path,
    tiers: Mapping[str, str | None],
    script: Sequence[Mapping[str, object]],
    *more: str,
) -> Path:
    row: dict[str, str | None] = {"concept": "A tool library", "requirements_yaml": REQUIREMENTS}
    cases = [row | {"concept_id": name, "tier": tier} for name, tier in tiers.items()]
    for name, rows in (("cases.jsonl", cases), ("script.jsonl", script)):
        text = "".join(json.dumps(line) + "\n" for line in rows)
        (folder / name).write_text(text, encoding="utf-8")
    arguments = ["--engine", "scripted", "--script", str(folder / "script.jsonl")]
    arguments += ["--dataset-path", str(folder / "cases.jsonl"), "--adapter", "pupil"]
    arguments += ["--output-dir", str(folder / "out"), "--profile", "none", *more]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    (made,) = (folder / "out").iterdir()
    return made


def names_shown(page: Page) -> list[str]:
    return page.locator("#table tbody th[scope=row]").all_inner_texts()


def open_case(page: Page, name: str) -> None:
    page.get_by_label("Search", exact=True).fill(name)
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_selector("#case-body .attempt")


def test_it_opens_from_disk_asks_for_nothing_and_nothing_goes_wrong(
    browser: Browser, report: Path
) -> None:
    with opened(browser, report) as seen:
        open_case(seen.page, "K3")
        seen.page.wait_for_load_state("networkidle")
        assert seen.requested == [seen.url]
        assert not seen.complaints


def test_the_verdict_stands_without_scripts(browser: Browser, report: Path) -> None:
    with opened(browser, report, java_script_enabled=False) as seen:
        assert seen.page.get_by_role("heading", level=1).inner_text() == "Not good enough to ship"
        assert seen.page.get_by_text("needs JavaScript").is_visible()
        assert not seen.page.locator("#explorer").is_visible()


def test_filters_narrow_the_table_and_clear_again(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        assert page.locator("#found").inner_text() == "60 of 60 cases"
        page.get_by_label("Status", exact=True).select_option("valid after a retry")
        assert names_shown(page) == ["K3"]
        page.get_by_label("Arm", exact=True).select_option("pupil")
        assert page.get_by_text("No case matches these filters.").is_visible()
        page.get_by_label("Status", exact=True).select_option("no answer")
        assert names_shown(page) == ["K5"]
        page.get_by_role("button", name="Clear").click()
        page.get_by_label("Reason", exact=True).select_option("missing_yaml_blocks")
        assert set(names_shown(page)) == {"K7", MARKUP}
        page.get_by_label("Reason", exact=True).select_option("any")
        page.get_by_label("Tier", exact=True).select_option("medium")
        assert page.locator("#found").inner_text() == "20 of 60 cases"


def test_an_arm_is_shown_alone_with_the_cases_it_has_finished(
    browser: Browser, half_done: Path
) -> None:
    """`pupil` lacks K2, and a second answer to K3."""
    with opened(browser, half_done) as seen:
        page = seen.page
        arm = page.get_by_label("Arm", exact=True)
        assert arm.get_attribute("aria-describedby") == "filter-note"
        assert page.locator("#table thead th[scope=colgroup]").count() == 2
        page.locator("#table .sort", has_text="Score").first.click()
        arm.select_option("pupil")
        assert page.locator("#table thead th[scope=colgroup]").all_inner_texts() == ["pupil"]
        assert sorted(names_shown(page)) == ["K1", "K4"]
        page.get_by_label("Status", exact=True).select_option("not finished")
        assert sorted(names_shown(page)) == ["K2", "K3"]
        page.get_by_role("button", name="Clear").click()
        page.locator("#found").get_by_text("4 of 4 cases", exact=True).wait_for()
        assert page.locator("#table thead th[scope=colgroup]").count() == 2
        assert not seen.complaints


def test_cases_without_a_tier_can_be_asked_for(browser: Browser, half_done: Path) -> None:
    """A tier may have any name, that of none too."""
    with opened(browser, half_done) as seen:
        tier = seen.page.get_by_label("Tier", exact=True)
        assert tier.locator("option").all_inner_texts() == ["any", "none", "simple", "no tier"]
        tier.select_option(label="no tier")
        assert names_shown(seen.page) == ["K3"]
        tier.select_option(label="none")
        assert names_shown(seen.page) == ["K4"]


def test_a_failed_case_without_a_tier_is_led_to(browser: Browser, half_done: Path) -> None:
    with opened(browser, half_done) as seen:
        page = seen.page
        page.locator("#failures .group").get_by_role("button", name="Show these cases").click()
        page.locator("#found").get_by_text("1 of 4 cases", exact=True).wait_for()
        assert names_shown(page) == ["K3"]


def test_the_script_hides_and_rounds_as_its_maker_does(browser: Browser, half_done: Path) -> None:
    ends = [code for span in SPANS for code in (span[0] - 1, *span, span[1] + 1)]
    kinds = [0x07, 0x20, 0x41, 0xE9, 0x85, 0x200B, 0x202E, 0x2028, 0x2029, 0xE000, 0xFE0F, 0x1F600]
    codes = [*ends, *kinds]
    times = [None, 0.0, 0.0074, 0.5, 0.9994, 1.0, 7.034, 68.94, 99.96, 123.4, 1234.4]
    with opened(browser, half_done) as seen:
        found = seen.page.evaluate(
            "codes => codes.filter((code) => String.fromCodePoint(code).match(HIDDEN))", codes
        )
        assert found == [code for code in codes if is_hidden(chr(code))]
        shown = seen.page.evaluate("times => times.map(seconds)", times)
        assert shown == [words.seconds(time) for time in times]


def test_search_finds_ids_reasons_and_errors(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        search = seen.page.get_by_label("Search", exact=True)
        search.fill("k42")
        assert names_shown(seen.page) == ["K42"]
        search.fill("INVALID_REVIEW")
        assert names_shown(seen.page) == ["K3"]
        search.fill("out of luck")
        assert names_shown(seen.page) == ["K5"]


def test_every_column_sorts_both_ways_and_says_so(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        page.get_by_label("Rows", exact=True).select_option("100")
        orders = page.evaluate(SORT_BY_ALL)
        assert len(orders) == 11
        for first, second, rows in orders:
            assert {first, second} == {"ascending", "descending"}
            assert rows == CASES
        page.get_by_role("button", name="Case", exact=True).click()
        assert names_shown(page)[1:4] == ["K1", "K2", "K3"]
        page.get_by_role("button", name="Case", exact=True).click()
        assert names_shown(page)[0] == "K59"


def test_rows_without_a_score_come_last_either_way(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        page.get_by_label("Rows", exact=True).select_option("100")
        for _ in range(2):
            page.locator("#table .sort", has_text="Score").nth(1).click()
            assert set(names_shown(page)[-3:]) == {"K5", "K7", MARKUP}


def test_long_tables_come_in_pages(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        assert len(names_shown(page)) == 50
        page.locator("#next-page").click()
        assert len(names_shown(page)) == CASES - 50
        assert page.locator("#page").inner_text() == "Page 2 of 2"
        assert page.locator("#next-page").is_disabled()


def test_a_case_opens_and_closes_by_keyboard_alone(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
        page.get_by_label("Search", exact=True).focus()
        page.keyboard.type("invalid_review")
        page.locator("#table .sort").last.focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "K3"
        page.keyboard.press("Enter")
        page.wait_for_selector("#case-body .attempt")
        assert page.evaluate("document.activeElement.closest('dialog') !== null")
        page.keyboard.press("Escape")
        assert not page.locator("#case").is_visible()
        assert page.evaluate("document.activeElement.textContent") == "K3"


def test_a_link_opens_its_case_and_closing_takes_it_off(browser: Browser, report: Path) -> None:
    with opened(browser, report, "#case=K7") as seen:
        page = seen.page
        page.wait_for_selector("#case-body .attempt")
        assert page.locator("#case-title").inner_text().startswith("K7")
        page.get_by_role("button", name="Close").click()
        assert "#" not in page.url
        page.locator("#failures summary", has_text="invalid_review_yaml").click()
        page.locator("#failures .group a", has_text="K3").click()
        page.wait_for_selector("#case-body .attempt")
        assert page.url.endswith("#case=K3")


def test_an_error_is_found_in_the_raw_text(browser: Browser, report: Path) -> None:
    """The line is the raw answer's own; the mark is on the colon that YAML stopped at."""
    with opened(browser, report, "#case=K3") as seen:
        page = seen.page
        page.get_by_role("button", name="Go to the error of attempt 1 of baseline").click()
        line = page.locator(".blamed")
        assert line.locator(".text").inner_text() == "- FR001: two: views"
        assert line.locator("mark").inner_text() == ":"
        assert page.evaluate("document.activeElement.classList.contains('blamed')")
        assert page.evaluate("document.querySelector('#case').scrollTop") == 0
        said = page.locator(".attempt p", has_text="REVIEW, line 4, column 13")
        number = line.locator(".number").inner_text()
        assert said.inner_text().endswith(f"go to line {number}")


def test_blocks_stand_side_by_side_with_differences_marked(browser: Browser, report: Path) -> None:
    with opened(browser, report, "#case=K1") as seen:
        page = seen.page
        row = page.locator("table.diff tr", has_text="product_summary").first
        assert row.locator("td.changed").count() == 4
        assert "Short" in row.locator("mark").first.inner_text()
        same = page.locator("table.diff tr", has_text="product_name").first
        assert not same.locator("td.changed").count()
        only = page.locator("table.diff tr", has_text="- clubs").first
        assert only.locator("td.added").count() == 2
        points = page.locator(".overview tr", has_text="vision completeness")
        assert points.inner_text().split("\t")[1:] == ["24", "▲ 30"]


def test_what_a_model_wrote_stays_text(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        for name in (MARKUP, "K5"):
            open_case(page, name)
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            shown = page.locator("#case").inner_text()
            assert MARKUP in shown
            for code in ("U+202E", "U+2066", "U+200B", "U+0000", "U+FEFF", "U+E0041"):
                assert code in shown
            page.keyboard.press("Escape")
        assert page.evaluate("window.canary") is None
        assert page.locator("main :is(script, img), dialog :is(script, img)").count() == 0
        everything = page.evaluate(
            "[...document.querySelectorAll('main, dialog, header')].map(e => e.textContent).join()"
        )
        assert MARKUP in everything
        assert not set(everything) & set("\u202e\u2066\u200b\u0000\ufeff\U000e0041")
        assert not seen.elsewhere


def test_a_line_of_200_000_characters_is_folded_until_asked_for(
    browser: Browser, report: Path
) -> None:
    with opened(browser, report, "#case=K7") as seen:
        page = seen.page
        page.get_by_role("region", name="pupil").locator("summary").first.click()
        raw = page.get_by_role("region", name="Raw answer, attempt 1 of pupil")
        assert len(raw.inner_text()) < 2000
        raw.get_by_role("button", name="more characters").click()
        assert raw.inner_text().count("x") == LONG


def test_a_group_of_failures_leads_to_its_cases(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        page = seen.page
        group = page.locator("#failures .group", has_text="invalid_review_yaml")
        group.locator("summary").click()
        group.get_by_role("button", name="Show these cases").click()
        page.locator("#found").get_by_text("1 of 60 cases", exact=True).wait_for()
        assert names_shown(page) == ["K3"]


def test_the_theme_can_be_chosen(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        colours = []
        for _ in range(3):
            colours.append(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            seen.page.get_by_role("button", name="Theme").click()
        assert colours[0] == colours[1] != colours[2]


@pytest.mark.parametrize("kind", [LIGHT, DARK, PHONE], ids=["light", "dark", "phone"])
def test_nothing_serious_stands_between_a_reader_and_the_page(
    browser: Browser, report: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    """Checked by axe-core, closed and with a case open; the pictures are for human eyes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, report, **kind) as seen:
        page = seen.page
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        page.get_by_label("Rows", exact=True).select_option("25")
        found = [*axe.run(page, options=AXE).response["violations"]]
        open_case(page, "K3")
        page.screenshot(path=tmp_path / "case.png")
        found += axe.run(page, options=AXE).response["violations"]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    serious = [f for f in found if f["impact"] in ("serious", "critical")]
    assert not [(f["id"], [node["html"] for node in f["nodes"]][:3]) for f in serious]


@pytest.mark.parametrize("kind", [LIGHT, DARK, PHONE], ids=["light", "dark", "phone"])
def test_an_undecided_verdict_and_a_tie_can_be_read(
    browser: Browser, tmp_path: Path, kind: dict[str, Any]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    script = [{"concept_id": "*", "text": Answers().text()}]
    cases = {f"K{n}": "simple" for n in range(10)}
    made = make_run(tmp_path, cases, script, "--adapter", "twin", "--certify", "0.95")
    with opened(browser, write_html(open_run(made), tmp_path / "report.html"), **kind) as seen:
        page = seen.page
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert page.locator("article.undecided .word").count() == 2
        assert page.get_by_role("cell", name="tied with twin").is_visible()
        found = axe.run(page, options=AXE).response["violations"]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    serious = [f for f in found if f["impact"] in ("serious", "critical")]
    assert not [(f["id"], [node["html"] for node in f["nodes"]][:3]) for f in serious]


def test_2000_cases_render_quickly_in_little_memory_and_stay_usable(
    browser: Browser, tmp_path: Path
) -> None:
    """Processor time, start-up included: what it takes on a machine with nothing else to do."""
    answers = Answers()
    script: list[dict[str, object]] = [
        {"concept_id": "*", "arm": "baseline", "attempt": 1, "text": answers.bad()},
        {"concept_id": "*", "text": answers.text()},
    ]
    tiers = {f"K{n}": "simple" for n in range(1, 2001)}
    made = make_run(tmp_path, tiers, script, "--retries", "1")
    page_file = tmp_path / "big.html"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(made), str(page_file)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, gibibytes = map(float, done.stdout.split())
    assert seconds < 10
    assert gibibytes < 1
    with opened(browser, page_file) as seen:
        begin = time.monotonic()
        seen.page.get_by_label("Search", exact=True).fill("K1999")
        assert names_shown(seen.page) == ["K1999"]
        seen.page.get_by_role("button", name="K1999").click()
        seen.page.wait_for_selector("#case-body .attempt")
        assert time.monotonic() - begin < 10
