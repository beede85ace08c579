"""`product_owner_metric`: the score of a product owner's answer, in [0, 1].

Source: `product_owner.md`, section "Metric": four parts of at most 30 points, their sum divided by
120 (`product_owner.yaml` has the weights). Recorded scores are reproduced to 1e-9, so each oddity
is deliberate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from vllm_eval.records import Case
from vllm_eval.tasks.parse import parse_yaml
from vllm_eval.tasks.score import Blocks

BUCKETS = ("aligned", "gaps", "conflicts")
PART_POINTS = 30
MIN_OVERLAP = 0.3
VISION_LISTS = ("target_users", "value_proposition", "key_capabilities", "success_metrics")
STATUSES = ("aligned", "needs_adjustment", "misaligned")

_TOKEN = re.compile(r"[A-Za-z0-9ÁÉÍÓÚáéíóúÑñ]+")
_STOPWORDS = frozenset(
    (
        *("the", "and", "with", "para", "con", "los", "las", "una", "unos", "unas"),
        *("user", "users", "system", "systems", "api", "apis", "rest", "crud"),
    )
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of the requirements, for the coverage measure."""

    id: str
    """Lower case; may be empty."""
    tokens: frozenset[str]
    """Of its description."""


def schema(blocks: Blocks, _case: Case) -> float:
    """How complete the requested shape is."""
    vision, review = blocks["VISION"], blocks["REVIEW"]
    alignment = review.get("requirements_alignment")
    buckets = {} if alignment is None else alignment
    passed = [
        _length(vision.get("product_name")) > 0,
        _length(vision.get("product_summary")) >= 40,
        *(_count(vision.get(key)) > 0 for key in VISION_LISTS),
        isinstance(vision.get("non_goals"), list),
        _is_iso_date(vision.get("last_updated")),
        review.get("status") in STATUSES if isinstance(review.get("status"), str) else False,
        _count(review.get("summary")) > 0,
        isinstance(buckets, dict),
        *(isinstance(buckets, dict) and isinstance(buckets.get(b), list) for b in BUCKETS),
        _count(review.get("recommended_actions")) > 0,
        _length(review.get("narrative")) >= 40,
    ]
    return PART_POINTS * sum(passed) / len(passed)


def vision_completeness(blocks: Blocks, _case: Case) -> float:
    """How much content the vision has."""
    vision = blocks["VISION"]
    points = sum(_steps(_count(vision.get(key)), (2, 6), (1, 3)) for key in VISION_LISTS)
    return points + _steps(_length(vision.get("product_summary")), (120, 6), (60, 3))


def requirements_alignment(blocks: Blocks, case: Case) -> float:
    """How many requirements the review mentions, and whether it finds gaps."""
    return _alignment(blocks["REVIEW"], read_requirements(case.inputs["requirements_yaml"]))


def review_specificity(blocks: Blocks, _case: Case) -> float:
    """How much content the review has."""
    review = blocks["REVIEW"]
    alignment = review.get("requirements_alignment")
    buckets = alignment if isinstance(alignment, dict) else {}
    points = _steps(_count(review.get("summary")), (2, 6), (1, 3))
    points += _steps(_count(review.get("recommended_actions")), (2, 12), (1, 6))
    for bucket in ("gaps", "conflicts"):
        items = buckets.get(bucket)
        if isinstance(items, list):
            points += 6 if items else 2
    return points + _steps(_length(review.get("narrative")), (160, 6), (80, 3))


@lru_cache(maxsize=1024)  # every arm and attempt of a case needs it
def read_requirements(requirements_yaml: str) -> tuple[Requirement, ...]:
    """The entries of a requirements document that have an id or a description.

    A document that does not parse has none; `inputs.cases` refuses such records earlier.
    """
    document = parse_yaml(requirements_yaml).data
    if not isinstance(document, dict):
        return ()
    found = []
    for section in ("functional_requirements", "non_functional_requirements", "constraints"):
        entries = document.get(section)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                identifier, description = _stripped(entry, "id"), _stripped(entry, "description")
                if identifier or description:
                    found.append(Requirement(identifier.lower(), _tokens(description)))
    return tuple(found)


def _alignment(review: Mapping[object, object], requirements: tuple[Requirement, ...]) -> float:
    if not requirements:
        return 0.0
    alignment = review.get("requirements_alignment")
    buckets = alignment if isinstance(alignment, dict) else {}
    segments = _segments(review, buckets)
    joined = " ".join(segments).lower()
    token_sets = [_tokens(segment) for segment in segments]
    covered = sum(_is_covered(requirement, joined, token_sets) for requirement in requirements)
    points = _coverage_points(covered / len(requirements))
    points += 8 * min(_count(buckets.get("aligned")) / len(requirements), 1)
    points += 3 if _count(buckets.get("gaps")) else 0
    return points + (3 if _count(buckets.get("conflicts")) else 0)


def _segments(review: Mapping[object, object], buckets: Mapping[object, object]) -> list[str]:
    segments = []
    for key in ("summary", "recommended_actions"):
        value = review.get(key)
        segments += _items(value) if not isinstance(value, str) else [value]
    for bucket in BUCKETS:
        segments += _items(buckets.get(bucket))
    narrative = review.get("narrative")
    return [*segments, narrative] if isinstance(narrative, str) else segments


def _is_covered(requirement: Requirement, joined: str, token_sets: list[frozenset[str]]) -> bool:
    if requirement.id and requirement.id in joined:
        return True
    needed = len(requirement.tokens)
    return any(
        (shared := len(requirement.tokens & tokens)) > 0 and shared / needed >= MIN_OVERLAP
        for tokens in token_sets
    )


def _coverage_points(coverage: float) -> float:
    if coverage >= 0.85:
        return 22
    if coverage >= 0.7:
        return 16 + (coverage - 0.7) / 0.15 * 6
    if coverage >= 0.5:
        return 8 + (coverage - 0.5) / 0.2 * 8
    return 8 * coverage


def _steps(value: int, *steps: tuple[int, int]) -> int:
    """The points of the highest step that `value` reaches, else 0."""
    return next((points for least, points in steps if value >= least), 0)


def _length(value: object) -> int:
    return len(value.strip()) if isinstance(value, str) else 0


def _count(value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def _items(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _tokens(text: str) -> frozenset[str]:
    return frozenset(map(str.lower, _TOKEN.findall(text))) - _STOPWORDS


def _stripped(entry: dict[object, object], key: str) -> str:
    value = entry.get(key)
    return "" if value is None else str(value).strip()


def _is_iso_date(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return False
    return True
