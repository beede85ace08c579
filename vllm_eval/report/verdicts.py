"""How sure a verdict is, in words that all reports share. Renders, never computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_eval.compare.betting import chance
from vllm_eval.compare.sample_size import POWER
from vllm_eval.compare.selection import NONE_PASSES, Selected
from vllm_eval.compare.verdict import NOT_FINISHED
from vllm_eval.report.words import percent

Data = Mapping[str, Any]
"""A verdict or a rule, as in `comparison.json`."""


def selected_words(word: str, selected: Selected | None) -> list[str]:
    """The word on the best student, which one that is and where, and why."""
    if selected is None:
        return [f"{word}  {NONE_PASSES}"]
    path = f" ({selected.path})" if selected.path else ""
    why = [f"  {line}" for line in (selected.why, selected.caution) if line]
    return [f"{word}  selected {selected.arm}{path}", *why]


def headline(comparison: Data) -> Data | None:
    """The selected student, where the word on the run is about it: a PASS among several."""
    several = comparison["select"] == "best" or len(comparison["verdicts"]) > 1
    selected: Data | None = comparison["selected"]
    return selected if several and comparison["passed"] else None


def beside(verdict: Data) -> list[str]:
    """What a reader must know beside the word: a sentence each, names between backticks."""
    found = list(verdict["notes"])
    if verdict.get("verdict") != NOT_FINISHED:
        found.append(_level(verdict))
        if verdict["word"] == "UNDECIDED":
            found.append(to_settle(verdict))
    return [sentence for sentence in found if sentence]


def _level(verdict: Data) -> str:
    """At which level a PASS is shown, and what `--certify` says or would say."""
    level, word, certified = (verdict[key] for key in ("level", "word", "certified"))
    p = verdict["p_corrected"]
    several = "" if p == verdict["p"] else ", corrected for the number of students"
    if is_certified(verdict):
        shown = f"Every rule is shown at {level:g} ({chance(p)}{several})."
        return shown if word == "PASS" else ""
    would = f"`--certify {level:g}` would say {certified}{' too' if certified == word else ''}"
    if word != "PASS":
        return f"{would}."
    hundredths = int(100 * (1 - p))  # never rounded up
    at = "above 0.999" if p < 0.001 else f"{hundredths / 100:g}"
    shown = f"shown at level {at}{several}" if hundredths else "not shown at any level"
    return f"For cases like these in general, this is {shown}; {would}."


def to_settle(verdict: Data) -> str:
    """How many cases would settle what is in doubt; nothing where no number would help."""
    what = "the verdict" if is_certified(verdict) else "the ratio"
    if verdict["cases_to_settle"] is not None:
        cases = f"About {verdict['cases_to_settle']:,} cases like these"
        return f"{cases} would settle {what} with a chance of {POWER:.0%}."
    if verdict["word"] != "UNDECIDED":
        return ""
    return f"There is no estimate of how many cases would settle {what}: {verdict['unsettled']}."


def on_these_cases(verdict: Data) -> str:
    """How much the word hangs on single cases, and how many would settle it."""
    found = [] if verdict["word"] == "UNDECIDED" else [to_settle(verdict)]
    if verdict["pass_chance"] is not None:
        share = f"Passes on {percent(verdict['pass_chance'])} of resamples of these cases"
        found.insert(0, f"{share}, which is not an error rate: see `docs/statistics.md`.")
    return " ".join(filter(None, found))


def is_certified(verdict: Data) -> bool:
    """Whether the evidence decides, by `gate.certify`."""
    return any(rule["state"] for rule in verdict["rules"])


def failing(verdict: Data) -> list[Data]:
    """The rules that fail."""
    return [rule for rule in verdict["rules"] if result(rule)[0] == "FAIL"]


def still_open(verdict: Data) -> list[Data]:
    """The rules that are neither shown nor refuted."""
    return [rule for rule in verdict["rules"] if result(rule)[0] == "UNDECIDED"]


def result(rule: Data) -> tuple[str, str, str]:
    """What a rule makes of the verdict, as its word, what reports call that, and the reason."""
    if rule["passed"] and rule["state"]:
        return "PASS", "shown", chance(rule["evidence"]["p_shown"])
    if rule["passed"]:
        return "PASS", "holds", ""
    if rule["state"] in ("", "refuted"):
        return "FAIL", "fails", rule["reason"]
    return "UNDECIDED", "open", rule["reason"]


_SHOWN = (beside, failing, headline, on_these_cases, result, still_open)
VERDICTS = {f.__name__: f for f in _SHOWN}
"""The templates' filters for verdicts, rules and the selection."""
