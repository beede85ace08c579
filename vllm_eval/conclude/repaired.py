"""What a run would be worth if repaired answers counted as valid, for `comparison.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vllm_eval.compare import verdict
from vllm_eval.compare.summary import Summary
from vllm_eval.compare.verdict import Verdict
from vllm_eval.config.settings import Config
from vllm_eval.records import Outcome
from vllm_eval.tasks.repair import NAMES


def repair_to_json(
    outcomes: Sequence[Outcome],
    arms: Mapping[str, Summary],
    verdicts: Sequence[Verdict],
    config: Config,
    *,
    measured: bool,
    pending: int,
) -> dict[str, Any]:
    """What `comparison.json` says of repairs, apart from single cases; no figure if unmeasured.

    `arms` and `verdicts` count repaired outcomes as valid; without `measured` they could not be
    graded. While outcomes are `pending` there is no verdict.
    """
    stated = {"asked": config.repair, "measured": measured}
    if not measured:
        return stated | {"passed": None, "arms": {}, "verdicts": []}
    repaired = [outcome for outcome in outcomes if outcome.repair]
    return stated | {
        "passed": pending == 0 and verdict.word_on(verdicts, config.gate.select) == "PASS",
        "arms": {
            arm: _count([o for o in repaired if o.arm == arm]) | {"summary": asdict(summary)}
            for arm, summary in arms.items()
        },
        "verdicts": verdict.to_json(verdicts, pending),
    }


def _count(repaired: Sequence[Outcome]) -> dict[str, Any]:
    names = Counter(name for o in repaired if o.repair for name in o.repair.names)
    reasons = Counter(outcome.reason for outcome in repaired)
    return {
        "repaired": len(repaired),
        "by_repair": {name: names[name] for name in NAMES if names[name]},
        "by_reason": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0] or ""))),
    }
