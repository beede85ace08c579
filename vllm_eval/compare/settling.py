"""The case at which a run's verdict is settled, whatever the order in which the answers finish.

Cases count in the order drawn, up to the first one that lacks an outcome of any arm or sample.
Every number of them is looked at in turn. The evidence holds at its level however often one looks
(see `evidence`), so stopping at the first number that settles the verdict inflates no error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from vllm_eval.compare.claims import Traces, make_claims, tables, trace_rules
from vllm_eval.compare.evidence import Evidence
from vllm_eval.compare.gate import Terms, grade_rules
from vllm_eval.compare.intervals import CaseScore
from vllm_eval.compare.paired import holm
from vllm_eval.compare.summary import Comparison, Summary, aggregate
from vllm_eval.compare.verdict import Rule
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE, Outcome, free_arms

LEAST_AHEAD = 16
"""Cases that may be begun beyond the complete ones, however few these are."""
AHEAD = 4
"""Every so many complete cases allow for one more beyond them."""
STRIDE = 16
"""With so many complete cases one more is awaited before the next look, as each takes all of them
into account. A look finds what an earlier one would have found."""
OF_THESE_CASES = ("answered", "student_std")
"""Rules whose failure settles nothing: a missing answer is not the model's failure, and further
cases may bring the spread below its limit. The verdict at the end counts both."""


class Settling:
    """Takes outcomes in any order and finds the number of cases that settles the verdict."""

    def __init__(
        self, order: Mapping[str, int], arms: Sequence[str], samples: int, gate: GateConfig
    ) -> None:
        """`order` has the place of each case that may be drawn; `arms` are all of the run."""
        self._order, self._samples, self._gate = order, samples, gate
        self._answers = {(arm, sample) for arm in arms for sample in range(samples)}
        self._waiting: dict[int, dict[tuple[str, int], Outcome]] = {}
        self._cases: dict[str, dict[str, CaseScore]] = {arm: {} for arm in free_arms(arms)}
        self._running = {arm: _Running() for arm in self._cases}
        self._looked = self._due = 0
        self.complete = 0
        """Cases with all outcomes, up to the first one without."""
        self.settled: int | None = None
        """The least number of cases that settles the verdict, once that is known."""

    @property
    def limit(self) -> int:
        """How many cases may be begun by now, so that a decision saves the others."""
        return self.complete + max(LEAST_AHEAD, self.complete // AHEAD)

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """Add outcomes; those that are not of the run are left out."""
        for outcome in outcomes:
            place, answer = self._order.get(outcome.concept_id), (outcome.arm, outcome.sample)
            if place is not None and answer in self._answers:
                self._waiting.setdefault(place, {})[answer] = outcome
        while len(found := self._waiting.get(self.complete, {})) == len(self._answers):
            for arm, cases in self._cases.items():
                own = [found[arm, sample] for sample in range(self._samples)]
                cases[own[0].concept_id] = aggregate(own)
            del self._waiting[self.complete]
            self.complete += 1
        if self.complete > self._due:
            self.look()

    def look(self) -> int | None:
        """Look at all complete cases now; returns the number of them that settles the verdict."""
        if self.settled is None and self.complete > self._looked:
            self.settled = self._first_settled()
            self._looked = self.complete
            self._due = self.complete + self.complete // STRIDE
        return self.settled

    def _first_settled(self) -> int | None:
        traced = {arm: self._trace(arm) for arm in self._cases if arm != BASELINE}
        new = [islice(cases.values(), self._looked, None) for cases in self._cases.values()]
        for count, row in enumerate(zip(*new, strict=True), start=self._looked + 1):
            for running, case in zip(self._running.values(), row, strict=True):
                running.add(case)
            arms = {arm: running.summary() for arm, running in self._running.items()}
            evidence = {
                arm: {key: after(count) for key, after in traces.items() if count <= known}
                for arm, (traces, known) in traced.items()
            }
            if _is_settled(arms, evidence, count * self._samples, self._gate):
                return count
        return None

    def _trace(self, arm: str) -> tuple[Traces, int]:
        """The evidence on one student, and up to which case there is any."""
        sides = self._cases[arm], self._cases[BASELINE]
        both = enumerate(zip(*(side.values() for side in sides), strict=True))
        unknown = (place for place, row in both if not all(case.scored for case in row))
        known = next(unknown, self.complete)
        found = tables(*(dict(islice(side.items(), known)) for side in sides))
        claims = make_claims(*found, self._gate)
        return trace_rules(claims, arm, len(self._order), self._gate.level), known


def _is_settled(
    arms: Mapping[str, Summary],
    evidence: Mapping[str, Mapping[tuple[str, str], Evidence]],
    expected: int,
    gate: GateConfig,
) -> bool:
    """Whether each student in `evidence` has passed, or failed whatever further cases say."""
    nothing, p_values, passed = Comparison({}, {}, {}), [], []
    for arm, found in evidence.items():
        rules = grade_rules(Terms(nothing, arm, expected, gate), arms[BASELINE], arms[arm], found)
        failed = any(_fails_for_good(rule) for rule in rules)
        if not failed and not all(rule.passed for rule in rules if rule.kind != "answered"):
            return False
        passed.append(not failed)
        p_values.append(max((one.p_shown for one in found.values()), default=1.0))
    corrected = zip(passed, holm(p_values), strict=True)
    return all(not one_passed or p <= 1 - gate.level for one_passed, p in corrected)


def _fails_for_good(rule: Rule) -> bool:
    if rule.kind in OF_THESE_CASES or rule.passed:
        return False
    return rule.state in ("", "refuted")


@dataclass(slots=True)
class _Running:
    """The cases of one arm so far, as the sums that rules need."""

    total: int = 0
    valid: int = 0
    errors: int = 0
    cases: int = 0
    shares: float = 0.0
    scores: int = 0
    """Cases with a score, of which the next four are."""
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""
    least: float = math.inf
    most: float = -math.inf
    scored: int = 0
    score_all: float = 0.0

    def add(self, case: CaseScore) -> None:
        """Add a case. Source of the mean and squares: Welford, Technometrics 4, 1962."""
        self.total += case.samples
        self.valid += case.valid
        self.errors += case.errors
        self.cases += 1
        self.shares += case.share
        self.scored += case.scored
        self.score_all += case.score_all if case.scored else 0.0
        if case.score is not None:
            self.scores += 1
            distance = case.score - self.mean
            self.mean += distance / self.scores
            self.squares += distance * (case.score - self.mean)
            self.least, self.most = min(self.least, case.score), max(self.most, case.score)

    def summary(self) -> Summary:
        """Without what no rule is about."""
        known = self.scores > 0
        return Summary(
            total=self.total,
            valid=self.valid,
            failed=self.total - self.valid,
            errors=self.errors,
            first_valid=0,
            valid_rate=self.shares / self.cases,
            first_valid_rate=0.0,
            mean=self.mean if known else None,
            std=math.sqrt(self.squares / self.scores) if known else None,
            min=self.least if known else None,
            max=self.most if known else None,
            mean_all=self.score_all / self.scored if self.scored else None,
            attempts=0,
            cases=self.cases,
            within_std=None,
            between_std=None,
        )
