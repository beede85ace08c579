"""Figures as tables and lines for a terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vllm_eval.compare.betting import chance
from vllm_eval.compare.intervals import Interval
from vllm_eval.compare.paired import Paired, Significance
from vllm_eval.compare.ranking import CORRECTION, Ranked
from vllm_eval.compare.selection import Selected
from vllm_eval.compare.summary import NO_TIER, Comparison, Summary
from vllm_eval.compare.verdict import Rule, Verdict
from vllm_eval.conclude.constrained import Constrained
from vllm_eval.conclude.timing import ArmAttempts
from vllm_eval.diagnose.survey import FailureGroup
from vllm_eval.report.verdicts import beside, on_these_cases, result, selected_words
from vllm_eval.report.words import NO_END
from vllm_eval.text import plain

_T = TypeVar("_T")
CALLED = {"holds": "ok", "fails": "FAIL"}
"""Results of a rule that have another name here, so that a FAIL is seen."""
COLOURS = {"PASS": "green", "FAIL": "red", "UNDECIDED": "yellow"}
MAX_FAILURES = 5
"""Kinds of failure shown; `comparison.json` has all of them."""


def arms_table(comparison: Comparison, arms: Collection[str]) -> Table:
    """The scores of these arms, and of each by tier."""
    several = any(summary.total > summary.cases for summary in comparison.arms.values())
    columns = ["cases", "valid", "first try", "mean", "std"]
    columns += [*(["within", "between"] if several else ()), "min", "max", "mean (failures = 0)"]
    title = "Scores, several answers per case" if several else "Scores"
    table = new_table(title, "arm", "tier", right=columns)
    for arm, summary in _only(comparison.arms, arms):
        table.add_row(Text(plain(arm)), "all", *_summary_cells(summary, several=several))
        tiers = comparison.tiers[arm]
        for tier, part in tiers.items() if set(tiers) != {NO_TIER} else ():
            table.add_row("", Text(plain(tier)), *_summary_cells(part, several=several))
    return table


def _summary_cells(summary: Summary, *, several: bool) -> list[str]:
    rates = [f"{summary.valid_rate:.0%}", f"{summary.first_valid_rate:.0%}"]
    counts = summary.valid, summary.first_valid
    counted = [f"{count} ({rate})" for count, rate in zip(counts, rates, strict=True)]
    spreads = [number(summary.within_std), number(summary.between_std)]
    means = [number(summary.mean), number(summary.std), *(spreads if several else [])]
    ends = map(number, (summary.min, summary.max, summary.mean_all))
    return [str(summary.cases), *(rates if several else counted), *means, *ends]


def gate_table(verdict: Verdict) -> Table:
    """Every rule with its number, threshold and margin."""
    table = new_table(f"Gate for {plain(verdict.arm)}", "rule", right=("value", "bound", "margin"))
    table.add_column("")
    for rule in verdict.rules:
        word, called, why = result(asdict(rule))
        said = ": ".join(filter(None, (CALLED.get(called, called), plain(why))))
        table.add_row(*rule_cells(rule), number(rule.margin, "+.3f"), Text(said, COLOURS[word]))
    return table


def rule_cells(rule: Rule) -> tuple[Text, str, str]:
    """A rule's name, value and bound."""
    sign = "≥" if rule.bound == "at least" else "≤"
    return Text(plain(rule.name)), number(rule.value), f"{sign} {rule.threshold:.3f}"


def selected_lines(word: str, selected: Selected | None) -> Iterator[Text]:
    """The word on the best student, and which one that is."""
    first, *rest = selected_words(word, selected)
    yield Text(plain(first), f"bold {COLOURS[word]}")
    yield from (Text(plain(line)) for line in rest)


def verdict_lines(verdict: Verdict, note: str = "") -> Iterator[Text]:
    """The word, and what a reader must know beside it."""
    yield Text(f"{verdict.word}  {plain(verdict.arm)}{note}", f"bold {COLOURS[verdict.word]}")
    yield from (Text(f"  {plain(line)}") for line in beside(asdict(verdict)))


