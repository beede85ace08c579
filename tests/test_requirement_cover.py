"""Which entries count as requirements, and what in a review covers one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import po_inputs
from vllm_eval.records import Case

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Answers
    from vllm_eval.tasks import Task

    Points = Callable[..., float]


@pytest.fixture
def points(task: Task, answers: Answers) -> Points:
    """Points of the alignment part for a review against requirements in YAML."""

    def score(requirements: str, **review: object) -> float:
        case = Case("K1", 1, None, po_inputs("c", requirements))
        text = answers.text("{}", review or "{}")
        return task.grade(case, text).parts["requirements_alignment"]

    return score


def one(description: str, identifier: str = "") -> str:
    """Requirements with one entry."""
    return f"constraints:\n- {{id: '{identifier}', description: '{description}'}}\n"


@pytest.mark.parametrize(
    "section", ["functional_requirements", "non_functional_requirements", "constraints"]
)
def test_each_of_the_three_sections_counts(points: Points, section: str) -> None:
    assert points(f"{section}:\n- {{id: R77}}\n", summary=["R77"]) == 22


@pytest.mark.parametrize(
    "entry",
    [
        "a text about R77",
        "{title: R77}",
        "{id: '  ', description: ' '}",
        "{id: null, description: null}",
        "[R77]",
    ],
)
def test_an_entry_without_id_and_description_does_not_count(points: Points, entry: str) -> None:
    requirements = f"constraints:\n- {entry}\n- {{id: Q01}}\n"
    assert points(requirements, summary=["Q01"]) == 22


@pytest.mark.parametrize("entry", ["{id: Z99}", "{description: entirely different matters}"])
def test_an_id_or_a_description_alone_makes_an_entry_count(points: Points, entry: str) -> None:
    assert points(f"constraints:\n- {entry}\n- {{id: Q01}}\n", summary=["Q01"]) == 8


@pytest.mark.parametrize(
    "requirements",
    [
        "{}",
        "[]",
        "text",
        "other_section: [{id: R77}]",
        "constraints: R77",
        "constraints: {id: R77}",
    ],
)
def test_without_any_entry_the_whole_part_is_zero(points: Points, requirements: str) -> None:
    buckets = {"aligned": ["R77"], "gaps": ["x"], "conflicts": ["y"]}
    assert points(requirements, requirements_alignment=buckets) == 0


@pytest.mark.parametrize(
    "review",
    [
        {"summary": ["see q01"]},
        {"summary": "see Q01"},
        {"recommended_actions": ["do Q01x"]},
        {"recommended_actions": "Q01"},
        {"narrative": "about Q01."},
        {"summary": [{"Q01": "as a key"}]},
        {"summary": [["nested", "Q01"]]},
    ],
)
def test_an_id_covers_wherever_a_segment_holds_it(
    points: Points, review: dict[str, object]
) -> None:
    assert points(one("", "Q01"), **review) == 22


@pytest.mark.parametrize(("bucket", "more"), [("aligned", 8), ("gaps", 3), ("conflicts", 3)])
def test_an_id_covers_in_every_bucket(points: Points, bucket: str, more: int) -> None:
    assert points(one("", "Q01"), requirements_alignment={bucket: ["Q01"]}) == 22 + more


@pytest.mark.parametrize(
    "review",
    [
        {"status": "Q01"},
        {"comment": ["Q01"]},
        {"narrative": ["Q01"]},
        {"summary": {"a": "Q01"}},
        {"requirements_alignment": {"others": ["Q01"]}},
    ],
)
def test_an_id_elsewhere_covers_nothing(points: Points, review: dict[str, object]) -> None:
    assert points(one("", "Q01"), **review) == 0


def test_an_id_split_over_two_segments_is_joined_by_one_space(points: Points) -> None:
    requirements = one("", "Q 01")
    assert (
        points(requirements, summary=["ends in Q", "01 begins"]),
        points(requirements, summary=["ends in Q", " 01 begins"]),
    ) == (22, 0)


TEN = "amber basil cedar delta ember fjord grove heath islet jetty"


@pytest.mark.parametrize(
    ("segment", "covered"),
    [
        ("amber basil cedar", True),
        ("AMBER-basil_cedar", True),
        ("amber basil", False),
        ("amber amber amber", False),
        ("ambers basils cedars", False),
    ],
)
def test_three_tenths_of_the_words_of_a_description_cover_it(
    points: Points, segment: str, covered: bool
) -> None:
    assert points(one(TEN), summary=[segment]) == (22 if covered else 0)


def test_shared_words_must_stand_in_one_segment(points: Points) -> None:
    assert points(one(TEN), summary=["amber basil", "cedar delta"]) == 0


def test_words_cover_although_the_id_is_not_named(points: Points) -> None:
    assert points(one(TEN, "Q01"), narrative="amber basil cedar") == 22


@pytest.mark.parametrize(
    "word",
    [
        "the",
        "and",
        "with",
        "para",
        "con",
        "los",
        "las",
        "una",
        "unos",
        "unas",
        "user",
        "users",
        "system",
        "systems",
        "api",
        "apis",
        "rest",
        "crud",
        "The",
        "APIs",
    ],
)
def test_a_stop_word_shared_covers_nothing(points: Points, word: str) -> None:
    assert points(one(f"{word} granite"), summary=[word]) == 0


@pytest.mark.parametrize("word", ["uno", "for", "de", "username", "resting"])
def test_other_short_words_do_cover(points: Points, word: str) -> None:
    assert points(one(f"{word} granite marble"), summary=[word]) == 22


def test_stop_words_are_not_counted_among_a_descriptions_words(points: Points) -> None:
    # Nine words, three of which count: one shared is a third.
    requirements = one("the user and the system with granite marble slate")
    assert points(requirements, summary=["slate"]) == 22


def test_a_description_of_stop_words_alone_cannot_be_covered(points: Points) -> None:
    assert points(one("the users and the system"), summary=["the users and the system"]) == 0


@pytest.mark.parametrize(
    ("description", "segment", "covered"),
    [
        ("Gestión rápida", "gestión", True),
        ("MAÑANA", "mañana", True),
        ("garçon", "gar", True),
        ("naïve", "naive", False),
        ("25 kg", "25", True),
    ],
)
def test_words_are_runs_of_ascii_and_spanish_letters_and_digits(
    points: Points, description: str, segment: str, covered: bool
) -> None:
    assert points(one(description), summary=[segment]) == (22 if covered else 0)
