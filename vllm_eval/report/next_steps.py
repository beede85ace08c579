"""What to do after a run: from the rules that failed and what failed most to a remedy."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from vllm_eval.adapters import SLOT_RANKS
from vllm_eval.records import BASELINE
from vllm_eval.report.html_text import count, percent, signed
from vllm_eval.report.markdown_text import Md, code, words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from vllm_eval.report.stored_run import StoredRun

SURE = 0.95
"""Share of resamples from which on a verdict is not called close."""
MOST_CASES = 3
REMEDIES = {
    r"missing_yaml_blocks": "The answer lacks one of its two fenced blocks. Train on whole answers "
    "with both, closed, and ask with the prompt of the training (`--prompt-template`, "
    "`--prompt-format`).",
    r"invalid_(vision|review)_yaml": "The block is no valid YAML. Dump the training targets with a "
    "YAML library, so that texts with a colon, a quote or a hash are quoted, and train anew.",
    r"(vision|review)_not_mapping": "The block holds a list or a text instead of keys. Look for "
    "such targets among the training data.",
    r"(vision|review)_missing_\w+": "A required key is missing. Check every training target "
    "against the contract and drop or repair those without it.",
    r"alignment_\w+": "`requirements_alignment` has another shape than its three lists. Check the "
    "training targets against the contract.",
    r"no_requirement_ids": "The alignment cites no requirement. Training targets must name the ids "
    "of the requirements they were given.",
    r"insufficient_recommended_actions": "Too few recommended actions. Add training targets with "
    "two and more, also for small cases.",
    r"narrative_length_exceeded": "The narrative is too long. Shorten it in the training targets; "
    "the prompt names the limit.",
    r"prompt_too_long": "The prompt does not fit. Raise `--max-model-len`.",
    r"engine_error": "The engine gave no answer. See `engine.log`, then run again.",
}
"""By reason, as a pattern."""
NO_ANSWER = ("prompt_too_long", "engine_error")
CUT = "Most of these answers were cut at the token limit: raise `--max-new-tokens` first."
UNTRAINED = (
    "That is the base's failure, not the adapter's: allow more attempts (`--retries`), make the "
    "prompt clearer (`--prompt-template`) or take another base."
)


def next_steps(run: StoredRun) -> list[Md]:
    """One paragraph of Markdown per thing to do, the most pressing first."""
    if run.comparison["partial"]:
        owed = count(run.comparison["owed"])
        command = code(f"python -m vllm_eval --resume {shlex.quote(run.folder.name)}")
        return [Md(f"Go on with the run: {command}. It owes {owed} answers; no part of it passes.")]
    steps: dict[Md, None] = {}  # two students may ask for the same
    for verdict in run.comparison["verdicts"]:
        found = _integrate(run, verdict) if verdict["passed"] else _repair(run.comparison, verdict)
        steps |= dict.fromkeys(found)
    return list(steps)


def _integrate(run: StoredRun, verdict: Mapping[str, Any]) -> Iterator[Md]:
    arm, base = verdict["arm"], run.environment.get("base_model")
    yield Md(f"Integrate {code(arm)}.")
    adapter = run.environment["adapters"].get(arm)
    if base and adapter:
        slot = min((rank for rank in SLOT_RANKS if rank >= adapter["rank"]), default=SLOT_RANKS[-1])
        command = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(slot)]
        command += ["--lora-modules", f"{arm}={adapter['path']}"]
        yield Md(f"Serve it beside the base: {code(shlex.join(command), 400)}")
    if verdict["pass_chance"] is not None and verdict["pass_chance"] < SURE:
        yield Md(f"The pass is close: {_doubt(verdict)} Evaluate more cases before you rely on it.")


def _doubt(verdict: Mapping[str, Any]) -> str:
    """How often the rules hold, and how many cases would tell; as far as either is known."""
    parts = []
    if verdict["pass_chance"] is not None:
        share = percent(verdict["pass_chance"])
        parts.append(f"the rules hold on {share} of resamples of the cases.")
    if verdict["cases_to_settle"] is not None:
        parts.append(f"About {count(verdict['cases_to_settle'])} such cases settle the ratio.")
    return " ".join(parts)


def _repair(comparison: Mapping[str, Any], verdict: Mapping[str, Any]) -> Iterator[Md]:
    arm = verdict["arm"]
    yield Md(f"Do not integrate {code(arm)}.")
    failed = [rule for rule in verdict["rules"] if not rule["passed"]]
    # A number that does not exist follows from something else, such as answers that all failed.
    told = [rule for rule in failed if rule["value"] is not None]
    for rule in told:
        yield from _remedy(comparison, verdict, rule)
    if not told:
        for rule in failed:
            yield Md(f"{words(rule['name'])} cannot be told: {code(rule['reason'])}")
    if verdict["pass_chance"] is not None and verdict["pass_chance"] > 1 - SURE:
        yield Md(f"The fail of {code(arm)} is close: {_doubt(verdict)}")


def _remedy(
    comparison: Mapping[str, Any], verdict: Mapping[str, Any], rule: Mapping[str, Any]
) -> Iterator[Md]:
    arm, kind = rule["arm"], rule["kind"]
    student = code(verdict["arm"])
    if kind == "answered":
        why = _main_reason(comparison, arm, NO_ANSWER)
        yield Md(f"Answers of {code(arm)} are missing. {why}")
    elif kind == "valid_rate":
        why = _main_reason(comparison, arm)
        yield Md(f"Too few answers of {code(arm)} are valid. {why}")
    elif kind == "baseline_mean":
        yield Md(
            "The base itself scores too low, so a ratio to it says little: check base model, "
            "prompt and cases before the adapter."
        )
    elif kind == "ratio_low":
        yield Md(
            f"The ratio of {student} is too uncertain: more cases; {_doubt(verdict)}".rstrip("; ")
        )
    elif kind == "distance":
        yield Md(f"The means of {student} and the baseline lie further apart than allowed.")
    else:
        yield Md(f"{student} scores too low. {_worst_cases(comparison, verdict['arm'])}")


def _main_reason(
    comparison: Mapping[str, Any], arm: str, only: Collection[str] | None = None
) -> str:
    """The most frequent of an arm's reasons, or of some among them, and what helps."""
    found = comparison["reasons"].get(arm, {})
    reasons = {why: times for why, times in found.items() if only is None or why in only}
    if not reasons:
        return "No reason was recorded."
    reason, times = next(iter(reasons.items()))
    mine = [g for g in comparison["failures"] if g["arm"] == arm and g["reason"] == reason]
    remedies = (text for pattern, text in REMEDIES.items() if re.fullmatch(pattern, reason))
    remedy = next(remedies, "Look at the failed cases below.")
    if 2 * sum(g["truncated"] for g in mine) > sum(g["attempts"] for g in mine):
        remedy = CUT
    elif arm == BASELINE and reason not in NO_ANSWER:
        remedy = UNTRAINED
    often = f"{count(times)} {'answer' if times == 1 else 'answers'}"
    return f"What fails most is {code(reason)} ({often}). {remedy}"


def _worst_cases(comparison: Mapping[str, Any], arm: str) -> str:
    """The cases that lose most against the baseline, to look at first."""
    rows = [(row["arms"].get(arm), row) for row in comparison["cases"]]
    behind = [(c["difference"], row) for c, row in rows if c and (c["difference"] or 0) < 0]
    behind.sort(key=lambda pair: pair[0])
    if not behind:
        return "Compare the points of each part of the metric in `report.html`."
    named = ", ".join(f"{code(row['concept_id'])} ({signed(d)})" for d, row in behind[:MOST_CASES])
    return (
        f"It loses most against the baseline on {named}: compare the points of each part of the "
        "metric there, and add training cases like them."
    )
