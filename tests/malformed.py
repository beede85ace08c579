"""A corpus of malformed answers, each one edit away from a good one, modelled on real patterns."""

from __future__ import annotations

from dataclasses import dataclass

GOOD = """\
```yaml VISION
product_name: Harbour Berths
product_summary: A booking service for small harbours that shows free berths and takes payment.
target_users:
- harbour masters
- visiting sailors
value_proposition:
- fewer phone calls
- fuller berths
key_capabilities:
- show free berths
- take a deposit
non_goals: []
success_metrics:
- bookings a week
- empty nights
last_updated: "2025-05-01T10:00:00Z"
```
```yaml REVIEW
status: aligned
summary:
- The scope is clear.
- Payment needs a decision.
requirements_alignment:
  aligned:
  - "FR001: berths are shown"
  - "FR002: deposits are taken"
  gaps:
  - "NFR001: no target is set"
  conflicts: []
recommended_actions:
- Choose a payment provider
- Set a response time
narrative: The requirements carry the vision and leave two decisions open.
```
"""


@dataclass(frozen=True)
class Malformed:
    """One edit of the good answer, and the reason it must be rejected for."""

    name: str
    old: str
    new: str
    reason: str

    @property
    def text(self) -> str:
        """The answer after the edit."""
        assert GOOD.count(self.old) >= 1, self.name
        return GOOD.replace(self.old, self.new, 1)


def _missing(key: str, line: str) -> Malformed:
    return Malformed(f"no {key}", line, "", f"review_missing_{key}")


V, R = "invalid_vision_yaml", "invalid_review_yaml"
NO_BLOCK = "missing_yaml_blocks"
ACTIONS = "insufficient_recommended_actions"
STATUS = "status: aligned\n"
NARRATIVE = "narrative: The requirements carry the vision and leave two decisions open.\n"
SUMMARY = "summary:\n- The scope is clear.\n- Payment needs a decision.\n"
TWO_ACTIONS = "recommended_actions:\n- Choose a payment provider\n- Set a response time\n"
GAPS = '  gaps:\n  - "NFR001: no target is set"\n'
ALIGNED = '  aligned:\n  - "FR001: berths are shown"\n  - "FR002: deposits are taken"\n'
BUCKETS = f"{ALIGNED}{GAPS}  conflicts: []\n"

