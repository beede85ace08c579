"""Error rates, power and the price of a verdict, for students whose true ratio is known.

Scores come from `outcome_models`. Whatever decides is the product's own: claims, wealth, intervals
and rules are those of `vllm_eval.compare`, for many runs at a time where they take arrays.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from scripts.outcome_models import MODELS, Model, Scores, arms_of, deal
from vllm_eval.compare.betting import bets, log_wealth
from vllm_eval.compare.claims import Table, make_claims
from vllm_eval.compare.intervals import make_interval
from vllm_eval.compare.rules import RatioAmong, make_rules
from vllm_eval.compare.summary import Summary, compare_arms
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE, Outcome

LEVEL = 0.95
PLAIN, CONFIDENT, CERTIFY = GateConfig(), GateConfig(confidence=LEVEL), GateConfig(certify=LEVEL)
CERTIFIED = f"--certify {LEVEL:g}"
MODES = {"Default gate": PLAIN, f"--confidence {LEVEL:g}": CONFIDENT, CERTIFIED: CERTIFY}
STUDENT = "student"
NEVER = 10**9
CAP = 600
"""Most cases of a run until settled."""
CHUNK = 500_000
"""Cases dealt at once."""
NAMED = {model.name: model for model in MODELS}
COUNTS = (10, 20, 34, 50, 200)
SETUPS = tuple(product((1, 3), (None, 2)))
"""Samples per case, and retries."""
POWER = (
    ("noise", 1.00, (34, 50, 100)),
    ("rare zeros", 0.95, (200,)),
    ("rare failures", 0.95, (200,)),
)
RATIOS = (0.80, 0.85, 0.88, 0.90, 0.95, 1.00, 1.05)
BOUGHT = (20, 34, 50, 100, 200)
SHOWN = {
    "noise": ("noise", None),
    "noise, 4 % of answers fail": ("noise", 2),
    "rare failures": ("rare failures", None),
}
"""Scores and retries for which it is shown what a number of cases buys."""
TEMPLATE = compare_arms(
    [Outcome(arm, "case", None, 0, "success", None, 1.0, 1, True) for arm in (BASELINE, STUDENT)],
    (BASELINE, STUDENT),
    confidence=LEVEL,
)


@dataclass(frozen=True)
class Sheet:
    """A table to print."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    model: Model
    ratio: float
    """The true one."""
    cases: int
    samples: int = 1
    """Of each case."""
    retries: int | None = None
    """None: every first attempt is valid, but for the model's bad answers."""


@dataclass(frozen=True)
class Verdicts:
    """Of many runs; arrays of runs."""

    passed: Any
    failed: Any
    cases: Any
    """Cases used."""
    ratio_shown: Any
    """Whether the rule on the ratio was shown, whatever the others say."""

    @property
    def words(self) -> tuple[Any, Any, Any]:
        """PASS, FAIL and UNDECIDED."""
        return self.passed, self.failed, ~(self.passed | self.failed)


def simulate(setting: Setting, runs: int) -> Iterator[tuple[Scores, Scores]]:
    """Base and student, some runs at a time; the same ones for the same arguments."""
    arms = arms_of(setting.model, setting.ratio, setting.retries)
    seed = [round(1000 * setting.ratio), setting.cases, setting.samples, setting.retries or 0]
    random = np.random.default_rng(seed)
    batch = max(1, CHUNK // (setting.cases * setting.samples))
    for start in range(0, runs, batch):
        size = min(batch, runs - start)
        base, student = deal(arms, size, setting.cases, setting.samples, random)
        yield base, student


def together(
    setting: Setting, runs: int, gate: GateConfig = CERTIFY, *, settle: bool = False
) -> Verdicts:
    """The verdicts on all runs."""
    dealt = simulate(setting, runs)
    parts = [
        certify(*arms, settle=settle) if gate.certify else grade(*arms, gate) for arms in dealt
    ]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Verdicts))
    return Verdicts(*map(np.concatenate, columns))


