"""What would help a run, and by how much: counts, estimates, the command and its place in reports.

The estimates are made on attempts written by hand, where their arithmetic can be checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.attempts import attempt, failed, graded, surveyed
from tests.malformed import CORPUS, GOOD
from tests.task_folders import CASE as HAIKU_CASE
from tests.task_folders import write_task
from vllm_eval.compare.summary import summarise
from vllm_eval.config.settings import Config
from vllm_eval.diagnose.diagnosis import UNTRAINED, diagnose
from vllm_eval.diagnose.remedies import Patient, find_remedies
from vllm_eval.diagnose.survey import LOOP, TIMES, Survey, runs_in_circles
from vllm_eval.records import Outcome
from vllm_eval.tasks import open_task

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vllm_eval.diagnose.diagnosis import Diagnosis
    from vllm_eval.diagnose.remedies import Remedy
    from vllm_eval.records import Attempt, Case
    from vllm_eval.tasks import Task

BROKEN = "```yaml VISION\na: b: c\n```\n```yaml REVIEW\na: 1\n```"
LIMITS = Config(max_new_tokens=1000, retries=2)


def survey(
    task: Task,
    rows: Iterable[Attempt],
    repaired: frozenset[tuple[str, str, int]] = frozenset(),
    limits: Config = LIMITS,
) -> Diagnosis:
    """The diagnosis of a run of these attempts."""
    seen, kept = Survey(task.blocks, task.declaration), list(rows)
    for row in kept:
        seen.take(row, repaired=(row.arm, row.concept_id, row.sample) in repaired)
    arms = {
        arm: summarise([_outcome(row) for row in kept if row.final and row.arm == arm])
        for arm in dict.fromkeys(row.arm for row in kept)
    }
    return diagnose(seen, arms, limits, ())


def _outcome(row: Attempt) -> Outcome:
    place = (row.arm, row.concept_id, row.tier, row.sample)
    return Outcome(*place, row.status, row.reason, row.score, row.attempt, first_valid=False)


def remedy(diagnosis: Diagnosis, name: str) -> Remedy:
    (found,) = (one for one in diagnosis.remedies if one.name == name)
    return found


def prose(case: str = "K1", number: int = 1, **changes: Any) -> Attempt:
    return failed(case, number, "missing_yaml_blocks", raw_response="Sure, here it is.", **changes)


def test_clusters_are_counted_by_arm_and_tier(task: Task) -> None:
    rows = [
        prose("K1", final=False),
        prose("K1", 2),
        prose("K2", tier="hard"),
        prose("K1", arm="baseline"),
    ]
    groups = survey(task, rows).clusters
    assert {(g.arm, g.tier): (g.cluster, g.attempts, g.outcomes) for g in groups} == {
        ("pupil", "simple"): ("prose", 2, 1),
        ("pupil", "hard"): ("prose", 1, 1),
        ("baseline", "simple"): ("prose", 1, 1),
    }


def test_a_cluster_tells_what_came_of_asking_again(task: Task) -> None:
    rows = [prose("K1", final=False), prose("K2", final=False), prose("K3", final=False)]
    rows += [attempt("K1", 2), prose("K2", 2), attempt("K3", 2)]
    (group,) = survey(task, rows).clusters
    assert (group.retried, group.then_valid) == (3, 2)


def test_one_more_retry_recovers_what_the_last_one_did(task: Task) -> None:
    """Of four answers that had failed once, one was valid at the second attempt."""
    rows = [prose(f"K{n}", final=False) for n in range(4)]
    rows += [attempt("K0", 2), *(prose(f"K{n}", 2) for n in range(1, 4))]
    found = remedy(survey(task, rows, limits=Config(max_new_tokens=1000, retries=1)), "retries")
    assert (found.setting, found.addressed, found.recovered) == ("--retries 2", 3, 0.75)
    assert found.valid_rate == pytest.approx((1 + 0.75) / 4)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 0.75 < found.high < 3


def test_without_any_retry_nothing_is_known_of_one(task: Task) -> None:
    found = remedy(
        survey(task, [prose()], limits=Config(max_new_tokens=1000, retries=0)), "retries"
    )
    assert (found.setting, found.recovered, found.kind) == ("--retries 1", None, "unknown")


def test_missing_answers_are_not_asked_again_for_their_form(task: Task) -> None:
    rows = [attempt(status="error", reason="engine_error", error="out of memory")]
    assert survey(task, rows).remedies == ()


def test_more_tokens_recover_as_many_as_are_valid_of_those_not_truncated(task: Task) -> None:
    """Three of four uncut attempts are valid; of three truncated answers one runs in circles."""
    rows = [attempt(f"K{n}", output_tokens=600 + n) for n in range(3)]
    rows.append(prose("K3"))
    rows += [prose(f"C{n}", truncated=True) for n in range(2)]
    circles: dict[str, Any] = {
        "raw_response": "Well, then we see it again. " * 50,
        "truncated": True,
    }
    rows.append(failed("C2", reason="missing_yaml_blocks", **circles))
    found = remedy(survey(task, rows), "max_new_tokens")
    assert (found.setting, found.addressed) == ("--max-new-tokens 2048", 3)
    assert found.recovered == pytest.approx(2 * 3 / 4)
    assert "2 of 3 truncated answers do not repeat themselves" in found.basis
    assert "602 at most" in found.basis


def test_answers_that_never_end_are_told_from_those_that_need_room(task: Task) -> None:
    rows = [attempt(output_tokens=200), prose("K2", truncated=True)]
    assert "may never end" in remedy(survey(task, rows), "max_new_tokens").basis
    rows = [attempt(output_tokens=900), prose("K2", truncated=True)]
    assert "may never end" not in remedy(survey(task, rows), "max_new_tokens").basis


@pytest.mark.parametrize(
    ("text", "circles"),
    [
        ("So it is as it was said before. " * 9, True),
        (GOOD, False),
        ("", False),
        ("a" * LOOP, False),
    ],
)
def test_a_text_runs_in_circles_where_its_end_repeats(text: str, circles: bool) -> None:
    assert TIMES > 1
    assert runs_in_circles(text) == circles


def test_a_grammar_excludes_every_form_but_not_truncation(task: Task) -> None:
    rows = [prose("K1"), prose("K2"), prose("K3", truncated=True), attempt("K4")]
    found = remedy(survey(task, rows), "constrain")
    assert (found.kind, found.addressed, found.recovered) == ("at most", 2, 2)
    assert found.valid_rate == pytest.approx(3 / 4)


def test_a_prompt_that_did_not_fit_asks_for_a_longer_context(task: Task) -> None:
    rows = [attempt("K1"), attempt("K2", status="error", reason="prompt_too_long", score=None)]
    found = remedy(survey(task, rows), "max_model_len")
    assert (found.addressed, found.recovered) == (1, 1)


def test_what_repairs_bring_is_unknown_where_they_could_not_be_graded(task: Task) -> None:
    broken = failed("K1", 1, "invalid_vision_yaml", block="VISION", raw_response=BROKEN)
    seen = Survey(task.blocks, task.declaration, repairs=False)
    for row in (broken, prose("K2")):
        seen.take(row)
    arms = {broken.arm: summarise([_outcome(broken), _outcome(prose("K2"))])}
    found = diagnose(seen, arms, LIMITS)
    assert {group.repaired for group in found.clusters} == {None}
    assert remedy(found, "repair").recovered is None
    assert remedy(found, "repair").addressed == 1
    assert "not measured" in remedy(found, "repair").basis


def test_arms_with_answers_still_pending_are_not_held_against_each_other(task: Task) -> None:
    rows = [prose("K1"), prose("K2")]
    seen = surveyed(rows)
    free, held = summarise([_outcome(row) for row in rows]), summarise([_outcome(rows[0])])
    arm = rows[0].arm
    for other, kind, recovered in ((free, "measured", 0.0), (held, "unknown", None)):
        clusters = {"prose": [one for (_, name, _), one in seen.clusters.items() if name == arm]}
        patient = Patient(arm, free, seen.arms[arm], clusters, LIMITS, constrained=other)
        (found,) = (one for one in find_remedies(patient) if one.name == "constrain")
        assert (found.kind, found.recovered) == (kind, recovered)


def test_what_recovers_most_comes_first(task: Task) -> None:
    rows = [prose("K1", final=False), attempt("K1", 2), prose("K2", final=False), prose("K2", 2)]
    assert [one.name for one in survey(task, rows).remedies] == ["constrain", "retries"]


def test_a_pattern_names_the_commonest_place_and_how_far_off_it_is(task: Task, case: Case) -> None:
    by_name = {one.name: one.text for one in CORPUS}
    rows = [graded(task, case, by_name["one action"])] * 2
    rows += [graded(task, case, by_name["no actions"]), prose("K9", arm="baseline")]
    theirs, mine = survey(task, rows).patterns
    assert (mine.arm, theirs.arm) == ("baseline", "pupil")
    assert (theirs.cluster, theirs.place, theirs.at_place) == (
        *("too_few", "REVIEW.recommended_actions", 3),
    )
    assert (theirs.attempts, theirs.of, theirs.size, theirs.bound) == (3, 3, 1, 2)
    assert mine.todo == UNTRAINED
    assert theirs.todo != UNTRAINED


def test_how_far_off_a_pattern_is_is_counted_where_it_is_found(tmp_path: Path) -> None:
    """Both lists have too few items, but not by the same bound."""
    keys = {"lines": {"type": "list", "min_items": 3}, "words": {"type": "list", "min_items": 9}}
    haiku = open_task(str(write_task(tmp_path, blocks={"POEM": {"keys": keys}})))
    sizes = ((1, 9), (2, 9), (3, 8))
    texts = [f"```yaml POEM\nlines: {['a'] * one}\nwords: {['b'] * two}\n```" for one, two in sizes]
    (pattern,) = survey(haiku, [graded(haiku, HAIKU_CASE, text) for text in texts]).patterns
    assert (pattern.attempts, pattern.place, pattern.at_place) == (3, "POEM.lines", 2)
    assert (pattern.size, pattern.bound) == (1.5, 3)
