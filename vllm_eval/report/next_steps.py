"""What to do after a run, from the rules that failed and the most frequent failures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterator

from vllm_eval.diagnose.clusters import KINDS
from vllm_eval.diagnose.diagnosis import recovered
from vllm_eval.diagnose.remedies import NO_ANSWER
from vllm_eval.inputs.adapters import slot_rank
from vllm_eval.report.many import full_of
from vllm_eval.report.stored_run import StoredRun
from vllm_eval.report.verdicts import Data, failing, is_certified, still_open, to_settle
from vllm_eval.report.words import Md, code, count, percent, sentence, signed, words
from vllm_eval.store.folder import CONFIG

SURE = 0.95
"""A verdict that holds on a smaller share of resamples is called close."""
MOST_CASES = 3
MOST_REMEDIES = 3
"""Remedies named for one arm; the diagnosis has all."""


def next_steps(run: StoredRun) -> list[Md]:
    """One paragraph of Markdown per step, the most urgent first."""
    if run.comparison["partial"]:
        pending = count(run.comparison["pending"])
        command = code(f"python -m vllm_eval --resume {shlex.quote(run.folder.name)}")
        why = f"{pending} answers are pending; a partial run has no verdict."
        return [Md(f"Resume the run: {command}."), Md(why)]
    verdicts = {verdict["arm"]: verdict for verdict in run.comparison["verdicts"]}
    selected = run.comparison["selected"]
    steps: dict[Md, None] = {}  # two students may ask for the same
    if selected:
        steps |= dict.fromkeys(_integrate(run, verdicts[selected["arm"]], selected))
        steps |= dict.fromkeys(_by_the_best(run))
    full = full_of(run.comparison)
    if others := sum(one["passed"] for arm, one in verdicts.items() if arm not in full):
        steps[Md(f"{count(others)} of the other students pass{'es' * (others == 1)} too.")] = None
    for place in run.comparison["ranking"]["students"]:
        verdict = verdicts[place["arm"]]
        if place["arm"] not in full:
            continue
        if verdict["word"] == "UNDECIDED":
            found = _settle(run, verdict)
        elif not verdict["passed"]:
            found = _repair(run.comparison, verdict)
        elif place["arm"] != selected["arm"]:
            found = iter([Md(f"{code(place['arm'])} passes too.")])
        else:
            continue
        steps |= dict.fromkeys(found)
    return list(steps)


def _by_the_best(run: StoredRun) -> Iterator[Md]:
    """How a run whose best student passes, and another does not, is a PASS."""
    students = run.comparison["verdicts"]
    passing = sum(verdict["passed"] for verdict in students)
    if run.comparison["select"] == "all" and passing < len(students):
        folder = shlex.quote(str(run.folder))
        command = code(f"python -m vllm_eval --resume {folder} --select best", 400)
        pass_ = "passes" if passing == 1 else "pass"
        what = f"{passing} of {len(students)} students {pass_}. To have the best decide for the run"
        yield Md(f"{what}, without asking anything again: {command}.")


def _integrate(run: StoredRun, verdict: Data, selected: Data) -> Iterator[Md]:
    """For the student that is selected."""
    arm, base = verdict["arm"], run.environment.get("base_model")
    why = ""
    if len(run.comparison["verdicts"]) > 1:
        why = "".join(f" {sentence(selected[key])}" for key in ("why", "caution") if selected[key])
    yield Md(f"Integrate {code(arm)}.{why}")
    adapter = run.environment["adapters"].get(arm)
    if base and adapter:
        slot = slot_rank(adapter["rank"])
        command = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(slot)]
        command += ["--lora-modules", f"{arm}={adapter['path']}"]
        yield Md(f"Serve it beside the base: {code(shlex.join(command), 400)}")
    if is_certified(verdict):
        return
    doubt = ""
    if (verdict["pass_chance"] or 1) < SURE:
        doubt = f"The PASS is close: {_doubt(verdict)}"
    elif verdict["certified"] != "PASS":
        doubt = "These cases are too few to show it for others."
    if doubt:
        yield Md(f"{doubt} Evaluate more cases before you rely on it.")


def _doubt(verdict: Data) -> str:
    """How often the rules hold, and how many cases would settle it, if known."""
    parts = []
    if verdict["pass_chance"] is not None:
        share = percent(verdict["pass_chance"])
        parts.append(f"the rules hold on {share} of resamples of these cases.")
    return " ".join(filter(None, (*parts, to_settle(verdict))))


def _settle(run: StoredRun, verdict: Data) -> Iterator[Md]:
    arm, cases = verdict["arm"], verdict["cases_to_settle"]
    yield Md(f"Do not integrate {code(arm)} yet.")
    if names := ", ".join(code(rule["name"]) for rule in still_open(verdict)):
        yield Md(f"Open: {names}.")
    yield Md(sentence(to_settle(verdict)))
    there, asked = run.environment["dataset"]["records"], run.comparison["cases_total"]
    if any(rule["evidence"] and rule["evidence"]["bound"] >= 1 for rule in still_open(verdict)):
        yield Md("Lower a bound of 1: answers that might fail are never shown to reach it.")
    elif cases is None or cases <= asked:
        yield Md("Evaluate it on further cases.")
    elif cases > there:
        yield Md(f"The data set has {count(there)} cases: add more.")
    else:
        config = shlex.quote(str(run.folder / CONFIG))
        command = f"python -m vllm_eval --config {config} --max-samples {cases}"
        yield Md(f"Evaluate more cases: {code(command, 400)}")


def _repair(comparison: Data, verdict: Data) -> Iterator[Md]:
    arm = verdict["arm"]
    yield Md(f"Do not integrate {code(arm)}.")
    failed = failing(verdict)
    # A number that does not exist follows from something else, such as answers that all failed.
    known = [rule for rule in failed if rule["value"] is not None]
    for rule in known:
        yield from _remedy(comparison, verdict, rule)
    if not known:
        for rule in failed:
            yield Md(f"{words(rule['name'])} is unknown: {code(rule['reason'])}")
    if not is_certified(verdict) and (verdict["pass_chance"] or 0) > 1 - SURE:
        yield Md(f"The FAIL of {code(arm)} is close: {_doubt(verdict)}")


def _remedy(comparison: Data, verdict: Data, rule: Data) -> Iterator[Md]:
    arm, kind = rule["arm"], rule["kind"]
    student = code(verdict["arm"])
    if kind == "answered":
        yield Md(f"Answers of {code(arm)} are missing. {_missing(comparison, arm)}")
    elif kind == "valid_rate":
        yield Md(f"Too few answers of {code(arm)} are valid. {_main_cause(comparison, arm)}")
    elif kind == "baseline_mean":
        todo = "check base model, prompt and cases before the adapter."
        yield Md(f"The base itself scores too low, so a ratio to it says little: {todo}")
    elif kind == "ratio_low":
        more = f"Evaluate more cases: {_doubt(verdict)}".rstrip(": ")
        yield Md(f"The ratio of {student} is too uncertain. {more}")
    elif kind == "distance":
        yield Md(f"The means of {student} and the baseline differ by more than allowed.")
    elif _by_failing(comparison, verdict, rule):
        why = f"Answers of {student} that failed or are missing count as 0, and are too many."
        yield Md(f"{why} {_main_cause(comparison, arm)}")
    else:
        yield Md(f"{student} scores too low. {_worst_cases(comparison, verdict['arm'])}")


def _by_failing(comparison: Data, verdict: Data, rule: Data) -> bool:
    """Whether a score is too low only with failed and missing answers as 0."""
    summary, enough = comparison["arms"][rule["arm"]], rule["margin"] >= 0
    if rule["kind"] == "ratio_all":
        valid = next(other["value"] for other in verdict["rules"] if other["kind"] == "ratio")
        enough = valid >= rule["threshold"]
    return bool(enough and summary["failed"])


def _missing(comparison: Data, arm: str) -> str:
    """Why answers are missing, and what helps."""
    found = _reasons(comparison, arm, NO_ANSWER)
    if not found:
        return "No reason was recorded."
    reasons = ", ".join(f"{code(why)} ({_answers(times)})" for why, times in found)
    helps = _helps(comparison, arm, {NO_ANSWER})
    return f"The cause: {reasons}. {helps or sentence(KINDS[NO_ANSWER].todo)}"


def _main_cause(comparison: Data, arm: str) -> str:
    """Why most of an arm's failed answers fail, and what would help by how much."""
    final: dict[str, int] = {}
    for group in _groups(comparison, arm, KINDS.keys() - {NO_ANSWER}):
        final[group["cluster"]] = final.get(group["cluster"], 0) + group["outcomes"]
    if not any(final.values()):
        return "No answer to grade failed."
    cluster = max(final, key=lambda name: final[name])
    of = sum(final.values())
    reason, times = _reasons(comparison, arm, cluster)[0]
    part = "" if times == final[cluster] else f"{count(times)} of them "
    often = f"{count(final[cluster])} of {_answers(of)}, {part}{code(reason)}"
    most = f"What fails most: {KINDS[cluster].what} ({often})."
    patterns = comparison["diagnosis"]["patterns"]
    todos = (p["todo"] for p in patterns if (p["arm"], p["cluster"]) == (arm, cluster))
    todo = sentence(next(todos, KINDS[cluster].todo))
    helps = _helps(comparison, arm, KINDS.keys() - {NO_ANSWER})
    return " ".join(part for part in (most, helps, todo) if part)


