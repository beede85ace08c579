"""What happens when one of several students is to ship: wrong verdicts, and what ties cost.

Scores come from `outcome_models`; the product's own code decides on them, as in `simulate_gate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scripts.outcome_models import MODELS, Model, Scores, arms_of, deal
from scripts.simulate_gate import CERTIFY, LEVEL, MODES, NAMED, Sheet, keeps_rules, percent, reached
from vllm_eval.compare.betting import bets, log_wealth, p_values, ratio_claim
from vllm_eval.compare.cases import CaseScore
from vllm_eval.compare.claims import Table, make_claims
from vllm_eval.compare.intervals import Interval
from vllm_eval.compare.paired import holm
from vllm_eval.compare.ranking import Ranked
from vllm_eval.compare.rules import level_among
from vllm_eval.compare.selection import Origin, select
from vllm_eval.compare.summary import Comparison
from vllm_eval.compare.verdict import Verdict
from vllm_eval.config.settings import GateConfig

STUDENTS = (1, 2, 8)
BOUND = 0.90
COUNTS = (50, 200)
CHUNK = 500_000
"""Cases dealt at once."""
CURVES = {
    "all equal": (1.0,) * 8,
    "rising, then level": (0.93, 0.96, 0.98, 1.0, 1.0, 1.0, 1.0, 1.0),
    "rising to the end": (0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0),
}
"""True ratios of eight checkpoints, in the order of their steps."""
OF_BEST, OF_CHOICE = 5, 125
"""For every so many runs of other parts there is one of these, which take longer."""


@dataclass(frozen=True)
class Looked:
    """What is seen of each student alone; arrays of runs by students."""

    held: Any
    """Whether it keeps the rules by its numbers."""
    shown: Any
    """Whether the evidence shows every rule for it alone."""
    p: Any
    """That of its weakest rule."""


def together(
    model: Model, ratios: Sequence[float], cases: int, runs: int
) -> Iterator[tuple[Scores, ...]]:
    """The base and a student for each of the true `ratios`, over the same cases."""
    base, _ = arms_of(model, ratios[0])
    arms = [base, *(arms_of(model, ratio)[1] for ratio in ratios)]
    random = np.random.default_rng([cases, len(ratios)])
    batch = max(1, CHUNK // (cases * len(arms)))
    for start in range(0, runs, batch):
        yield deal(arms, min(batch, runs - start), cases, 1, random)


def look(arms: Sequence[Scores]) -> Looked:
    """Grade each student alone; the base comes first."""
    base, *students = arms
    runs, cases = base.share.shape
    shares, held, shown, p = bets(cases, LEVEL), [], [], []
    for one in students:
        held.append([keeps_rules(base, one, run, cases) for run in range(runs)])
        firsts, _ = reached(base, one)
        shown.append(np.max(list(firsts.values()), axis=0) <= cases)
        mine, theirs = (Table(arm.score_all, arm.share) for arm in (one, base))
        claims = make_claims(mine, theirs, CERTIFY).values()
        ends = [p_values(log_wealth(claim, shares))[:, -1] for (claim,) in claims]
        p.append(np.max(ends, axis=0))
    return Looked(*(np.array(side).T for side in (held, shown, p)))


def passing(arms: Sequence[Scores], looked: Looked, gate: GateConfig, students: int) -> Any:
    """Which of the first `students`, graded together, pass: array of runs by students."""
    base, *others = arms
    some = slice(students)
    held = looked.held[:, some]
    if gate.certify is not None:
        corrected = np.array([holm(row) for row in looked.p[:, some].tolist()])
        return held & looked.shown[:, some] & (corrected <= 1 - LEVEL)
    if gate.confidence is not None:
        return held & _low_enough(base, others[some], level_among(gate.confidence, students))
    return held


def _low_enough(base: Scores, students: Sequence[Scores], level: float) -> Any:
    """Whose interval of the ratio begins at the bound, or above; all answers are valid."""
    alpha = (1 - level) / 2
    shares = bets(base.share.shape[1], 1 - alpha)
    ends = [
        log_wealth(ratio_claim(one.score_all, base.score_all, BOUND), shares)[:, -1]
        for one in students
    ]
    return -math.log(alpha) <= np.array(ends).T


def best(runs: int) -> Iterator[Sheet]:
    """How often any of several students at the bound passes, which is a PASS with --select best."""
    runs = max(1, runs // OF_BEST)
    models = [model for model in MODELS if not model.bad_fails]
    keys = [(name, count) for name in MODES for count in STUDENTS]
    worst: dict[tuple[str, int, int], float] = {}
    for cases, model in product(COUNTS, models):
        wrong: dict[tuple[str, int], list[Any]] = {key: [] for key in keys}
        for arms in together(model, (BOUND,) * max(STUDENTS), cases, runs):
            looked = look(arms)
            for name, count in keys:
                passed = passing(arms, looked, MODES[name], count)
                wrong[name, count].append(passed.any(axis=1))
        for key, parts in wrong.items():
            share = float(np.concatenate(parts).mean())
            worst[*key, cases] = max(worst.get((*key, cases), 0.0), share)
    rows = [
        [name, str(count), *(percent(worst[name, count, cases]) for cases in COUNTS)]
        for name, count in keys
    ]
    about = f"at a true ratio of {BOUND:.2f}, the worst of {len(models)} kinds of scores"
    title = f"PASS of any of several students in %, all {about} ({runs} runs)"
    yield Sheet(title, ["gate", "students", *(f"{cases} cases" for cases in COUNTS)], rows)


def choice(runs: int) -> Iterator[Sheet]:
    """What the tie rule costs, and by how much the leader's own score flatters it."""
    rows, runs = [], max(1, runs // OF_CHOICE)
    for (name, ratios), cases in product(CURVES.items(), COUNTS):
        leaders, selected, flattered = [], [], []
        for arms in together(NAMED["noise"], ratios, cases, runs):
            for run in range(len(arms[0].share)):
                leader, chosen = choose(arms, run)
                leaders.append(leader)
                selected.append(chosen)
                means = [arms[place].score_all[run].mean() for place in (0, leader + 1)]
                flattered.append(means[1] / means[0] - ratios[leader])
        both = leaders, selected
        cells = [f"{np.mean([ratios[place] for place in places]):.3f}" for places in both]
        cells += [f"{np.mean(places) + 1:.1f}" for places in both]
        rows.append([name, str(cases), *cells, f"{np.mean(flattered):+.3f}"])
    header = ["true ratios of 8 checkpoints", "cases", "true ratio of the leader"]
    header += ["of the selected", "place of the leader", "of the selected", "leader's luck"]
    yield Sheet(f"The choice among checkpoints that all pass ({runs} runs)", header, rows)


def choose(arms: Sequence[Scores], run: int) -> tuple[int, int]:
    """The places of the leader and of the selected one among the students, which all pass."""
    names = [f"checkpoint-{number}" for number in range(1, len(arms))]
    scores = dict(zip(names, (arm.score_all[run].tolist() for arm in arms[1:]), strict=True))
    means = {name: float(np.mean(found)) for name, found in scores.items()}
    cases = {
        name: {f"C{n:03}": CaseScore(1, 1, 0, score, 0.0) for n, score in enumerate(found)}
        for name, found in scores.items()
    }
    order = sorted(names, key=lambda name: -means[name])
    ranking = [
        Ranked(
            rank=place,
            arm=name,
            word="PASS",
            mean_all=Interval(means[name], None, None, LEVEL, "none", ""),
            p=1.0,
            p_corrected=1.0,
            ahead=None,
            p_next=None,
            tied=False,
        )
        for place, name in enumerate(order, start=1)
    ]
    verdicts = [Verdict(name, "PASS", ()) for name in names]
    origins = {name: Origin(name, number, "run") for number, name in enumerate(names)}
    found = select(Comparison({}, {}, {}, {}, cases), verdicts, ranking, origins)
    return names.index(order[0]), names.index(found.arm if found else order[0])


PARTS: dict[str, Callable[[int], Iterator[Sheet]]] = {"best": best, "choice": choice}
