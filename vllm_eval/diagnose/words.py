"""A diagnosis in words, the same for terminal, Markdown and HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def recovered(remedy: Mapping[str, Any]) -> str:
    """How many failures a remedy would make valid, and how well that is known."""
    if remedy["recovered"] is None:
        return "unknown"
    if remedy["kind"] in ("counted", "measured"):
        return f"{remedy['recovered']:,.0f} ({remedy['kind']})"
    if remedy["kind"] == "at most":
        return f"at most {remedy['recovered']:,.0f}"
    ends = "" if remedy["low"] is None else f" [{remedy['low']:,.1f}, {remedy['high']:,.1f}]"
    return f"about {remedy['recovered']:,.1f}{ends}"


def retried(group: Mapping[str, Any]) -> str:
    """What came of asking again after such a failure."""
    if not group["retried"]:
        return "-"
    return f"{group['then_valid']:,} of {group['retried']:,} valid"


def pattern_line(pattern: Mapping[str, Any]) -> str:
    """What an arm does wrong, where, how often, and what to change; names between backticks."""
    often = f"{pattern['attempts']:,} of {pattern['of']:,} failed attempts"
    place = size = ""
    if pattern["place"]:
        times = "all" if pattern["at_place"] == pattern["attempts"] else f"{pattern['at_place']:,}"
        place = f", {times} of them in `{pattern['place'].replace('`', '')}`"
    if pattern["size"] is not None and pattern["bound"] is not None:
        least = "at least" if pattern["size"] < pattern["bound"] else "at most"
        size = f" (median {pattern['size']:g}, {least} {pattern['bound']})"
    return f"{pattern['what']} in {often}{place}{size}. {pattern['todo']}"
