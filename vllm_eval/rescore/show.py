"""The terminal of `score` and `compare`: progress on standard error, tables on standard output."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from vllm_eval.compare.betting import chance
from vllm_eval.compare.certificate import Certificate
from vllm_eval.compare.selection import NONE_PASSES
from vllm_eval.compare.summary import Summary, as_repaired, summarise
from vllm_eval.compare.verdict import Verdict, Word, word_on
from vllm_eval.config.settings import Select
from vllm_eval.records import Progress
from vllm_eval.report.many import in_full
from vllm_eval.report.tables import (
    COLOURS,
    doubt_lines,
    gate_table,
    interval_words,
    new_table,
    number,
    rule_cells,
    selected_lines,
    verdict_lines,
)
from vllm_eval.report.terminal import PLAIN_INTERVAL_S, PLAIN_WIDTH, UnbreakableConsole, write_out
from vllm_eval.rescore.certify import certify_runs, select_of
from vllm_eval.rescore.compare import ArmPair, Compared, to_json
from vllm_eval.rescore.score import FileReport, Scored
from vllm_eval.text import plain

BAR_INTERVAL_S = 0.1
SCORES = ("mean", "std", "min", "max", "mean (failures = 0)")


class ScoreProgress:
    """The progress of scoring on standard error: a bar on a terminal, else lines.

    If standard output is `silent` but for JSON, notes are shown here too.
    """

    def __init__(self, *, silent: bool) -> None:
        self._says_notes = silent
        self._console = UnbreakableConsole(file=sys.stderr, highlight=False, emoji=False)
        self._bar: Bar | None = None
        self._last = time.monotonic()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """A note on the files."""
        if self._says_notes:
            _say(self._console, f"note: {text}", style="yellow")

    def progress(self, progress: Progress) -> None:
        """More answers have been graded."""
        done, total = progress.done, progress.total
        wait = BAR_INTERVAL_S if self._console.is_terminal else PLAIN_INTERVAL_S
        if done < total and time.monotonic() - self._last < wait:
            return
        self._last = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"  {done}/{total} answers graded", soft_wrap=True)
            return
        if self._bar is None:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar("{task.description}", *columns, console=self._console)
            self._bar.add_task("answers", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)


def show_scored(scored: Scored) -> None:
    """What changed in each file, the recorded and the new figures, and the verdicts."""
    console = _console()
    for report in scored.reports:
        _show_report(console, report)
        if scored.repair:
            _say(console, f"  {_repair_words(report)}")
    console.print(_numbers(scored))
    for note in scored.notes:
        _say(console, note)
    selected = scored.selected.arm if scored.selected else None
    full = in_full([one.arm for one in scored.ranking], selected)
    if scored.select == "best" and scored.verdicts:
        for line in selected_lines(scored.word, scored.selected):
            console.print(line, soft_wrap=True)
    for verdict in scored.verdicts:
        _show_verdict(console, scored, verdict, full=verdict.arm in full)
    if not scored.verdicts:
        words = "every recorded status and score is reproduced"
        style, no = ("bold green", "") if scored.passed else ("bold red", "not ")
        _say(console, no + words, style=style)


def show_row(row: Mapping[str, Any]) -> None:
    """One answer as one line of JSON, whatever characters are in it."""
    write_out(json.dumps(row) + "\n")


def show_compared(compared: Compared, *, as_json: bool) -> None:
    """How B differs from A, arm by arm."""
    if as_json:
        write_out(json.dumps(to_json(compared), indent=2) + "\n")
        return
    console = _console()
    _say(console, f"A  {compared.first}")
    _say(console, f"B  {compared.second}")
    for note in (*compared.looks, *compared.flags):
        _say(console, f"note: {note}", style="yellow")
    for pair in compared.pairs:
        _show_pair(console, pair)


def show_certificates(
    names: Sequence[str], output_dir: str, level: float, select: Select | None
) -> Word:
    """What the runs' evidence says of each student, and what of it was averaged and multiplied.

    Returns the word on them by `select`, or else by what the runs themselves were asked for.

    Raises:
        InputError: as for `certify_runs`.
    """
    console, certificates = _console(), certify_runs(names, output_dir, level)
    for one in certificates:
        verdict, sets = one.verdict, one.sets
        for some in sets:
            how = "averaged, because they share cases" if len(some) > 1 else "taken as it is"
            _say(console, f"{', '.join(some)}: {how}")
        if len(sets) > 1:
            _say(console, f"multiplied, because they share no case: all {len(sets)} of these")
        console.print(_evidence_table(one))
        for note in verdict.notes:
            _say(console, f"note: {note}", style="yellow")
        count = sum(map(len, sets))
        runs = f"{count} run{'s' * (count > 1)} and {one.cases:,} case{'s' * (one.cases > 1)}"
        p, style = chance(verdict.p_corrected), f"bold {COLOURS[verdict.word]}"
        _say(console, f"{verdict.word}  {verdict.arm} at {level:g}, over {runs}, {p}", style=style)
    wanted = select or select_of(names, output_dir)
    word = word_on([one.verdict for one in certificates], wanted)
    if wanted == "best":
        passing = [one.verdict.arm for one in certificates if one.verdict.passed]
        said = f"passing: {', '.join(passing)}" if passing else NONE_PASSES
        _say(console, f"{word}  {said}", style=f"bold {COLOURS[word]}")
    return word


def _evidence_table(one: Certificate) -> Table:
    right = ("value", "bound", "e-value for", "e-value against")
    table = new_table(f"Evidence for {one.verdict.arm}", "rule", right=right)
    table.add_column("")
    for rule in one.verdict.rules:
        found = rule.evidence
        wealth = [f"{e:.3g}" for e in (found.e_shown, found.e_refuted)] if found else ["", ""]
        word = Text(rule.state or "ok", "green") if rule.passed else Text(plain(rule.reason), "red")
        table.add_row(*rule_cells(rule), *wealth, word)
    return table


def _console() -> UnbreakableConsole:
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return UnbreakableConsole(highlight=False, emoji=False, width=width)


def _say(console: UnbreakableConsole, text: str, style: str = "") -> None:
    console.print(Text(plain(text), style=style), soft_wrap=True)


def _show_report(console: UnbreakableConsole, report: FileReport) -> None:
    _say(console, f"{report.path}  {report.arm}, {report.answers} answers", style="bold")
    failing, valid = sum(report.newly_failing.values()), sum(report.newly_valid.values())
    if not report.recorded_statuses:
        _say(console, "  no known status was recorded")
    elif not failing and not valid:
        _say(console, "  validity as recorded")
    if failing:
        counts = _counts(report.newly_failing)
        _say(console, f"  {failing} recorded as success now fail: {counts}", style="red")
    if valid:
        counts = _counts(report.newly_valid)
        _say(console, f"  {valid} recorded as failed now keep the contract; recorded as: {counts}")
    if report.not_gradable:
        words = "without a raw response, so not gradable and counted as no answer"
        _say(console, f"  {report.not_gradable} {words}", style="red" if report.lost else "")
    if report.new_reasons:
        _say(console, f"  fail for a different reason than recorded: {_counts(report.new_reasons)}")
    if report.reasons:
        _say(console, f"  all failures now: {_counts(report.reasons)}")
    _say(console, f"  {_score_words(report)}")
    if report.unusable_scores:
        words = "recorded scores are not numbers from 0 to 1, so not reproduced"
        _say(console, f"  {report.unusable_scores} {words}", style="red")
    for change in report.changes:
        message = f"  ({change.message})" if change.message else ""
        _say(console, f"    {change.concept_id}: {change.was} -> {change.now}{message}")


def _score_words(report: FileReport) -> str:
    if not report.scores_compared:
        return "no score was recorded"
    if not report.scores_changed:
        return f"scores: all {report.scores_compared} recorded scores reproduced to 1e-9"
    share = f"{report.scores_changed} of {report.scores_compared} recorded scores differ"
    return f"scores: {share}, by at most {report.max_difference:.6f}"


def _repair_words(report: FileReport) -> str:
    """How many failures a repair would fix; all other numbers count them as failures."""
    failed = [outcome for outcome in report.now if outcome.status == "format_error"]
    found = [outcome.repair for outcome in failed if outcome.repair]
    names = Counter(name for repair in found for name in repair.names)
    words = f"{len(found)} of {len(failed)} that break the contract keep it after a repair"
    return f"{words}: {_counts(names)}" if found else words


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered)


def _numbers(scored: Scored) -> Table:
    table = new_table("Recorded and now", "arm", "", right=("outcomes", "valid", *SCORES))
    for report in scored.reports:
        sides = [("recorded", report.recorded), ("now", report.now)]
        if scored.repair:
            sides.append(("repaired", [as_repaired(outcome) for outcome in report.now]))
        for word, outcomes in sides:
            if word == "recorded" and report.incomplete:
                continue
            summary = summarise(outcomes)
            valid = f"{summary.valid} ({summary.valid_rate:.1%})"
            first = (Text(plain(report.arm)), word, str(summary.total), valid)
            table.add_row(*first, *_scores(summary))
    return table


def _show_verdict(
    console: UnbreakableConsole, scored: Scored, verdict: Verdict, *, full: bool
) -> None:
    """The gate, how certain it is and the word; of a student not shown in `full`, only the word."""
    if full:
        console.print(gate_table(verdict))
    if full and scored.comparison is not None:
        for line in doubt_lines(verdict, scored.comparison.students[verdict.arm]):
            console.print(line, soft_wrap=True)
    recorded = {before.arm: before for before in scored.recorded_verdicts}.get(verdict.arm)
    if recorded is not None and recorded.word != verdict.word:
        _say(console, f"on the recorded results the gate says {recorded.word}", style="yellow")
    mended = {after.arm: after for after in scored.repaired_verdicts}.get(verdict.arm)
    if mended is not None:
        _say(console, f"with repaired answers counted as valid the gate would say {mended.word}")
    for line in itertools.islice(verdict_lines(verdict), None if full else 1):
        console.print(line, soft_wrap=True)


def _show_pair(console: UnbreakableConsole, pair: ArmPair) -> None:
    table = new_table("", "arm", right=("outcomes", "valid", "first try", *SCORES))
    for name, summary in pair.comparison.arms.items():
        shares = (f"{summary.valid_rate:.1%}", f"{summary.first_valid_rate:.1%}")
        table.add_row(Text(plain(name)), str(summary.total), *shares, *_scores(summary))
    console.print(table)
    found = pair.paired
    counts = f"B higher in {found.wins}, lower in {found.losses}, the same in {found.ties}"
    validity = f"{found.gained} cases gained, {found.lost} lost"
    for line in (
        f"over {found.pairs} cases valid in both: {counts}",
        f"  difference of means B - A   {interval_words(found.difference, '+.4f')}",
        f"  ratio of means B / A        {interval_words(found.ratio, '.4f')}",
        f"  the same, failures = 0      {interval_words(found.ratio_all, '.4f')}",
        f"  {found.scores.name}: {chance(found.scores.p)}",
        f"  validity: {validity}; {found.validity.name}: {chance(found.validity.p)}",
    ):
        _say(console, line)


def _scores(summary: Summary) -> list[str]:
    """The cells under `SCORES`."""
    numbers = (summary.mean, summary.std, summary.min, summary.max, summary.mean_all)
    return [number(value, ".4f") for value in numbers]