def repair_table(repair: Mapping[str, Any]) -> Table:
    """Each arm's figures with repaired answers counted as valid."""
    columns = ("repaired", "valid", "mean", "mean (failures = 0)")
    table = new_table("With repairs (not counted above)", "arm", right=columns)
    table.add_column("by")
    table.add_column("gate")
    words = {verdict["arm"]: str(verdict["verdict"]) for verdict in repair["verdicts"]}
    for arm, found in repair["arms"].items():
        summary = found["summary"]
        valid = f"{summary['valid']} ({summary['valid_rate']:.0%})"
        means = (number(summary["mean"]), number(summary["mean_all"]))
        by = ", ".join(f"{name} {count}" for name, count in found["by_repair"].items()) or "-"
        cells = (str(found["repaired"]), valid, *means, by, words.get(arm, "-"))
        table.add_row(Text(plain(arm)), *cells)
    return table


def constrained_table(constrained: Constrained, arms: Collection[str]) -> Table:
    """The free and constrained answers of these arms."""
    columns = ["valid", "first try", "mean", "mean (failures = 0)", "truncated", "tokens"]
    title = "With constrained decoding (outside the verdict)"
    table = new_table(title, "arm", "answers", right=[*columns, "difference"])
    for arm, variant in _only(constrained.arms, arms):
        apart = variant.paired.difference.value
        for way, side in (("free", variant.free), ("constrained", variant.constrained)):
            first, rest = way == "free", side.summary
            valid = f"{rest.valid} ({rest.valid_rate:.0%})"
            tried = f"{rest.first_valid} ({rest.first_valid_rate:.0%})"
            means = (number(rest.mean), number(rest.mean_all))
            tokens = number(side.tokens_per_attempt, ".0f")
            difference = "" if first else number(apart, "+.3f")
            cells = (way, valid, tried, *means, str(side.truncated), tokens, difference)
            table.add_row(Text(plain(arm) if first else ""), *cells)
    return table


def doubt_lines(verdict: Verdict, paired: Paired) -> Iterator[Text]:
    """How certain the comparison behind a verdict is."""
    yield Text(
        f"over {paired.pairs} pairs: ratio {interval_words(paired.ratio)}, "
        f"difference {interval_words(paired.difference, '+.3f')}"
    )
    yield Text(
        f"{paired.wins} higher, {paired.losses} lower, {paired.ties} tied, {_p(paired.scores)}; "
        f"validity {paired.gained} gained, {paired.lost} lost, {_p(paired.validity)}"
    )
    if said := on_these_cases(asdict(verdict)):
        yield Text(said)


def timing_lines(timing: Mapping[str, Any]) -> Iterator[str]:
    """Where a run's time went, with memory and latencies if known."""
    memory = (("host memory", "peak_host_mib"), ("device memory, all processes", "peak_device_mib"))
    times = (("engine start", "engine_load_s"), ("grading", "grading_s"), ("all", "total_s"))
    spent = [f"{name} {timing[key]:.1f} s" for name, key in times if timing[key] is not None]
    most = [f"{timing[key] / 1024:.1f} GiB of {where}" for where, key in memory if timing[key]]
    rate = f"{timing['output_tokens_per_s']:.0f} output tokens/s"
    parts = [f"generation {timing['generation_s']:.1f} s ({rate})", *spent]
    yield ", ".join([*parts, *([f"at most {', '.join(most)}"] if most else [])])
    latencies = (("first token", "ttft"), ("between tokens", "itl"), ("whole answer", "e2e"))
    timed = [(name, timing["all"][key]) for name, key in latencies if timing["all"][key]]
    if timed:
        seconds = (f"{name} {of['p50']:.3g} / {of['p90']:.3g} s" for name, of in timed)
        yield f"latency, median / 90th percentile: {', '.join(seconds)}"


