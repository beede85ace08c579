"""The end of a run for a terminal: which tables and lines it has. Computes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from vllm_eval.compare.verdict import WORDS
from vllm_eval.conclude.results import Finished
from vllm_eval.records import BASELINE, CONSTRAINED
from vllm_eval.report import tables
from vllm_eval.report.many import MANY, in_full
from vllm_eval.report.verdicts import result
from vllm_eval.text import plain

UNMEASURED = "repairs: not measured, because code that only a stored run names is never run\n"
"""The note of a run that was asked for repairs but cannot grade them."""


def run_tables(finished: Finished) -> Iterator[Table | Text]:
    """Scores, failures, costs, and each student's gate with its uncertainty.

    Of more than `MANY` students there is a row each, and only those `shown` are in full.
    """
    arms = {BASELINE, *shown(finished)}
    yield tables.arms_table(finished.comparison, arms)
    if finished.failures:
        yield from tables.failure_tables(finished.failures)
    yield from tables.cost_lines(finished.attempts, {*arms, *(arm + CONSTRAINED for arm in arms)})
    yield from _gates(finished, arms)
    if len(finished.ranking) > MANY:
        yield students_table(finished)
    elif len(finished.ranking) > 1:
        yield tables.ranking_table(finished.ranking)
    if finished.constrained.arms:
        yield from _constrained(finished, arms)
    if finished.repair["asked"]:
        measured = finished.repair["measured"]
        yield tables.repair_table(finished.repair) if measured else Text(UNMEASURED)


def _gates(finished: Finished, arms: set[str]) -> Iterator[Table | Text]:
    students = finished.comparison.students
    for verdict in finished.verdicts:
        if verdict.arm in arms:
            yield tables.gate_table(verdict)
            if verdict.arm in students:
                yield from tables.doubt_lines(verdict, students[verdict.arm])


def _constrained(finished: Finished, arms: set[str]) -> Iterator[Table | Text]:
    yield tables.constrained_table(finished.constrained, arms)
    for arm, paired in finished.constrained.students.items():
        if arm in arms:
            words = plain(f"constrained {arm} against the constrained baseline: ")
            ratio = tables.interval_words(paired.ratio)
            apart = tables.interval_words(paired.difference, "+.3f")
            yield Text(f"{words}ratio {ratio}, difference {apart}")


def shown(finished: Finished) -> list[str]:
    """The students that are shown in full: all, or of more than `MANY` the selected or best."""
    selected = finished.selected.arm if finished.selected else None
    return in_full([ranked.arm for ranked in finished.ranking], selected)


def counted(finished: Finished) -> str:
    """How many students have which verdict."""
    found = Counter[str](verdict.word for verdict in finished.verdicts)
    words = ", ".join(f"{found[word]} {word}" for word in WORDS if found[word])
    return f"{len(finished.verdicts)} students: {words}"


def students_table(finished: Finished) -> Table:
    """A row for each student, best first."""
    comparison, verdicts = finished.comparison, {v.arm: v for v in finished.verdicts}
    steps = {point.arm: point.step for curve in finished.curves for point in curve.points}
    numbers = ("mean (failures = 0)", "valid", "first try", "ratio")
    words = ("arm", *(("step",) if steps else ()), "verdict")
    level = f"{finished.ranking[0].mean_all.confidence:g}"
    title = f"{counted(finished)}. The best first, with intervals at {level}"
    table = tables.new_table(title, "rank", *words, right=numbers)
    table.add_column("first failing rule", overflow="fold")
    for ranked in finished.ranking:
        arm, summary = ranked.arm, comparison.arms[ranked.arm]
        paired, rules = comparison.students.get(arm), verdicts[arm].rules
        broken = (rule.name for rule in rules if result(asdict(rule))[0] != "PASS")
        step = steps.get(arm)
        table.add_row(
            f"{ranked.rank}{' tied' if ranked.tied else ''}",
            Text(plain(arm)),
            *((("" if step is None else f"{step:,}"),) if steps else ()),
            Text(ranked.word, tables.COLOURS[ranked.word]),
            tables.value_and_ends(ranked.mean_all),
            f"{summary.valid_rate:.0%}",
            f"{summary.first_valid_rate:.0%}",
            tables.number(paired.ratio.value if paired else None),
            Text(plain(next(broken, ""))),
        )
    (arm,) = shown(finished)
    table.caption = Text(plain(f"only {arm} is shown in full here; all are in the report"))
    table.caption_justify = "left"
    return table