CORPUS = (
    # no blocks, or not the ones asked for
    Malformed("empty answer", GOOD, "", NO_BLOCK),
    Malformed("prose instead of blocks", GOOD, "Sure! Here is what I think.", NO_BLOCK),
    Malformed("refusal", GOOD, "I cannot help with that.", NO_BLOCK),
    Malformed("json instead of yaml", GOOD, '```json\n{"product_name": "x"}\n```', NO_BLOCK),
    Malformed("label in lower case", "yaml VISION", "yaml vision", NO_BLOCK),
    Malformed("label with a colon", "yaml REVIEW", "yaml REVIEW:", NO_BLOCK),
    Malformed("label missing", "```yaml REVIEW", "```yaml", NO_BLOCK),
    Malformed("label as heading", "```yaml REVIEW", "## REVIEW\n```yaml", NO_BLOCK),
    Malformed("language in capitals", "```yaml VISION", "```YAML VISION", NO_BLOCK),
    Malformed("language yml", "```yaml VISION", "```yml VISION", NO_BLOCK),
    Malformed("two backticks", "```yaml VISION", "``yaml VISION", NO_BLOCK),
    Malformed("tildes as fence", "```yaml VISION", "~~~yaml VISION", NO_BLOCK),
    Malformed("space before the language", "```yaml VISION", "``` yaml VISION", NO_BLOCK),
    Malformed("text after the label", "yaml REVIEW\n", "yaml REVIEW of it\n", NO_BLOCK),
    Malformed("last fence not closed", "open.\n```\n", "open.\n", NO_BLOCK),
    Malformed("cut in the review", GOOD[GOOD.index("  gaps:") :], "", NO_BLOCK),
    Malformed("cut in the vision", GOOD[GOOD.index("non_goals") :], "", NO_BLOCK),
    Malformed("blank review", GOOD[GOOD.index(STATUS) : -4], "  \n", NO_BLOCK),
    Malformed("both labels on one fence", "yaml VISION", "yaml VISION REVIEW", NO_BLOCK),
    Malformed("vision twice, no review", "yaml REVIEW", "yaml VISION", NO_BLOCK),
    # YAML that does not parse
    Malformed("colon in plain text", "summary: A booking", "summary: Berths: a booking", V),
    Malformed("colon in the narrative", "narrative: The", "narrative: In short: the", R),
    Malformed("continuation not indented", "harbours that shows", "harbours\nthat shows", V),
    Malformed("narrative goes on unindented", "carry the", "carry\nthe", R),
    Malformed("tab as indentation", '  - "FR001', '\t- "FR001', R),
    Malformed("quote not closed", 'are shown"', "are shown", R),
    Malformed("text after a quoted item", 'shown"', 'shown" as asked', R),
    Malformed("apostrophe opens a quote", "- The scope is", "- 'The scope's", R),
    Malformed("bracket not closed", "conflicts: []", "conflicts: [", R),
    Malformed("brace not closed", "non_goals: []", "non_goals: {", V),
    Malformed("at sign at the start", "- fewer phone", "- @fewer phone", V),
    Malformed("backtick at the start", "- fewer phone calls", "- `fewer phone calls", V),
    Malformed("percent at the start", "- fewer phone", "- %fewer phone", V),
    Malformed("asterisks as emphasis", "- fewer phone", "- **fewer** phone", V),
    Malformed("unknown anchor", "- fewer phone calls", "- *fewer", V),
    Malformed("exclamation tag", "- fewer phone", "- !fewer phone", V),
    Malformed("python tag", "Harbour Berths", "!!python/object/apply:os.system [ls]", V),
    Malformed("list item dedented", '  - "FR002', '- "FR002', R),
    Malformed("key dedented by one", "  gaps:", " gaps:", R),
    Malformed("key without its space", "status: aligned", "status:aligned", R),
    Malformed("two documents", "status: aligned", "status: aligned\n---\nmore: text", R),
    Malformed("control character", "The scope", "The \x07 scope", R),
    Malformed("nul", "The scope", "The \0 scope", R),
    Malformed("impossible date", '"2025-05-01T10:00:00Z"', "2025-13-45", V),
    Malformed("a list as key", STATUS, "? [a]\n: b\n" + STATUS, R),
    Malformed("nested beyond reason", "non_goals: []", "non_goals: " + "[" * 99 + "]" * 99, V),
    Malformed("a number without end", "non_goals: []", "non_goals: " + "9" * 5000, V),
    # blocks of the wrong kind
    Malformed(
        "vision is a text", GOOD[15 : GOOD.index("```\n```")], "text\n", "vision_not_mapping"
    ),
    Malformed("review is a list", GOOD[GOOD.index(STATUS) : -4], "- a\n", "review_not_mapping"),
    Malformed("review is a comment", GOOD[GOOD.index(STATUS) : -4], "# a\n", "review_not_mapping"),
    # keys
    Malformed("no name", "product_name: Harbour Berths\n", "", "vision_missing_product_name"),
    Malformed("empty name", "Harbour Berths", '""', "vision_missing_product_name"),
    Malformed("other name for the name", "product_name", "name", "vision_missing_product_name"),
    Malformed("empty summary", GOOD.splitlines()[2][17:], "", "vision_missing_product_summary"),
    _missing("status", STATUS),
    _missing("summary", SUMMARY),
    _missing("requirements_alignment", "requirements_alignment:\n" + BUCKETS),
    _missing("recommended_actions", TWO_ACTIONS),
    _missing("narrative", NARRATIVE),
    Malformed("alignment is a list", BUCKETS, "- FR001\n", "alignment_not_dict"),
    Malformed("alignment is null", BUCKETS, "", "alignment_not_dict"),
    Malformed("no aligned", ALIGNED, "", "alignment_missing_aligned"),
    Malformed("no gaps", GAPS, "", "alignment_missing_gaps"),
    Malformed("gaps without items", GAPS, "  gaps:\n", "alignment_missing_gaps"),
    Malformed("no conflicts", "  conflicts: []\n", "", "alignment_missing_conflicts"),
    Malformed("gaps is a text", GAPS, "  gaps: none\n", "alignment_gaps_not_list"),
    Malformed(
        "conflicts is a text", "conflicts: []", "conflicts: no", "alignment_conflicts_not_list"
    ),
    Malformed("ids with a dash", BUCKETS, BUCKETS.replace("R00", "R-00"), "no_requirement_ids"),
    Malformed("ids of one digit", BUCKETS, BUCKETS.replace("R00", "R"), "no_requirement_ids"),
    Malformed(
        "no ids", BUCKETS, "  aligned: []\n  gaps: []\n  conflicts: []\n", "no_requirement_ids"
    ),
    Malformed("one action", "- Set a response time\n", "", ACTIONS),
    Malformed("actions as text", TWO_ACTIONS, "recommended_actions: decide soon\n", ACTIONS),
    Malformed("no actions", TWO_ACTIONS, "recommended_actions: []\n", ACTIONS),
    Malformed(
        "narrative too long",
        NARRATIVE,
        "narrative: " + "word " * 121 + "\n",
        "narrative_length_exceeded",
    ),
    Malformed("narrative is a list", NARRATIVE, "narrative: [a, b]\n", "narrative_length_exceeded"),
    Malformed("narrative is null", NARRATIVE, "narrative:\n", "narrative_length_exceeded"),
)
