"""A good answer, and one careless edit of it with all that is to be found out about the result."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = """\
```yaml VISION
product_name: Allotment Exchange
product_summary: A site where gardeners of one town trade seeds, tools and hours of help, with
  a calendar for the shared plots and a ledger of what everybody owes.
target_users:
- plot holders
- garden committees
value_proposition:
- nobody waits for a tool
- the ledger ends quarrels
key_capabilities:
- trade seeds and hours
- book the shared tools
non_goals:
- selling for money
success_metrics:
- trades a month
- tools returned in time
last_updated: 2025-06-14T09:30:00Z
```
```yaml REVIEW
status: needs_adjustment
summary:
- The scope fits one town.
- The ledger has no owner yet.
requirements_alignment:
  aligned:
  - FR001: trades are at the centre of the vision
  - FR002: booking serves the shared tools
  gaps:
  - NFR001: how fast pages must open is not said
  conflicts: []
recommended_actions:
- Name an owner of the ledger
- Set a target for the pages
narrative: The requirements carry the vision, and two decisions are open before the work
  can begin.
```
"""


@dataclass(frozen=True)
class Careless:
    """One edit of the good answer, and all that is to be found out about the result."""

    name: str
    old: str
    new: str
    cluster: str
    """As `diagnose` calls what went wrong."""
    reason: str
    """For which the answer is rejected as it is."""
    repairs: tuple[str, ...] = ()
    """Those that make it parse; none where it is left as it is."""
    after: str | None = None
    """With repairs: for which the repaired answer is rejected; None where it keeps the contract."""
    truncated: bool = False
    """The answer was truncated at the token limit."""

    @property
    def text(self) -> str:
        """The answer after the edit."""
        assert GOOD.count(self.old) >= 1, self.name
        return GOOD.replace(self.old, self.new, 1)


NO_ACTIONS = "review_missing_recommended_actions"
V, R = "invalid_vision_yaml", "invalid_review_yaml"
NO_BLOCK = "missing_yaml_blocks"
LABEL, CLOSE, SPACES, TABS = (("label_fence",), ("close_fence",), ("odd_spaces",), ("tabs",))
INDENT, QUOTES = ("indent_continuation",), ("quote_quotes",)
SPECIALS, COLONS = ("quote_specials",), ("quote_colons",)
FENCE, COLON, LOOSE = "mislabelled_fence", "unquoted_colon", "unindented_continuation"
RESERVED, BROKEN, INDENTED = "reserved_character", "broken_quotes", "bad_indentation"
VISION = GOOD[: GOOD.index("```yaml REVIEW")]
REVIEW = GOOD[GOOD.index("```yaml REVIEW") :]
ACTIONS = "- Name an owner of the ledger\n- Set a target for the pages\n"
BUCKETS = GOOD[GOOD.index("  aligned:") : GOOD.index("recommended_actions")]
GAPS = "  gaps:\n  - NFR001: how fast pages must open is not said\n"
NARRATIVE = "and two decisions are open before the work\n  can begin.\n"
