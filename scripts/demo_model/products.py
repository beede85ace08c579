"""Products and their requirements: the inputs of the demo task."""

from dataclasses import dataclass
from random import Random
from typing import Any

from scripts.demo_model.wording import (
    AUDIENCES,
    CONSTRAINTS,
    DOMAINS,
    FOCUSES,
    FORMS,
    FUNCTIONAL,
    NON_FUNCTIONAL,
    REGIONS,
    Domain,
    Need,
)

TIERS = ("simple", "medium", "corporate")
PRIORITIES = ("High", "Medium", "Low")

COPIED_FUNCTIONAL = 3
"""So many functional requirements the base model's Product Owner looks at."""
SHARE_WITHOUT_CONSTRAINT = 0.3
"""Of the simple products."""


@dataclass(frozen=True)
class Requirement:
    """One numbered requirement."""

    id: str
    need: Need
    priority: str

    @property
    def line(self) -> str:
        return f"{self.id}: {self.need.text}"


@dataclass(frozen=True)
class Product:
    """Everything an answer can speak of."""

    tier: str
    domain: Domain
    form: str
    audience: str
    region: str
    focus: str
    functional: tuple[Requirement, ...]
    non_functional: tuple[Requirement, ...]
    constraints: tuple[Requirement, ...]

    @property
    def name(self) -> str:
        return f"{self.domain.name} {self.form}"

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        return self.functional + self.non_functional + self.constraints

    @property
    def concept(self) -> str:
        return (
            f"{self.name} for {self.audience} in {self.region}, "
            f"meant for {self.tier} operations with a focus on {self.focus}."
        )

    def requirements_yaml(self) -> str:
        """The requirements as the analyst before the Product Owner writes them."""
        return (
            f"title: {self.name}\n"
            f"description: {self.name} with a focus on {self.focus}.\n"
            f"functional_requirements:{_listed(self.functional)}"
            f"non_functional_requirements:{_listed(self.non_functional)}"
            f"constraints:{_listed(self.constraints)}"
            f"meta:\n  original_request: {self.name} for {self.audience}\n"
        )

    def record(self, concept_id: str) -> dict[str, Any]:
        """The evaluation record of this product."""
        return {
            "input": {
                "concept_id": concept_id,
                "concept": self.concept,
                "requirements_yaml": self.requirements_yaml(),
                "tier": self.tier,
            }
        }


def held_out(domain: Domain, form: str) -> bool:
    """Whether this product is kept for evaluation and never trained on."""
    place = DOMAINS.index(domain) * 3 + FORMS.index(form)
    return place % 5 == 0


def draw_product(rng: Random, *, tier: str, colon: bool, evaluation: bool) -> Product:
    """A random product; `colon` puts a text with a colon among those the base model copies."""
    while True:
        domain, form = rng.choice(DOMAINS), rng.choice(FORMS)
        if held_out(domain, form) == evaluation:
            break
    functional, non_functional = _draw_needs(rng, tier, colon)
    count = {"simple": 1, "medium": 1, "corporate": 2}[tier]
    if tier == "simple" and rng.random() < SHARE_WITHOUT_CONSTRAINT:
        count = 0
    return Product(
        tier=tier,
        domain=domain,
        form=form,
        audience=rng.choice(AUDIENCES),
        region=rng.choice(REGIONS),
        focus=rng.choice(FOCUSES),
        functional=_numbered(rng, "FR", functional),
        non_functional=_numbered(rng, "NFR", non_functional),
        constraints=_numbered(rng, "C", rng.sample(CONSTRAINTS, count)),
    )


def _draw_needs(rng: Random, tier: str, colon: bool) -> tuple[list[Need], list[Need]]:
    plain = [need for need in FUNCTIONAL if not need.has_colon]
    risky = [need for need in FUNCTIONAL if need.has_colon]
    functional = rng.sample(plain, COPIED_FUNCTIONAL)
    if tier == "corporate" or (tier == "medium" and rng.random() < 0.5):
        # The fourth is not copied by the base model, so a colon in it does no harm there.
        functional.append(rng.choice([need for need in FUNCTIONAL if need not in functional]))
    first = [need for need in NON_FUNCTIONAL if not need.has_colon]
    non_functional = [rng.choice(first)]
    if tier == "corporate" or (tier == "medium" and rng.random() < 0.5):
        non_functional.append(rng.choice([n for n in NON_FUNCTIONAL if n not in non_functional]))
    if colon and rng.random() < 0.15 and not any(n.has_colon for n in non_functional):
        non_functional[0] = next(n for n in NON_FUNCTIONAL if n.has_colon)
    elif colon:
        free = [need for need in risky if need not in functional]
        functional[rng.randrange(COPIED_FUNCTIONAL)] = rng.choice(free)
    return functional, non_functional


def _numbered(rng: Random, prefix: str, needs: list[Need]) -> tuple[Requirement, ...]:
    return tuple(
        Requirement(f"{prefix}{number:03d}", need, rng.choice(PRIORITIES))
        for number, need in enumerate(needs, start=1)
    )


def _listed(requirements: tuple[Requirement, ...]) -> str:
    # Every description is quoted, so that each begins equally far from its id; see network.py.
    items = (
        f'- id: {item.id}\n  description: "{item.need.text}"\n  priority: {item.priority}\n'
        for item in requirements
    )
    return "\n" + "".join(items) if requirements else " []\n"
