"""What a reader must know beside a verdict: ratios that disagree, a base that nobody can match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_eval.compare.paired import Paired
from vllm_eval.compare.rules import over
from vllm_eval.compare.summary import Comparison
from vllm_eval.compare.verdict import TOLERANCE, Rule
from vllm_eval.config.settings import GateConfig
from vllm_eval.records import BASELINE

BASE_RULES = ("valid_rate", "baseline_mean")


def notes_of(
    comparison: Comparison, arm: str, gate: GateConfig, rules: Sequence[Rule]
) -> Iterator[str]:
    """A sentence each, on a student that is in the comparison."""
    if gate.against == "baseline" and (paired := comparison.students.get(arm)):
        sums = [comparison.arms[name].mean for name in (arm, BASELINE)]
        yield from _ratios_apart(paired, over(*sums), gate.min_ratio)
    base_mean = comparison.arms[BASELINE].mean
    impossible = [
        f"{rule.name}: {rule.reason}"
        for rule in rules
        if not rule.passed
        and (
            (rule.kind == "ratio" and not base_mean)
            or (rule.kind in BASE_RULES and rule.arm == BASELINE and rule.word == "FAIL")
        )
    ]
    if impossible:
        lower = "lower `gate.min_baseline_valid_rate` and `gate.min_baseline_mean`, or "
        yield (
            f"No student can pass against this baseline ({'; '.join(impossible)}). If it is meant "
            f"to be weak, {lower if base_mean else ''}grade the student alone with "
            "`gate.against: absolute` and `gate.min_student_mean`."
        )


def _ratios_apart(paired: Paired, valid: float | None, least: float) -> Iterator[str]:
    """Whether the student's ratios lie on different sides of the gate's bound."""
    shared, every = paired.ratio.value, paired.ratio_all.value
    if valid is None or every is None:
        return
    if shared is None:
        both = "no case is valid in both"
    elif len({value >= least - TOLERANCE for value in (valid, shared, every)}) == 1:
        return
    else:
        pairs = "1 case" if paired.pairs == 1 else f"{paired.pairs} cases"
        both = f"{shared:.3f} over the {pairs} valid in both"
    yield (
        f"It depends on the cases: the ratio is {valid:.3f} over the valid cases of each arm, "
        f"{both}, and {every:.3f} with failures as 0; the bound is {least:g}."
    )
