"""Latencies, tokens and throughput of a run, on attempts made here; and what a run records."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.attempts import attempt, failed, surveyed
from vllm_eval.conclude.timing import MOST_BINS, percentiles, take_timing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Answers, Bench


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles([float(n) for n in range(100, 0, -1)])
    assert found is not None
    assert (found.p50, found.p90, found.p99) == (50.0, 90.0, 99.0)


def test_one_value_is_all_its_percentiles() -> None:
    found = percentiles([3.0])
    assert found is not None
    assert (found.p50, found.p90, found.p99) == (3.0, 3.0, 3.0)


def test_nothing_has_no_percentiles() -> None:
    assert percentiles([]) is None


def test_inter_token_latency_is_the_decode_time_over_the_tokens_after_the_first() -> None:
    timing = take_timing(
        surveyed([attempt(output_tokens=11, ttft_s=1.0, total_s=3.0, finished_at=3.0)])
    )
    assert timing.all.itl is not None
    assert timing.all.itl.p50 == pytest.approx(0.2)


def test_an_answer_of_one_token_has_no_inter_token_latency() -> None:
    timing = take_timing(
        surveyed([attempt(output_tokens=1, ttft_s=1.0, total_s=1.0, finished_at=1.0)])
    )
    assert timing.all.itl is None
    assert timing.all.ttft is not None


def test_arms_are_timed_apart_and_together() -> None:
    rows = [
        attempt(arm="baseline", ttft_s=1.0, total_s=2.0, prompt_tokens=5, cached_tokens=4),
        attempt(arm="pupil", ttft_s=3.0, total_s=4.0, prompt_tokens=7),
    ]
    timing = take_timing(surveyed(rows))
    assert timing.arms["baseline"].ttft is not None
    assert timing.arms["pupil"].ttft is not None
    assert (timing.arms["baseline"].ttft.p99, timing.arms["pupil"].ttft.p99) == (1.0, 3.0)
    assert (timing.all.prompt_tokens, timing.all.cached_tokens) == (12, 4)


def test_retries_and_their_tokens_are_counted() -> None:
    timing = take_timing(surveyed([failed(output_tokens=7), attempt(number=2, output_tokens=9)]))
    assert (timing.all.retry_attempts, timing.all.retry_output_tokens) == (1, 9)


def test_an_attempt_that_never_reached_the_engine_counts_but_is_not_timed() -> None:
    refused = attempt(status="error", total_s=0.0, output_tokens=0)
    timing = take_timing(surveyed([refused]))
    assert timing.all.attempts == 1
    assert timing.all.e2e is None
    assert timing.over_time.output_tokens_per_s == ()


def test_tokens_are_spread_from_the_first_to_the_last() -> None:
    rows = [
        attempt(output_tokens=100, ttft_s=0.0, total_s=10.0, finished_at=10.0),
        attempt(output_tokens=20, ttft_s=0.0, total_s=2.0, finished_at=7.0),
    ]
    over = take_timing(surveyed(rows)).over_time
    assert over.width_s == 5.0
    assert over.output_tokens_per_s == pytest.approx((10.0, 14.0))
    assert over.requests_per_s == pytest.approx((0.0, 0.4))


def test_no_token_is_lost_over_time() -> None:
    rows = [
        attempt(output_tokens=n, ttft_s=0.3, total_s=n / 7, finished_at=n / 3)
        for n in range(5, 300)
    ]
    over = take_timing(surveyed(rows)).over_time
    assert len(over.output_tokens_per_s) == MOST_BINS
    assert sum(over.output_tokens_per_s) * over.width_s == pytest.approx(sum(range(5, 300)))
    assert sum(over.requests_per_s) * over.width_s == pytest.approx(295)


def test_a_run_records_where_its_time_went(bench: Bench, answers: Answers) -> None:
    bench.dataset(3)
    bench.answers(
        {"text": answers.text(), "seconds": 0.02},
        {"concept_id": "K1", "arm": "pupil", "attempt": 1, "text": answers.bad(), "seconds": 0.02},
    )
    timing = json.loads((bench.run().folder / "comparison.json").read_text("utf-8"))["timing"]
    assert timing["engine_load_s"] <= timing["total_s"]
    assert 0 < timing["grading_s"] < timing["generation_s"]
    assert timing["peak_host_mib"] > 0
    assert timing["all"]["attempts"] == timing["attempts"] == 7
    assert timing["arms"]["pupil"]["retry_attempts"] == 1
    assert timing["arms"]["pupil"]["e2e"]["p50"] >= 0.02
    assert timing["output_tokens"] == timing["all"]["output_tokens"]


def read_timing(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "comparison.json").read_text("utf-8"))["timing"]
    return loaded


def test_a_finished_run_that_is_resumed_keeps_its_times(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text(), "seconds": 0.02})
    folder = bench.run().folder
    before = read_timing(folder)
    bench.call("--resume", str(folder))
    assert read_timing(folder) == before


def test_the_times_of_all_sessions_are_added_up(bench: Bench, answers: Answers) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text(), "seconds": 0.02})
    folder = bench.run().folder
    before = read_timing(folder)
    journal = folder / "attempts.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    bench.call("--resume", str(folder))
    after = read_timing(folder)
    assert (before["sessions"], after["sessions"]) == (1, 2)
    assert after["total_s"] > before["total_s"]
    assert after["peak_host_mib"] >= before["peak_host_mib"]
    assert after["first_answer_s"] == pytest.approx(before["first_answer_s"])


def test_a_report_that_cannot_be_written_does_not_take_the_verdict_with_it(
    bench: Bench, answers: Answers
) -> None:
    bench.dataset(2)
    bench.answers({"text": answers.text()})
    folder = bench.run().folder
    (folder / "report.html").mkdir()
    run = bench.call("--resume", str(folder), "--report")
    assert run.code == 0
    assert "the report was not written" in run.out
    assert "PASS  pupil" in run.out
