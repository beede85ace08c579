"""The templates of all pages: every text is escaped, and what hides in it is named."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import jinja2

from vllm_eval.diagnose.words import pattern_line, recovered, retried
from vllm_eval.report import html_text

PACKAGE = "vllm_eval.report"
STYLE = "report.css"


@cache
def page_templates() -> jinja2.Environment:
    """With the filters that make words of numbers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": html_text.visible,
        "ticked": html_text.ticked,
        "recovered": recovered,
        "retried": retried,
        "pattern_line": pattern_line,
        "score": html_text.score,
        "signed": html_text.signed,
        "percent": html_text.percent,
        "count": html_text.count,
        "seconds": html_text.seconds,
        "chance": html_text.chance,
        "facts": html_text.facts,
        "tone": html_text.tone,
        "span": html_text.span,
    }
    return environment


def style() -> str:
    """The style sheet of all pages."""
    return asset(STYLE)


def asset(name: str) -> str:
    """The text of a style sheet or script of ours."""
    return (files(PACKAGE) / "templates" / name).read_text(encoding="utf-8")
