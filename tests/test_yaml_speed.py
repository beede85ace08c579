"""The fast path of `yaml_blocks` makes the same data and names the same errors as the plain one."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vllm_eval.tasks.parse import _PARSE_ERRORS, _Loader, parse_yaml

WORDS = st.sampled_from(
    [
        *("a", "b: ", "- ", "\n", "\n  ", "\n- ", ": ", "? ", "[", "]", "{", "}", ",", "<<: "),
        *("'x'", '"y"', "!!str ", "!!set ", "!!int ", "!!map ", "! ", "~", "null", "yes", "on"),
        *("1", "0x1f", "1_0", "1:30", ".5", "1e3", ".inf", ".nan", "2024-01-02", "2024-13-02"),
        *("2024-01-02T10:00:00Z", "=", "|\n  t", ">\n  t", "# c", "`", "@", "%", "-", "a: b"),
    ]
)


def plain(text: str) -> object:
    return yaml.load(text, Loader=_Loader)


@given(st.lists(WORDS, max_size=12).map("".join))
def test_any_document_comes_to_the_same_data(text: str) -> None:
    try:
        expected = plain(text)
    except _PARSE_ERRORS:
        assert parse_yaml(text).error is not None
    else:
        parsed = parse_yaml(text)
        assert parsed.error is None
        assert repr(parsed.data) == repr(expected)  # equal, of the same types, in the same order


@pytest.mark.parametrize(
    "text",
    [
        "{a: 1, <<: {b: 2}}",
        "<<: [{a: 1}, {a: 2}]",
        "a: &x {b: 1}\nc: *x",
        "a: &x 1\nb: {<<: {c: *x}}",
        "? [1]\n: 2",
        "? 2024-01-01\n: a",
        "=: 1",
        "'<<': 1",
        "a: !!omap [b: 1, c: 2]",
        "!!set {a, b}",
        "a: 1\na: 2",
        "",
        "--- |\n  text\n",
    ],
)
def test_a_rare_construct_comes_to_the_same_data(text: str) -> None:
    try:
        expected = plain(text)
    except yaml.YAMLError:
        assert parse_yaml(text).error is not None
    else:
        assert repr(parse_yaml(text).data) == repr(expected)


def test_of_several_errors_the_plain_loader_names_the_one() -> None:
    text = "a: {<<: 7}\nb: 2024-13-01\n<<: 8"
    with pytest.raises(yaml.MarkedYAMLError) as error:
        plain(text)
    mark = error.value.problem_mark
    assert mark is not None
    parsed = parse_yaml(text)
    assert (parsed.error, parsed.line, parsed.column) == (
        error.value.problem,
        mark.line + 1,
        mark.column + 1,
    )