def grade(base: Scores, student: Scores, gate: GateConfig) -> Verdicts:
    """PASS or FAIL by the numbers of all cases."""
    runs, count = base.share.shape
    passed = np.array([keeps_rules(base, student, run, count, gate) for run in range(runs)])
    return Verdicts(passed, ~passed, np.full(runs, count), passed)


def certify(base: Scores, student: Scores, *, settle: bool = False) -> Verdicts:
    """PASS, FAIL or neither at `LEVEL`; with `settle`, at the first case that decides."""
    runs, count = base.share.shape
    shown, refuted = reached(base, student)
    every, first = np.max(list(shown.values()), axis=0), np.min(list(refuted.values()), axis=0)
    passed, failed = every <= count, first <= count
    used = np.minimum(np.minimum(every, first), count) if settle else np.full(runs, count)
    for run in np.flatnonzero(passed).tolist():
        while used[run] < count and not keeps_rules(base, student, run, int(used[run])):
            used[run] += 1
        passed[run] = keeps_rules(base, student, run, int(used[run]))
    return Verdicts(passed, failed, used, shown["ratio", "student"] <= count)


def reached(base: Scores, student: Scores) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """By rule, after how many cases it was shown or refuted, whichever was first, or `NEVER`."""
    mine, theirs = (Table(arm.score_all, arm.share) for arm in (student, base))
    shares, level = bets(base.share.shape[1], LEVEL), -math.log(1 - LEVEL)
    shown, refuted = {}, {}
    for key, (claim,) in make_claims(mine, theirs, CERTIFY).items():
        hits = (log_wealth(one, shares) >= level for one in (claim, claim.opposite))
        yes, no = (np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, NEVER) for hit in hits)
        shown[key], refuted[key] = np.where(yes < no, yes, NEVER), np.where(no < yes, no, NEVER)
    return shown, refuted


def keeps_rules(
    base: Scores, student: Scores, run: int, cases: int, gate: GateConfig = PLAIN
) -> bool:
    """Whether the rules hold by the numbers of the first cases of a run."""
    one, other = (summary_of(arm, run, cases) for arm in (base, student))
    ratio = None
    if gate.confidence is not None and keeps_rules(base, student, run, cases):  # takes longer
        pairs = [arm.score[run, :cases] for arm in (student, base)]
        both = ~np.isnan(pairs[0] + pairs[1])
        found = make_interval(pairs[0][both], pairs[1][both], "ratio", gate.confidence)
        ratio = RatioAmong(found)
    elif gate.confidence is not None:
        return False
    return all(rule.passed for rule in make_rules(gate, STUDENT, one, other, ratio=ratio))


def summary_of(arm: Scores, run: int, cases: int) -> Summary:
    share = arm.share[run, :cases]
    score = arm.score[run, :cases][share > 0]
    return replace(
        TEMPLATE.arms[BASELINE],
        total=cases,
        valid_rate=float(share.mean()),
        mean=float(score.mean()) if len(score) else None,
        mean_all=float(arm.score_all[run, :cases].mean()),
    )


def errors(runs: int) -> Iterator[Sheet]:
    """How often a student at the bound passes."""
    rows, alone = [], []
    for model in MODELS:
        worst = []
        for cases in COUNTS:
            found = [together(Setting(model, 0.90, cases, *setup), runs) for setup in SETUPS]
            worst.append([max(v.passed.mean() for v in found)])
            worst[-1].append(max(v.ratio_shown.mean() for v in found))
        rows.append([model.name, *(percent(passed) for passed, _ in worst)])
        alone.append([model.name, *(percent(shown) for _, shown in worst)])
    about = f"at a true ratio of 0.90, the worst of 1 or 3 samples, 0 or 2 retries ({runs} runs)"
    header = ["scores \\ cases", *map(str, COUNTS)]
    yield Sheet(f"False PASS in %, {CERTIFIED}, {about}", header, rows)
    yield Sheet(f"The ratio alone is shown in %, {CERTIFIED}, {about}", header, alone)


