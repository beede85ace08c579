"""Malformed answers whose fences or blocks are not there as asked."""

from __future__ import annotations

from tests.careless import (
    CLOSE,
    COLON,
    COLONS,
    FENCE,
    GOOD,
    LABEL,
    NO_ACTIONS,
    NO_BLOCK,
    REVIEW,
    VISION,
    Careless,
    R,
)

FENCES = (
    Careless("language yml", "```yaml VISION", "```yml VISION", FENCE, NO_BLOCK, LABEL),
    Careless("language in capitals", "```yaml REVIEW", "```YAML REVIEW", FENCE, NO_BLOCK, LABEL),
    Careless("label in lower case", "```yaml VISION", "```yaml vision", FENCE, NO_BLOCK, LABEL),
    Careless("label behind a colon", "```yaml VISION", "```yaml:VISION", FENCE, NO_BLOCK, LABEL),
    Careless("label with a colon", "```yaml REVIEW", "```yaml REVIEW:", FENCE, NO_BLOCK, LABEL),
    Careless("label without language", "```yaml VISION", "```VISION", FENCE, NO_BLOCK, LABEL),
    Careless("label in brackets", "```yaml REVIEW", "```yaml [REVIEW]", FENCE, NO_BLOCK, LABEL),
    Careless("label as a comment", "```yaml REVIEW", "```yaml # REVIEW", FENCE, NO_BLOCK, LABEL),
    Careless("space before the language", "```yaml V", "``` yaml V", FENCE, NO_BLOCK, LABEL),
    Careless("two backticks", "```yaml VISION", "``yaml VISION", FENCE, NO_BLOCK, LABEL),
    Careless("tildes", REVIEW, REVIEW.replace("```", "~~~"), FENCE, NO_BLOCK, LABEL),
    Careless(
        "label as a heading above", "```yaml REVIEW", "## REVIEW\n\n```yaml", FENCE, NO_BLOCK, LABEL
    ),
    Careless(
        "label in bold above", "```yaml VISION", "**1. VISION:**\n```", FENCE, NO_BLOCK, LABEL
    ),
    Careless(
        "label as a comment inside", "```yaml VISION", "```yaml\n# VISION", FENCE, NO_BLOCK, LABEL
    ),
    Careless("one fence without a label", "```yaml VISION", "```yaml", FENCE, NO_BLOCK, LABEL),
    Careless(
        "both fences without a label",
        GOOD,
        GOOD.replace(" VISION", "").replace(" REVIEW", ""),
        FENCE,
        NO_BLOCK,
        LABEL,
    ),
    Careless(
        "both fences without a label, in the other order",
        GOOD,
        (REVIEW + VISION).replace(" VISION", "").replace(" REVIEW", ""),
        FENCE,
        NO_BLOCK,
        LABEL,
        after="vision_missing_product_name",
    ),
    Careless(
        "three fences without a label",
        GOOD,
        ("```yaml\nplan: none\n```\n" + GOOD).replace(" VISION", "").replace(" REVIEW", ""),
        FENCE,
        NO_BLOCK,
    ),
    Careless("a label of their own", "```yaml REVIEW", "```yaml ASSESSMENT", FENCE, NO_BLOCK),
    Careless("both labels on one fence", "VISION\n", "VISION REVIEW\n", FENCE, NO_BLOCK),
    Careless(
        "last fence not closed", "begin.\n```\n", "begin.\n", "unclosed_fence", NO_BLOCK, CLOSE
    ),
    Careless(
        "last fence half closed", "begin.\n```\n", "begin.\n``", "unclosed_fence", NO_BLOCK, CLOSE
    ),
    Careless(
        "not closed, and words after it",
        "begin.\n```\n",
        "begin.\nI hope this review helps.\n",
        "unclosed_fence",
        NO_BLOCK,
    ),
    Careless(
        "not closed, in the middle of the review",
        GOOD[GOOD.index("recommended_actions") :],
        "",
        "unclosed_fence",
        NO_BLOCK,
        CLOSE,
        after=NO_ACTIONS,
    ),
    Careless("cut in the last line", "begin.\n```\n", "beg", "truncated", NO_BLOCK, truncated=True),
    Careless(
        "cut in the vision",
        GOOD[GOOD.index("key_cap") :],
        "",
        "truncated",
        NO_BLOCK,
        truncated=True,
    ),
    Careless(
        "cut behind both blocks",
        "status: needs_adjustment",
        "status: needs_adjustment: soon",
        COLON,
        R,
        COLONS,
        truncated=True,
    ),
)
NO_ANSWER = (
    Careless("empty", GOOD, "", "empty", NO_BLOCK),
    Careless("white space", GOOD, " \n\n", "empty", NO_BLOCK),
    Careless("an empty block", REVIEW, "```yaml REVIEW\n\n```\n", "empty", NO_BLOCK),
    Careless("prose", GOOD, "The vision looks sound to me.", "prose", NO_BLOCK),
    Careless("refusal", GOOD, "I am sorry, but I cannot do that.", "prose", NO_BLOCK),
    Careless("blocks without fences", GOOD, GOOD.replace("```", ""), "prose", NO_BLOCK),
    Careless("no review", REVIEW, "", "missing_block", NO_BLOCK),
)