def failure_tables(failures: Sequence[FailureGroup]) -> Iterator[Table | Text]:
    """The most frequent kinds of failure, and the place of one of them."""
    table = new_table("Failures", "reason", "arm", "tier", right=("attempts", "final", "truncated"))
    table.columns[0].no_wrap = True
    table.add_column("first example", overflow="fold")
    for group in failures[:MAX_FAILURES]:
        table.add_row(
            *(Text(plain(text)) for text in (group.reason, group.arm, group.tier or NO_TIER)),
            *(str(count) for count in (group.attempts, group.outcomes, group.truncated)),
            Text(place_of(asdict(group.examples[0]))),
        )
    yield table
    if (left := len(failures) - MAX_FAILURES) > 0:
        yield Text(f"  and {left} more kind{'s' * (left != 1)} in comparison.json")
    firsts = (group.examples[0] for group in failures[:MAX_FAILURES])
    if example := next((first for first in firsts if first.line is not None), None):
        yield Text(f"  {plain(example.concept_id)}: {plain(example.message or '')}")
        yield from (Text(f"  {plain(line)}", style="dim") for line in example.excerpt)


def place_of(example: Mapping[str, Any]) -> str:
    """Case, block, line and key of an example, as far as they are known."""
    line = None if example["line"] is None else f"{example['line']}:{example['column']}"
    parts = (example["concept_id"], example["block"], line, example["key"])
    return plain(" ".join(part for part in parts if part))


def cost_lines(costs: Mapping[str, ArmAttempts], arms: Collection[str]) -> Iterator[Text]:
    """What retries brought these arms, and what they took."""
    for arm, attempts in _only(costs, arms):
        steps = ", ".join(f"{row.valid_by_then:.0%}" for row in attempts.by_attempt)
        retries, share = attempts.retries, 0.0
        if attempts.all.output_tokens:
            share = retries.output_tokens / attempts.all.output_tokens
        yield Text(
            f"{plain(arm)}: valid after each attempt {steps}; {retries.attempts} retries took "
            f"{retries.output_tokens:,} output tokens ({share:.0%}) and {retries.seconds:.1f} s"
        )


def _only(found: Mapping[str, _T], arms: Collection[str]) -> Iterator[tuple[str, _T]]:
    """What there is of these arms."""
    return ((arm, one) for arm, one in found.items() if arm in arms)


def ranking_table(ranking: Sequence[Ranked]) -> Table:
    """The students, best first, each with its lead over the next."""
    numbers = ("mean (failures = 0)", "ahead of the next", f"p ({CORRECTION})")
    title = f"Students, best first, with intervals at {ranking[0].mean_all.confidence:g}"
    table = new_table(title, "rank", "arm", "verdict", right=numbers)
    table.add_column("")
    for ranked, following in zip(ranking, (*ranking[1:], None), strict=True):
        ahead = value_and_ends(ranked.ahead, "+.3f") if ranked.ahead else ""
        p = "" if ranked.p_next is None else chance(ranked.p_next)
        words = (str(ranked.rank), Text(plain(ranked.arm)), Text(ranked.word, COLOURS[ranked.word]))
        tie = Text(f"tied with {plain(following.arm)}") if following and ranked.tied else ""
        table.add_row(*words, value_and_ends(ranked.mean_all), ahead, p, tie)
    return table


def interval_words(interval: Interval, form: str = ".3f") -> str:
    """The value of an interval with its ends, confidence and method."""
    if interval.value is None:
        return f"unknown ({interval.reason})"
    return f"{value_and_ends(interval, form)} ({interval.confidence:g}, {interval.method})"


def value_and_ends(interval: Interval, form: str = ".3f") -> str:
    """The value of an interval with its ends, of which the upper one may be missing."""
    high = NO_END if interval.high is None else f"{interval.high:{form}}]"
    return f"{number(interval.value, form)} [{number(interval.low, form)}, {high}"


def _p(test: Significance) -> str:
    return f"{chance(test.p)} ({test.name})"


def new_table(title: str, *left: str, right: tuple[str, ...] | list[str]) -> Table:
    """An empty table in the common style; columns of words first, then columns of numbers."""
    table = Table(title=Text(plain(title)), title_justify="left", box=SIMPLE)
    for column in left:
        table.add_column(column, overflow="fold")  # a name is never shortened
    for column in right:
        header = column.replace(" (", "\n(")
        table.add_column(header, justify="right", no_wrap=True)
    return table


def number(value: float | None, form: str = ".3f") -> str:
    """A number in the format `form`, or a dash."""
    return "-" if value is None else f"{value:{form}}"
