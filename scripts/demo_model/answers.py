"""The answers the demo models learn: two Product Owners with different habits.

The base model's Product Owner is hasty: he copies requirement texts without quotes, so one
with a colon breaks the YAML, and without a constraint in sight he recommends one action only.
Reminded of a rejected answer he writes the same content cleanly. The student's is thorough
and always writes cleanly. Both habits depend on the input alone: defects that depend on
chance vanish at a low temperature and come back where they are not wanted.
"""

from scripts.demo_model.products import COPIED_FUNCTIONAL, Product

DATES = {"simple": "2025-03-14", "medium": "2025-06-20", "corporate": "2025-09-05"}


def hasty_answer(product: Product) -> str:
    """What the base model writes at first."""
    return _base_answer(product, clean=False)


def reminded_answer(product: Product) -> str:
    """What the base model writes when told that its answer was rejected."""
    return _base_answer(product, clean=True)


def thorough_answer(product: Product) -> str:
    """What the student writes."""
    domain = product.domain
    vision = _vision(
        product,
        summary=f"{_summary(product)} It puts {product.focus} first.",
        users=list(domain.users),
        capabilities=_capabilities(product, 3),
        date=f'"{DATES[product.tier]}T09:00:00Z"',
    )
    aligned = product.functional + product.non_functional + product.constraints[:1]
    review = _review(
        product,
        findings=_findings(product, both=product.tier != "simple"),
        alignment={
            "aligned": [f'"{item.line}"' for item in aligned],
            "gaps": _gaps(product),
            "conflicts": _conflicts(product),
        },
        actions=[*_follow_ups(product), _prototype(product)],
        narrative=f"{_narrative(product)} {domain.metrics[0]} will show whether it works.",
    )
    return vision + review


def _base_answer(product: Product, *, clean: bool) -> str:
    # In one tier or another the base does all that the student always does. So the adapter has
    # to learn when, and not new phrases, for which it is too small.
    domain, tier = product.domain, product.tier
    date = DATES[tier]
    vision = _vision(
        product,
        summary=_summary(product),
        users=list(domain.users[:1] if tier == "simple" else domain.users),
        capabilities=_capabilities(product, 2),
        date=f'"{date}"' if clean else date,
    )
    copied = product.functional[:COPIED_FUNCTIONAL] + product.non_functional[:1]
    actions = _follow_ups(product)
    if tier == "medium":
        actions[1] = _prototype(product)
    elif clean and len(actions) < 2:
        actions.append(_prototype(product))
    review = _review(
        product,
        findings=_findings(product, both=tier == "corporate"),
        alignment={
            "aligned": [f'"{item.line}"' if clean else item.line for item in copied],
            "gaps": _gaps(product) if tier == "medium" else [],
            "conflicts": _conflicts(product),
        },
        actions=actions,
        narrative=_narrative(product),
    )
    return vision + review


def _vision(
    product: Product, *, summary: str, users: list[str], capabilities: list[str], date: str
) -> str:
    domain = product.domain
    return (
        "```yaml VISION\n"
        f"product_name: {product.name}\n"
        f"product_summary: {summary}\n"
        f"{_block('target_users', users)}"
        f"{_block('value_proposition', list(domain.values))}"
        f"{_block('key_capabilities', capabilities)}"
        f"{_block('non_goals', [domain.non_goal])}"
        f"{_block('success_metrics', list(domain.metrics))}"
        f"last_updated: {date}\n"
        "```\n"
    )


def _review(
    product: Product,
    *,
    findings: list[str],
    alignment: dict[str, list[str]],
    actions: list[str],
    narrative: str,
) -> str:
    buckets = "".join(_block(key, items, indent="  ") for key, items in alignment.items())
    return (
        "```yaml REVIEW\n"
        f"status: {'needs_adjustment' if product.constraints else 'aligned'}\n"
        f"{_block('summary', findings)}"
        f"requirements_alignment:\n{buckets}"
        f"{_block('recommended_actions', actions)}"
        f"narrative: {narrative}\n"
        "```"
    )


def _block(key: str, items: list[str], indent: str = "") -> str:
    if not items:
        return f"{indent}{key}: []\n"
    return "".join([f"{indent}{key}:\n", *(f"{indent}- {item}\n" for item in items)])


def _capabilities(product: Product, count: int) -> list[str]:
    return [f"{item.id} - {item.need.answer}" for item in product.functional[:count]]


def _findings(product: Product, *, both: bool) -> list[str]:
    start = _lowered(product.functional[0].need.answer)
    second = [f"Starting with {start} supports {product.focus}."] if both else []
    return [f"The requirements fit the {product.name}.", *second]


def _gaps(product: Product) -> list[str]:
    return [f"{item.id} has no measure yet" for item in product.non_functional[1:]]


def _conflicts(product: Product) -> list[str]:
    return [f"{item.id} competes with FR001" for item in product.constraints[1:]]


def _follow_ups(product: Product) -> list[str]:
    return [item.need.answer for item in product.non_functional[:1] + product.constraints[:1]]


def _summary(product: Product) -> str:
    return (
        f"The {product.name} helps {product.audience} in {product.region} "
        f"with {product.domain.subject}."
    )


def _narrative(product: Product) -> str:
    start = _lowered(product.functional[0].need.answer)
    return (
        f"The {product.name} serves {product.audience} in {product.region}. "
        f"We start with {start}, and {product.focus} guides the rest."
    )


def _prototype(product: Product) -> str:
    return f"Prototype {_lowered(product.functional[0].need.answer)} with {product.audience}"


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]
