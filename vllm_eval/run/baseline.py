"""The baseline's answers of an earlier run, copied into a new one, and the proof of their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_eval.config.settings import Config
from vllm_eval.engines.base_canary import Proof, from_json, prove_same, to_json
from vllm_eval.engines.protocol import Engine
from vllm_eval.preflight.baseline import Baseline, read_answers
from vllm_eval.preflight.engine_release import other_about
from vllm_eval.preflight.reused import CANARY, FROM, Reused, read_reused, reused_to_json
from vllm_eval.records import Attempt
from vllm_eval.store.journal import Journal

UNLIKE = {"unlike": True}
"""Kept instead of the answers where the bases of a run's starts or servers are apart."""
AT_ONCE = 256
"""Attempts written together."""


def copy_answers(found: Baseline, journal: Journal) -> Reused:
    """Copy the answers into the journal of a new run, marked as re-used.

    This comes before there is a manifest, and so a run: what was killed meanwhile is none.

    Raises:
        InputError: an answer cannot be used.
    """
    cases, answers, attempts = set[str](), 0, 0
    batch: list[Attempt] = []
    own = False
    for answer in read_answers(found):
        cases.add(answer[0].concept_id)
        answers, attempts = answers + 1, attempts + len(answer)
        own = own or not all(attempt.reused for attempt in answer)
        batch += (replace(attempt, reused=True, finished_at=0.0) for attempt in answer)
        if len(batch) >= AT_ONCE:
            journal.append(batch)
            batch = []
    journal.append(batch)
    asked_by = found.itself if own or found.before is None else found.before
    counted = replace(asked_by, answers=answers, attempts=attempts, cases=len(cases))
    return replace(counted, proof=None)


def hold_base(
    recorded: Mapping[str, Any], engine: Engine, config: Config, *, begun: bool
) -> tuple[dict[str, Any], str | None]:
    """Hold an engine that has just started against the one that gave the baseline's answers.

    `begun` says whether an earlier start has answered something of this run.

    Returns what the run's manifest should say of it; and why the answers cannot be used with this
    engine, or None.
    """
    reused = read_reused(recorded)
    if reused is None:
        return {CANARY: _keep(recorded.get(CANARY), engine, begun=begun)}, None
    if why := other_about(_of_base(reused.engine), _of_base(engine.about)):
        return {}, f"the answers of {reused.run} were {why}"
    if config.answering == "scripted":
        return {}, None
    found = _prove(recorded.get(CANARY), engine)
    if found is None:
        return {}, (
            f"the base that {reused.run} asked cannot be compared with this engine's: their "
            "canaries compare different things, or are too noisy"
        )
    if found.away > found.limit:
        return {}, (
            f"the base of this engine answers the canary {found.away:.1e} nats away from the one "
            f"that {reused.run} asked, and noise explains {found.limit:.1e}: it is another base, "
            "or this hardware or setting rounds differently"
        )
    return {FROM: reused_to_json(replace(reused, proof=found))}, None


def _keep(kept: object, engine: Engine, *, begun: bool) -> object:
    """What later runs are held against: the first start's answers, if all others are like them."""
    if begun and not kept:  # nothing is known of the base that answered before
        return None
    first = next(filter(None, engine.base), None)
    kept = kept or (first and to_json(first))
    found = _prove(kept, engine)
    return kept if found and found.away <= found.limit else kept and UNLIKE


def _prove(kept: object, engine: Engine) -> Proof | None:
    """The weakest proof of any server or replica; None if one has none."""
    before = from_json(kept)
    proofs = [before and now and prove_same(before, now) for now in engine.base]
    known = [proof for proof in proofs if proof]
    if not known or len(known) < len(proofs):
        return None
    return max(known, key=lambda proof: proof.away / proof.limit)


def _of_base(about: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine says of itself, but for the models of the students."""
    models = about.get("models")
    return {**about, "models": models and str(models).partition(", ")[0]}