def _helps(comparison: Data, arm: str, clusters: Collection[str]) -> str:
    """The settings that recover most of an arm's failures in the given clusters."""
    found = [
        f"{code(remedy['setting'])} {recovered(remedy)}"
        for remedy in comparison["diagnosis"]["remedies"]
        if remedy["arm"] == arm and set(clusters) & set(remedy["clusters"])
    ]
    return f"What would make more valid: {'; '.join(found[:MOST_REMEDIES])}." if found else ""


def _groups(comparison: Data, arm: str, clusters: Collection[str]) -> list[Data]:
    groups = comparison["diagnosis"]["clusters"]
    return [group for group in groups if group["arm"] == arm and group["cluster"] in clusters]


def _reasons(comparison: Data, arm: str, cluster: str) -> list[tuple[str, int]]:
    """The reasons of an arm's failed answers in one cluster and their counts, highest first."""
    counts = (Counter[str](group["final_reasons"]) for group in _groups(comparison, arm, {cluster}))
    return sum(counts, Counter[str]()).most_common()


def _answers(number: int) -> str:
    return f"{count(number)} {'answer' if number == 1 else 'answers'}"


def _worst_cases(comparison: Data, arm: str) -> str:
    """The cases that lose most against the baseline, to look at first."""
    rows = [(row["arms"].get(arm), row) for row in comparison["cases"]]
    behind = [(c["difference"], row) for c, row in rows if c and (c["difference"] or 0) < 0]
    behind.sort(key=lambda pair: pair[0])
    if not behind:
        return "Compare the points of each part of the metric in `report.html`."
    named = ", ".join(f"{code(row['concept_id'])} ({signed(d)})" for d, row in behind[:MOST_CASES])
    todo = "Compare the points of each part of the metric there, and add training cases like them."
    return f"It loses most against the baseline on {named}. {todo}"
