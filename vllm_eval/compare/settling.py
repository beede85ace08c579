"""The case at which a run's verdict is settled, whatever the order in which the answers finish.

Cases count in the order drawn, up to the first one that lacks an outcome of any arm or sample.
Every number of them is looked at in turn. The evidence holds at its level however often one looks
(see `betting`), so stopping at the first number that settles the verdict inflates no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vllm_eval.compare.betting import Evidence, p_of_all
from vllm_eval.compare.cases import CaseScore, aggregate
from vllm_eval.compare.claims import Traces, make_claims, tables, trace_rules
from vllm_eval.compare.paired import holm
from vllm_eval.compare.resampling import summarise_first
from vllm_eval.compare.rules import add_evidence, certify_rules, make_rules
from vllm_eval.compare.summary import Summary
from vllm_eval.compare.verdict import Kind, Word, overall
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE, Outcome, free_arms

LEAST_AHEAD = 16
"""Cases that may be begun beyond the complete ones, however few these are."""
AHEAD = 4
"""Every so many complete cases allow for one more beyond them."""
STRIDE = 16
"""Every so many complete cases, the next look waits for one case more, because a look takes all of
them into account. It finds what an earlier one would have found."""
OF_THESE_CASES = "student_std"
"""The rule whose failure settles nothing, because further cases may bring the spread below its
limit. Nor does a missing answer, which is not the model's failure. The verdict counts both."""


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
        first = self._looked + 1
        grown = zip(*(summarise_first(one, first) for one in self._cases.values()), strict=True)
        for count, summaries in enumerate(grown, start=first):
            evidence = {
                arm: {key: after(count) for key, after in traces.items()}
                for arm, traces in traced.items()
            }
            if _is_settled(dict(zip(self._cases, summaries, strict=True)), evidence, self._gate):
                return count
        return None

    def _trace(self, arm: str) -> Traces:
        found = tables(self._cases[arm], self._cases[BASELINE])
        claims = make_claims(*found, self._gate, arm)
        return trace_rules(claims, len(self._order), self._gate.level)


def _is_settled(
    arms: Mapping[str, Summary],
    evidence: Mapping[str, Mapping[tuple[Kind, str], Evidence]],
    gate: GateConfig,
) -> bool:
    """Whether the word on the students in `evidence` stands, whatever further cases say.

    Each must have passed or failed; where the best is selected, one that has passed is enough.
    """
    p_values, words = list[float](), list[Word]()
    for arm, found in evidence.items():
        plain = make_rules(gate, arm, arms[BASELINE], arms[arm])
        rules = certify_rules(add_evidence(plain, found), gate.level)
        failed = any(rule.word == "FAIL" and rule.kind != OF_THESE_CASES for rule in rules)
        passed = not failed and overall(rules) == "PASS"
        if not passed and not failed and gate.select == "all":
            return False
        words.append("PASS" if passed else "FAIL" if failed else "UNDECIDED")
        p_values.append(p_of_all(found.values()))
    for place, p in enumerate(holm(p_values)):
        if words[place] == "PASS" and p > 1 - gate.level:
            words[place] = "UNDECIDED"
    return "UNDECIDED" not in words or (gate.select == "best" and "PASS" in words)
