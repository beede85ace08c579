"""A tokenizer saved with an adapter: what differs from the base's is said, with what to pass."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.model_folders import write_adapter, write_base, write_json, write_tokenizer
from vllm_eval.config.settings import Config
from vllm_eval.inputs.adapters import read_adapter
from vllm_eval.inputs.base_model import read_base
from vllm_eval.preflight.adapter_tokenizer import check_template, check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_eval.preflight.finding import Finding

    Found = Callable[..., list[Finding]]


@pytest.fixture
def pupil(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "pupil")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def found(pupil: Path, base: Path) -> Found:
    def find(**settings: object) -> list[Finding]:
        config = Config(adapters=(str(pupil),), **settings)  # type: ignore[arg-type]
        return check_tokenizer(read_adapter("pupil", pupil), read_base(str(base)), config)

    return find


def test_an_adapter_without_a_tokenizer_has_no_finding(found: Found) -> None:
    assert found() == []


def test_the_base_s_own_tokenizer_saved_again_has_no_finding(
    pupil: Path, base: Path, found: Found
) -> None:
    held = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    (pupil / "tokenizer.json").write_text(json.dumps(held, indent=4), encoding="utf-8")
    (base / "chat_template.jinja").write_text("{{ messages }}\n", encoding="utf-8")
    marked = "{% generation %}{{ messages }}{%- endgeneration %}"
    write_json(pupil / "tokenizer_config.json", {"chat_template": marked})
    assert found() == []


def test_added_tokens_beyond_the_embeddings_are_an_error(pupil: Path, found: Found) -> None:
    write_tokenizer(pupil, inside=63, beyond=64)
    (finding,) = found()
    assert finding.level == "error"
    assert "1 token (first 'beyond') beyond the 64" in finding.what


def test_added_tokens_are_read_from_the_older_file_too(pupil: Path, found: Found) -> None:
    write_json(pupil / "added_tokens.json", {"<|new|>": 70})
    assert [finding.level for finding in found()] == ["error"]


def test_another_tokenizer_is_a_warning_that_names_the_option(pupil: Path, found: Found) -> None:
    write_tokenizer(pupil, pad=1)
    (finding,) = found()
    assert finding.level == "warning"
    assert f"-c engine_args.tokenizer={pupil}" in finding.todo


@pytest.mark.parametrize(
    "has", ["has a chat template, unlike", "has a chat template other than that of"]
)
@pytest.mark.parametrize("prompt_format", ["raw", "chat"])
def test_another_chat_template_is_a_warning_that_names_the_options(
    pupil: Path, base: Path, found: Found, has: str, prompt_format: str
) -> None:
    (pupil / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    if "other" in has:
        named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
        write_json(base / "tokenizer_config.json", {"chat_template": named})
    (finding,) = found(prompt_format=prompt_format)
    assert finding.level == "warning"
    assert finding.what == f"{has} {base}"
    assert ("--prompt-format chat" in finding.todo) is (prompt_format == "raw")
    assert f"-c engine_args.tokenizer={pupil}" in finding.todo


def test_what_the_warnings_name_ends_them(pupil: Path, found: Found) -> None:
    write_tokenizer(pupil, pad=1)
    (pupil / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert len(found()) == 2
    assert found(prompt_format="chat", engine_args={"tokenizer": str(pupil)}) == []


@pytest.mark.parametrize(
    "held",
    [
        [],
        {"model": 1, "added_tokens": 2},
        {
            "model": {"vocab": [1, [], ["a", 0.5]]},
            "added_tokens": [3, {}, {"content": [], "id": "x"}],
        },
    ],
)
def test_a_tokenizer_of_unknown_form_is_let_be(pupil: Path, found: Found, held: object) -> None:
    write_json(pupil / "tokenizer.json", held)
    assert {finding.level for finding in found()} <= {"warning"}


def test_a_tokenizer_that_is_not_json_is_a_warning(pupil: Path, found: Found) -> None:
    (pupil / "tokenizer.json").write_text("{", encoding="utf-8")
    assert [finding.level for finding in found()] == ["warning"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], None),
        (["enable_thinking"], None),
        (["thinking", "enable_thinking"], "1 argument (first 'thinking') that the chat template"),
        (["enable.thinking"], "(first 'enable.thinking')"),
    ],
)
def test_an_argument_that_the_chat_template_does_not_use_is_a_warning(
    base: Path, arguments: list[str], said: str | None
) -> None:
    template = "{% if enable_thinking %}<think>{% endif %}"
    (base / "chat_template.jinja").write_text(template, encoding="utf-8")
    findings = check_template(base, arguments)
    assert [finding.level for finding in findings] == (["warning"] if said else [])
    assert all(str(said) in finding.what for finding in findings)


def test_without_a_chat_template_in_files_nothing_is_said_of_its_arguments(base: Path) -> None:
    assert check_template(base, ["enable_thinking"]) == []
