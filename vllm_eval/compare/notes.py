"""What a reader must know beside a verdict: ratios that disagree, a base that nobody can match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_eval.compare.summary import Comparison
from vllm_eval.compare.verdict import TOLERANCE, Ratios, Rule
from vllm_eval.records import BASELINE

BASE_RULES = ("valid_rate", "baseline_mean")


def notes_of(
    comparison: Comparison,
    arm: str,
    least: float,
    rules: Sequence[Rule],
    ratios: Ratios | None,
) -> Iterator[str]:
    """A sentence each; `least` is the bound of the ratio."""
    if ratios:
        values, paired = [ratios.valid, ratios.all], "no case is valid in both"
        if ratios.paired is not None:
            pairs = comparison.students[arm].pairs
            paired = f"{ratios.paired:.3f} over the {pairs} cases valid in both"
            values.append(ratios.paired)
        if len({value >= least - TOLERANCE for value in values}) > 1 or ratios.paired is None:
            yield (
                f"It depends on the cases: the ratio is {ratios.valid:.3f} over the valid cases of "
                f"each arm, {paired}, and {ratios.all:.3f} with failures as 0; the bound is "
                f"{least:g}."
            )
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
