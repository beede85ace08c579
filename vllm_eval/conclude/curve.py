"""The students of one training run by the step at which each was saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from vllm_eval.compare.intervals import Interval, rate_interval
from vllm_eval.compare.ranking import Ranked
from vllm_eval.compare.selection import Origin, Selected
from vllm_eval.compare.summary import Comparison
from vllm_eval.compare.verdict import NOT_FINISHED, Verdict
from vllm_eval.inputs.training_log import EMPTY, Loss, TrainingLog, from_json
from vllm_eval.records import BASELINE, Outcome
from vllm_eval.store.manifest import origins

_Saved = Sequence[tuple[str, int | None]]
"""Arms and steps, by step."""


@dataclass(frozen=True, slots=True)
class Point:
    """One student, at the step at which it was saved."""

    arm: str
    step: int | None
    """None for the end of a training whose last step is not known; it comes last."""
    mean_all: Interval
    """Mean over all cases, with failed answers as 0."""
    mean: float | None
    """Over the cases with a valid answer."""
    valid_rate: Interval
    first_try_rate: Interval
    word: str
    """Of its verdict on the answers so far."""
    selected: bool
    """Whether it is the student that the run selects."""
    loss: float | None
    """The last training loss logged after the point before it and up to this step."""
    eval_loss: float | None
    """Logged at this very step: any other one is of other weights."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A training run of which two steps or more were compared."""

    training: str
    """Its folder's name, with as much of the path as tells it from the others."""
    path: str
    points: tuple[Point, ...]
    """By step."""
    baseline: Mapping[str, float | None]
    """Its `mean_all`, `valid_rate` and `first_try`."""
    bound: float | None
    """The least `mean_all` that the gate allows; None where its rules are about the mean of the
    valid answers and some answers are not valid: no `mean_all` is then their bound."""
    losses: tuple[Loss, ...]
    losses_from: str | None
    """The trainer's file; None if there are no losses."""
    note: str
    """Why that file could not be used; otherwise empty."""


def make_curves(
    manifest: Mapping[str, Any],
    comparison: Comparison,
    verdicts: Sequence[Verdict],
    ranking: Sequence[Ranked],
    outcomes: Sequence[Outcome],
    selected: Selected | None,
) -> tuple[Curve, ...]:
    """The curve of each training run of which two steps or more were compared.

    Raises:
        InputError: the losses in the manifest are damaged.
    """
    places = {ranked.arm: ranked for ranked in ranking}
    runs = _runs({arm: one for arm, one in origins(manifest).items() if arm in places})
    if not runs:
        return ()
    logs = from_json(manifest.get("training", {}))
    tried = Counter((o.arm, o.concept_id) for o in outcomes if o.first_valid)
    base, ships = comparison.arms[BASELINE], selected.arm if selected else None
    names = _names(runs)
    curves = []
    for path, saved in runs.items():
        log, steps = logs.get(path, EMPTY), [step for _, step in saved if step is not None]
        points = tuple(
            _point(places[arm], step, comparison, tried, _losses_at(log, steps, step), ships)
            for arm, step in saved
        )
        curves.append(
            Curve(
                training=names[path],
                path=path,
                points=points,
                baseline={
                    "mean_all": base.mean_all,
                    "valid_rate": base.valid_rate if base.total else None,
                    "first_try": base.first_valid_rate if base.total else None,
                },
                bound=_bound(comparison, verdicts, saved),
                losses=log.losses,
                losses_from=log.file,
                note=log.note,
            )
        )
    return tuple(curves)


def to_json(curves: Sequence[Curve], pending: int) -> list[dict[str, Any]]:
    """Curves as JSON values, without the words PASS and FAIL while outcomes are `pending`."""
    word = {"word": NOT_FINISHED} if pending else {}
    return [
        asdict(curve) | {"points": [asdict(point) | word for point in curve.points]}
        for curve in curves
    ]


def _runs(found: Mapping[str, Origin]) -> dict[str, _Saved]:
    """By folder of a training run, what was saved of it; runs with one known step are no curve."""
    runs: dict[str, list[tuple[str, int | None]]] = {}
    for arm, origin in found.items():
        if origin.training is not None:
            runs.setdefault(origin.training, []).append((arm, origin.step))
    for saved in runs.values():
        saved.sort(key=lambda one: (one[1] is None, one[1] or 0))
    return {path: saved for path, saved in runs.items() if len({s for _, s in saved} - {None}) > 1}


def _point(
    ranked: Ranked,
    step: int | None,
    comparison: Comparison,
    tried: Mapping[tuple[str, str], int],
    losses: tuple[float | None, float | None],
    ships: str | None,
) -> Point:
    arm, level = ranked.arm, comparison.confidence
    cases = comparison.cases[arm]
    single = all(case.samples == 1 for case in cases.values())
    valid = [case.share for case in cases.values()]
    first = [tried[arm, name] / case.samples for name, case in cases.items()]
    return Point(
        arm=arm,
        step=step,
        mean_all=ranked.mean_all,
        mean=comparison.arms[arm].mean,
        valid_rate=rate_interval(valid, level, single=single),
        first_try_rate=rate_interval(first, level, single=single),
        word=ranked.word,
        selected=arm == ships,
        loss=losses[0],
        eval_loss=losses[1],
    )


def _losses_at(
    log: TrainingLog, steps: Sequence[int], step: int | None
) -> tuple[float | None, float | None]:
    """Training and evaluation loss of what was saved at `step`, one of the `steps` compared."""
    if step is None:
        return None, None
    before = max((other for other in steps if other < step), default=-1)
    since = [one for one in log.losses if before < one.step <= step]
    loss = next((one.loss for one in reversed(since) if one.loss is not None), None)
    return loss, since[-1].eval_loss if since and since[-1].step == step else None


def _bound(comparison: Comparison, verdicts: Sequence[Verdict], saved: _Saved) -> float | None:
    """The highest bound that a rule sets to the mean with failures as 0.

    A rule on the mean of the valid answers is one where all answers are valid, or where evidence
    decides, because that counts failures as 0.
    """
    arms = {arm for arm, _ in saved}
    rules = [rule for verdict in verdicts if verdict.arm in arms for rule in verdict.rules]
    base = comparison.arms[BASELINE]
    valid = base.valid_rate == 1 and all(comparison.arms[arm].valid_rate == 1 for arm in arms)
    bounds = []
    for rule in rules:
        every = valid or rule.state or rule.kind == "ratio_all"
        if every and rule.kind in ("ratio", "ratio_all") and base.mean_all is not None:
            bounds.append(rule.threshold * base.mean_all)
        elif every and rule.kind == "student_mean":
            bounds.append(rule.threshold)
    return max(bounds, default=None)


def _names(paths: Mapping[str, object]) -> dict[str, str]:
    """By path, the shortest end of it that no other path ends with."""
    parts = {path: PurePath(path).parts or (path,) for path in paths}

    def name(path: str) -> str:
        own = parts[path]
        for count in range(1, len(own)):
            if sum(other[-count:] == own[-count:] for other in parts.values()) == 1:
                return "/".join(own[-count:])
        return path

    return {path: name(path) for path in paths}
