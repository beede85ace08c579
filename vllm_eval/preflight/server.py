"""Whether the servers of the openai engine are there and list the arms' models."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vllm_eval.engines.openai import wire
from vllm_eval.engines.openai.start import HINTS, Listed, missing_arms, name_models, read_models
from vllm_eval.errors import EngineError
from vllm_eval.preflight.finding import Finding, error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_eval.config.settings import Config
    from vllm_eval.records import Arm

ANSWER_S = 10.0
START = "see that it runs and that its address ends in /v1"


def check_servers(config: Config, arms: Sequence[Arm]) -> list[Finding]:
    """A finding for each server; nothing for an engine that needs none."""
    where = "base_url"
    if config.engine != "openai":
        if config.base_url:
            what = f"names servers, but the engine is {config.engine}"
            return [error(where, what, "give --engine openai, or no --base-url")]
        return []
    if not config.base_url:
        what = "the openai engine needs a server"
        return [error(where, what, "give --base-url http://HOST:8000/v1")]
    if find_spec("openai") is None:
        what = "needs openai, not installed"
        return [error("openai engine", what, "pip install 'vllm_eval[openai]'")]
    findings = [_check_server(url, config, arms) for url in config.base_url]
    away = [finding for finding in findings if finding.level == "warning"]
    if len(away) < len(findings):
        return findings
    return [error(finding.where, finding.what, finding.todo or START) for finding in away]


def _check_server(url: str, config: Config, arms: Sequence[Arm]) -> Finding:
    """One that is away is a warning, while another one is there: the run goes on without it."""
    where = f"server {url}"
    try:
        listed = _ask_models(url)
        absent = missing_arms(listed, config, arms)
        there = [arm for arm in arms if arm not in absent or not config.load_adapters]
        name_models(listed, config, there, url)
    except wire.FaultError as fault:
        if fault.kind in ("forbidden", "refused", "missing"):
            return error(where, fault.words, HINTS.get(fault.kind, START).strip("; "))
        return warning(where, f"does not answer: {fault.words}", START)
    except EngineError as failed:
        what, _, todo = str(failed).removeprefix(f"{url}: ").partition("; ")
        return error(where, what, todo)
    more = f", {', '.join(arm.name for arm in absent)} to be loaded" if absent else ""
    return ok(where, f"lists {', '.join(listed)}{more}")


def _ask_models(url: str) -> dict[str, Listed]:
    from openai import OpenAI

    key = wire.api_key() or wire.NO_KEY
    with (
        OpenAI(base_url=url, api_key=key, max_retries=0, timeout=ANSWER_S) as client,
        wire.faults(),
    ):
        return read_models(client.get("/models", cast_to=object))
