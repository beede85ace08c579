"""The output contract: every reason, the order of the checks, and where a block begins and ends.

Hostile answers are in `test_hostile_yaml.py`, scores in `test_metric.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Answers
    from vllm_eval.records import Case, Problem
    from vllm_eval.tasks import Task

    Grade = Callable[[str], str | None]

BUCKETS = {"aligned": ["FR001: x"], "gaps": [], "conflicts": []}
ABSENT = object()


@pytest.fixture
def reason_of(task: Task, case: Case) -> Grade:
    def grade(text: str) -> str | None:
        problem = task.grade(case, text).problem
        return problem.reason if problem else None

    return grade


@pytest.fixture
def problem_of(task: Task, case: Case, answers: Answers) -> Callable[..., Problem]:
    def grade(vision: object = None, review: object = None) -> Problem:
        problem = task.grade(case, answers.text(vision, review)).problem
        assert problem is not None
        return problem

    return grade


def changed(fields: dict[str, object], key: str, value: object) -> dict[str, object]:
    """`fields` with one key replaced, or removed where the value is ABSENT."""
    rest = {k: v for k, v in fields.items() if k != key}
    return rest if value is ABSENT else rest | {key: value}


def test_a_complete_answer_is_valid(reason_of: Grade, answers: Answers) -> None:
    assert reason_of(answers.text()) is None


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("product_name", ABSENT, "vision_missing_product_name"),
        ("product_name", "", "vision_missing_product_name"),
        ("product_name", None, "vision_missing_product_name"),
        ("product_name", 0, None),
        ("product_name", False, None),
        ("product_summary", ABSENT, "vision_missing_product_summary"),
        ("product_summary", "", "vision_missing_product_summary"),
        ("target_users", ABSENT, None),
        ("last_updated", ABSENT, None),
    ],
)
def test_vision_needs_a_name_and_a_summary_only(
    reason_of: Grade, answers: Answers, key: str, value: Any, reason: str
) -> None:
    assert reason_of(answers.text(vision=changed(answers.vision(), key, value))) == reason


@pytest.mark.parametrize(
    "key", ["status", "summary", "requirements_alignment", "recommended_actions", "narrative"]
)
def test_an_absent_review_key_is_named(reason_of: Grade, answers: Answers, key: str) -> None:
    review = changed(answers.review(), key, ABSENT)
    assert reason_of(answers.text(review=review)) == f"review_missing_{key}"


@pytest.mark.parametrize("key", ["status", "summary"])
def test_a_null_status_or_summary_is_present(reason_of: Grade, answers: Answers, key: str) -> None:
    assert reason_of(answers.text(review=answers.review(**{key: None}))) is None


@pytest.mark.parametrize("value", [None, [], "FR001", 7])
def test_an_alignment_that_is_no_mapping_is_refused(
    reason_of: Grade, answers: Answers, value: object
) -> None:
    review = answers.review(requirements_alignment=value)
    assert reason_of(answers.text(review=review)) == "alignment_not_dict"


@pytest.mark.parametrize("bucket", ["aligned", "gaps", "conflicts"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (ABSENT, "alignment_missing_{}"),
        (None, "alignment_missing_{}"),
        ("FR001", "alignment_{}_not_list"),
        ({}, "alignment_{}_not_list"),
        ("", "alignment_{}_not_list"),
    ],
)
def test_each_bucket_must_be_a_list(
    reason_of: Grade,
    answers: Answers,
    bucket: str,
    value: object,
    reason: str,
) -> None:
    alignment = changed(dict(BUCKETS), bucket, value)
    review = answers.review(requirements_alignment=alignment)
    assert reason_of(answers.text(review=review)) == reason.format(bucket)


@pytest.mark.parametrize("bucket", ["aligned", "gaps", "conflicts"])
def test_an_id_in_any_one_bucket_is_enough(reason_of: Grade, answers: Answers, bucket: str) -> None:
    alignment: dict[str, object] = {"aligned": [], "gaps": [], "conflicts": [], bucket: ["fr01"]}
    assert reason_of(answers.text(review=answers.review(requirements_alignment=alignment))) is None


@pytest.mark.parametrize(
    "item", ["FR01", "nfr123: x", "(REQ10)", "C99.", "con00", "see CON12", {"FR001": "x"}, ["FR22"]]
)
def test_these_items_name_a_requirement(reason_of: Grade, answers: Answers, item: object) -> None:
    review = answers.review(requirements_alignment={**BUCKETS, "aligned": [item]})
    assert reason_of(answers.text(review=review)) is None


@pytest.mark.parametrize(
    "item", ["FR-001", "FR1", "FR 001", "XFR001", "FR001a", "_C01", "NF001", "R001", 12, None]
)
def test_these_items_name_no_requirement(reason_of: Grade, answers: Answers, item: object) -> None:
    review = answers.review(requirements_alignment={**BUCKETS, "aligned": [item]})
    assert reason_of(answers.text(review=review)) == "no_requirement_ids"


def test_an_id_outside_the_buckets_does_not_count(reason_of: Grade, answers: Answers) -> None:
    empty: dict[str, object] = {"aligned": [], "gaps": [], "conflicts": []}
    review = answers.review(requirements_alignment=empty, summary=["FR001", "FR002"])
    assert reason_of(answers.text(review=review)) == "no_requirement_ids"


@pytest.mark.parametrize("value", [None, [], ["one"], "one two", {"a": 1, "b": 2}])
def test_actions_must_be_a_list_of_two(reason_of: Grade, answers: Answers, value: object) -> None:
    review = answers.review(recommended_actions=value)
    assert reason_of(answers.text(review=review)) == "insufficient_recommended_actions"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("word " * 120, None),
        ("word\t\n" * 121, "narrative_length_exceeded"),
        ("", None),
        (None, "narrative_length_exceeded"),
        (["a text"], "narrative_length_exceeded"),
        (5, "narrative_length_exceeded"),
    ],
)
def test_the_narrative_is_a_text_of_at_most_120_words(
    reason_of: Grade, answers: Answers, value: object, reason: str | None
) -> None:
    assert reason_of(answers.text(review=answers.review(narrative=value))) == reason


@pytest.mark.parametrize("block", ["[1, 2]", "just words", "7", "null", "# a comment", "- a: 1"])
def test_a_block_that_is_no_mapping_is_named(
    reason_of: Grade, answers: Answers, block: str
) -> None:
    reasons = (reason_of(answers.text(vision=block)), reason_of(answers.text(review=block)))
    assert reasons == ("vision_not_mapping", "review_not_mapping")


ORDER: list[tuple[str | None, dict[str, object] | str | None, str]] = [
    ("a: [", "b: [", "invalid_vision_yaml"),
    ("[]", "b: [", "invalid_review_yaml"),
    ("[]", "[]", "vision_not_mapping"),
    ("a: 1", "[]", "review_not_mapping"),
    ("a: 1", "b: 1", "vision_missing_product_name"),
    ("product_name: x", "b: 1", "vision_missing_product_summary"),
    (None, "b: 1", "review_missing_status"),
    (None, "narrative: 1", "review_missing_status"),
    (None, "{status: x, narrative: 1}", "review_missing_summary"),
]


@pytest.mark.parametrize(("vision", "review", "reason"), ORDER)
def test_the_first_failing_check_names_the_reason(
    problem_of: Callable[..., Problem], vision: str | None, review: object, reason: str
) -> None:
    assert problem_of(vision, review).reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"requirements_alignment": []}, "alignment_not_dict"),
        ({"requirements_alignment": {"aligned": None, "gaps": 1}}, "alignment_missing_aligned"),
        ({"requirements_alignment": {"aligned": [], "gaps": 1}}, "alignment_gaps_not_list"),
        ({"requirements_alignment": {**BUCKETS, "aligned": []}}, "no_requirement_ids"),
        ({}, "insufficient_recommended_actions"),
    ],
)
def test_the_checks_of_a_review_follow_the_table(
    problem_of: Callable[..., Problem], answers: Answers, changes: dict[str, object], reason: str
) -> None:
    wrong_from_here: dict[str, object] = {"recommended_actions": [], "narrative": None}
    assert problem_of(None, answers.review(**(wrong_from_here | changes))).reason == reason


@pytest.mark.parametrize(
    "edit",
    [
        ("```yaml VISION", "```yaml vision"),
        ("```yaml REVIEW", "```yaml Review"),
        ("```yaml REVIEW", "```yml REVIEW"),
        ("```yaml REVIEW", "``` REVIEW"),
        ("```yaml VISION\n", "```yaml VISION: x\n"),
        ("```yaml REVIEW", "``yaml REVIEW"),
    ],
)
def test_another_spelling_of_the_fence_opens_no_block(
    reason_of: Grade, answers: Answers, edit: tuple[str, str]
) -> None:
    assert reason_of(answers.text().replace(*edit)) == "missing_yaml_blocks"


@pytest.mark.parametrize(
    "edit",
    [
        ("\n", "\r\n"),
        ("```yaml VISION\n", "```yaml   VISION \t \n"),
        ("```yaml REVIEW\n", "```yamlREVIEW\n"),
        ("```yaml REVIEW\n", "```yaml\nREVIEW\n"),
        ("```yaml REVIEW\n", "\n\nSome words. ```yaml REVIEW\n\n"),
        ("```yaml VISION", "Here you are:\n```json\n{}\n```\n```yaml VISION"),
    ],
)
def test_white_space_and_text_around_the_fences_do_not_matter(
    reason_of: Grade, answers: Answers, edit: tuple[str, str]
) -> None:
    assert reason_of(answers.text().replace(*edit)) is None


@pytest.mark.parametrize("text", ["", "no block at all", "```yaml VISION\na: 1\n```"])
def test_an_answer_without_both_blocks_is_missing_them(reason_of: Grade, text: str) -> None:
    assert reason_of(text) == "missing_yaml_blocks"


def test_an_unclosed_fence_is_a_missing_block(reason_of: Grade, answers: Answers) -> None:
    assert reason_of(answers.text().rstrip().removesuffix("```")) == "missing_yaml_blocks"


def test_a_block_ends_at_the_next_fence_even_one_that_opens(
    reason_of: Grade, answers: Answers
) -> None:
    assert reason_of(answers.text().replace("```\n```yaml REVIEW", "```yaml REVIEW")) is None


@pytest.mark.parametrize("blank", ["", " \t", "\n\n  \n"])
def test_a_blank_block_is_missing(reason_of: Grade, answers: Answers, blank: str) -> None:
    assert reason_of(answers.text(review=blank)) == "missing_yaml_blocks"


@pytest.mark.parametrize(
    ("first", "reason"), [("[]", "vision_not_mapping"), ("  ", "missing_yaml_blocks")]
)
def test_the_first_block_of_a_label_counts(
    reason_of: Grade, answers: Answers, first: str, reason: str
) -> None:
    assert reason_of(f"```yaml VISION\n{first}\n```\n{answers.text()}") == reason


def test_the_blocks_may_come_in_either_order(reason_of: Grade, answers: Answers) -> None:
    vision, review = answers.text().split("```\n```yaml REVIEW")
    assert reason_of(f"```yaml REVIEW{review}{vision}```") is None