def power(runs: int) -> Iterator[Sheet]:
    """How often a good student passes."""
    rows = []
    for name, ratio, counts in POWER:
        for cases in counts:
            found = together(Setting(NAMED[name], ratio, cases), runs)
            rows.append([name, f"{ratio:.2f}", str(cases), *map(percent, found.words)])
    header = ["scores", "true ratio", "cases", "PASS", "FAIL", "UNDECIDED"]
    yield Sheet(f"{CERTIFIED}, in %", header, rows)


def settling(runs: int) -> Iterator[Sheet]:
    """What stopping as soon as the verdict is settled does to its errors, and what it saves."""
    rows = []
    for ratio, retries, model in product((0.90, 1.00), (None, 2), MODELS):
        found = together(Setting(model, ratio, CAP, 1, retries), runs, settle=True)
        row = [model.name, f"{ratio:.2f}", str(retries or 0), *map(percent, found.words)]
        rows.append([*row, f"{found.cases.mean():.0f}", f"{np.quantile(found.cases, 0.9):.0f}"])
    header = ["scores", "true ratio", "retries", "PASS", "FAIL", "UNDECIDED"]
    header += ["cases on average", "in 9 of 10 runs at most"]
    yield Sheet(f"--until-settled, {CERTIFIED}, at most {CAP} cases, in %", header, rows)


def intervals(runs: int) -> Iterator[Sheet]:
    """How often an interval's lower end is not above the true ratio."""
    rows = []
    for model in MODELS:
        row = [model.name]
        for cases in COUNTS:
            lows = [
                make_interval(mine, theirs, "ratio", LEVEL).low
                for base, student in simulate(Setting(model, 0.90, cases), runs)
                for mine, theirs in zip(student.score_all, base.score_all, strict=True)
            ]
            row.append(percent([low is None or low <= 0.90 for low in lows]))
        rows.append(row)
    title = f"The lower end at {LEVEL:g} is not above the true ratio of 0.90, in %"
    yield Sheet(title, ["scores \\ cases", *map(str, COUNTS)], rows)


def buys(runs: int) -> Iterator[Sheet]:
    """What a number of cases buys."""
    for (about, (name, retries)), (mode, gate) in product(SHOWN.items(), MODES.items()):
        words = 3 if gate.certify else 2
        rows = []
        for ratio in RATIOS:
            settings = (Setting(NAMED[name], ratio, cases, 1, retries) for cases in BOUGHT)
            found = (together(setting, runs, gate).words[:words] for setting in settings)
            cells = (" / ".join(f"{100 * word.mean():.0f}" for word in one) for one in found)
            rows.append([f"{ratio:.2f}", *cells])
        title = f"{mode}, {about}: {' / '.join(('PASS', 'FAIL', 'UNDECIDED')[:words])} in %"
        yield Sheet(title, ["true ratio \\ cases", *map(str, BOUGHT)], rows)


def percent(share: Any) -> str:
    return f"{100 * np.mean(share):.1f}"


def show(sheet: Sheet, console: Console, *, markdown: bool) -> None:
    if markdown:
        rule = ["---", *["---:"] * (len(sheet.header) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (sheet.header, rule, *sheet.rows)]
        print(f"**{sheet.title}**\n", *lines, "", sep="\n")
        return
    grid = Grid(title=sheet.title, title_justify="left")
    for number, name in enumerate(sheet.header):
        grid.add_column(name, justify="right" if number else "left")
    for row in sheet.rows:
        grid.add_row(*row)
    console.print(grid)


PARTS: dict[str, Callable[[int], Iterator[Sheet]]] = {
    "errors": errors,
    "power": power,
    "settled": settling,
    "intervals": intervals,
    "buys": buys,
}


def main() -> None:
    from scripts.simulate_selection import PARTS as SEVERAL

    parts = PARTS | SEVERAL
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; or all")
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    console = Console(width=120)
    for name in given.parts or parts:
        start = time.monotonic()
        for sheet in parts[name](given.runs):
            show(sheet, console, markdown=given.markdown)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
