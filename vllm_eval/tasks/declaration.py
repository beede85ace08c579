"""A task as data: the file that declares what is asked and what shape an answer must have.

The contract (`tasks.check`), the grammar of constrained decoding (`tasks.grammar`) and the
built-in measures all follow from the same declaration, so they cannot drift apart.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator, BeforeValidator

from vllm_eval.errors import ConfigError
from vllm_eval.tasks.parse import parse_yaml

TASK_FILE = "task.yaml"
"""The declaration in a task's folder, and its copy in a run folder."""
_PATTERNS = {
    "name": r"^[A-Za-z_][A-Za-z0-9_]*$",
    "reason": r"^[a-z][a-z0-9_]*$",
    "label": r"^[A-Z][A-Z0-9_]*$",
    "prefix": r"^[A-Z]+$",
    "file": r"^[^\x00]+$",
}
_WORDS = {
    _PATTERNS["name"]: "must be letters, digits and _",
    _PATTERNS["reason"]: "must be lower-case letters, digits and _",
    _PATTERNS["label"]: "must be capital letters, digits and _",
    _PATTERNS["prefix"]: "must be capital letters",
    _PATTERNS["file"]: "must be the name of a file",
    "missing": "is needed",
    "string_type": "must be a text; put it in quotes",
    "model_type": "must be a mapping, {} at least",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
}
"""Messages for values that fail a pattern, or a type of pydantic."""


def _as_read(word: str) -> str:
    """Refuse a word that YAML would not read as text if a model writes it without quotes."""
    if parse_yaml(word).data != word:
        raise ValueError(f"YAML does not read an unquoted {word!r} as text; choose another word")
    return word


def _bare_no(value: object) -> object:
    """YAML reads an unquoted `no` as false."""
    return "no" if value is False else value


_Name = Annotated[str, Field(pattern=_PATTERNS["name"])]
_Reason = Annotated[str, Field(pattern=_PATTERNS["reason"])]
_Label = Annotated[str, Field(pattern=_PATTERNS["label"])]
_Prefix = Annotated[str, Field(pattern=_PATTERNS["prefix"])]
_File = Annotated[str, Field(pattern=_PATTERNS["file"])]
_Word = Annotated[str, AfterValidator(_as_read)]
_Count = Annotated[int, Field(ge=0)]
_Need = Annotated[Literal["no", "present", "set", "filled"], BeforeValidator(_bare_no)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Ids(_Record):
    """Identifiers such as FR001: one of the prefixes, then digits; case is ignored."""

    prefixes: Annotated[tuple[_Prefix, ...], Field(min_length=1)]
    min_digits: Annotated[int, Field(ge=1, le=20)] = 2
    reason: _Reason = "no_ids"
    """The reason for an answer in which no item names one."""
    example: str = ""
    """The example given to the model, such as `FR001`; made from the first prefix by default."""
    called: str = "an id"
    """What the model is told to call it, with its article."""


class Value(_Record):
    """The declaration of one key's value."""

    type: Literal["text", "date", "choice", "list", "mapping"] = "text"
    """`list` is a list of texts; `date` an ISO 8601 date, or date and time."""
    required: _Need = "filled"
    """`present`: the key is there; `set`: also not null; `filled`: also not empty."""
    lenient: bool = False
    """A different value is not a failure: the shape is asked for, but not part of the contract."""
    of: tuple[_Word, ...] = ()
    """The values of a `choice`."""
    keys: dict[_Name, Value] = {}
    """The keys of a `mapping`, in order."""
    min_items: _Count = 0
    """For a `list`: fewer items are a failure."""
    max_items: Annotated[int, Field(ge=1)] = 12
    """For a `list` under constrained decoding; otherwise more items are not a failure."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    """For a `text`: more words are a failure."""
    ids: Ids | None = None
    """An item of this list, or of a list in this mapping, must name such an identifier."""
    reason: _Reason | None = None
    """The reason for any fault in the value; made from key and fault by default."""
    prefix: _Reason | None = None
    """The first part of a mapping's reasons, instead of label and key."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse keys that do not apply to a value of this type."""
        kinds = {
            "of": ("choice",),
            "keys": ("mapping",),
            "min_items": ("list",),
            "max_items": ("list",),
            "max_words": ("text",),
            "ids": ("list", "mapping"),
            "prefix": ("mapping",),
        }
        for name, types in kinds.items():
            if name in self.model_fields_set and self.type not in types:
                raise ValueError(f"{name} is for a {' or '.join(types)}, and this is a {self.type}")
            if name in ("of", "keys") and self.type in types and not getattr(self, name):
                raise ValueError(f"a {self.type} needs {name}")
        if self.min_items > self.max_items:
            msg = f"min_items is {self.min_items}, and max_items {self.max_items}; raise max_items"
            raise ValueError(msg)
        return self


class Block(_Record):
    """One fenced YAML block: a mapping."""

    keys: Annotated[dict[_Name, Value], Field(min_length=1)]
    """In the order asked for."""


class Input(_Record):
    """One text field of a case, available to the prompt by its name."""

    required: bool = True
    yaml: bool = False
    """It must parse as YAML; otherwise the record is refused."""


class Part(_Record):
    """One part of the metric."""

    points: Annotated[float, Field(gt=0)]
    measure: str
    """A built-in measure (`shape`, `mentions`), or the name of a function of the module."""
    input: _Name | None = None
    """For `mentions`: the input whose identifiers the answer should name."""
    ids: Ids | None = None
    """For `mentions`: what an identifier looks like."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        needed = self.input is not None and self.ids is not None
        if needed != (self.measure == "mentions"):
            msg = "input and ids are what the measure `mentions` needs, and no other takes"
            raise ValueError(msg)
        return self


class Declaration(_Record):
    """A whole task, as its file declares it."""

    name: _Name
    version: str
    """Raise it whenever the same answer could be graded differently."""
    prompt: _File
    """Jinja2 template, a path relative to the declaration."""
    id_keys: tuple[_Name, ...] = ("id", "case_id")
    """Keys of a record that may hold its id if it has no `concept_id`."""
    inputs: Annotated[dict[_Name, Input], Field(min_length=1)]
    blocks: Annotated[dict[_Label, Block], Field(min_length=1)]
    metric: Annotated[dict[_Name, Part], Field(min_length=1)]
    module: _File | None = None
    """Python file with further rules and measures, relative to the declaration."""
    dataset: _File | None = None
    """The cases if no others are given, relative to the declaration."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        for name in self.inputs:
            if name in RESERVED or name in self.id_keys:
                raise ValueError(f"inputs: {name!r} is a key of every record; rename the input")
        for name, part in self.metric.items():
            if part.input is not None and part.input not in self.inputs:
                msg = f"metric.{name}.input: {part.input!r} is none of {sorted(self.inputs)}"
                raise ValueError(msg)
        return self


RESERVED = frozenset(("concept_id", "tier", "prompt", "input", "asked", "reminder"))
"""Names that records and templates already use."""


def read_declaration(path: Path) -> Declaration:
    """The declaration in a file.

    Raises:
        ConfigError: it cannot be read, or declares no task; names file and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"task: cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(msg) from error
    return parse_declaration(text, str(path))


def parse_declaration(text: str, where: str) -> Declaration:
    """The declaration in a text; messages name `where` it comes from.

    The text may come with a run folder of unknown origin, so it is read as untrusted YAML.

    Raises:
        ConfigError: it declares no task; names the place.
    """
    parsed = parse_yaml(text)
    if parsed.error is not None:
        place = f", line {parsed.line}" if parsed.line else ""
        raise ConfigError(f"{where}{place}: not valid YAML: {parsed.error}")
    if not isinstance(parsed.data, dict):
        raise ConfigError(f"{where}: must be a mapping that declares a task")
    try:
        # Through JSON, since strict validation of Python objects refuses a list for a tuple.
        whole = json.dumps(parsed.data, default=str)
        _check_keys(parsed.data)
        return Declaration.model_validate_json(whole)
    except (TypeError, ValueError, RecursionError) as error:  # an alias to itself, say
        raise ConfigError(f"{where}: {_said(error)}") from error


def dump_declaration(declaration: Declaration) -> str:
    """The declaration as YAML that `parse_declaration` reads to the same one."""
    data = declaration.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _check_keys(value: object) -> None:
    """Refuse keys that are not text; JSON would turn some of them into text."""
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r}; put a number, yes, no, on or off in quotes")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_keys(inner)


def _said(error: Exception) -> str:
    """The first fault, with its key; unknown keys come first."""
    if not isinstance(error, ValidationError):
        return f"holds a value that no declaration can have: {error}"
    errors = error.errors(include_url=False)
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest(str(first['loc'][-1]))}"
    if first["type"] == "value_error":
        words = str(first["msg"]).removeprefix("Value error, ")
        return f"{where}: {words}" if where else words
    kind = first["ctx"]["pattern"] if "pattern" in first.get("ctx", {}) else first["type"]
    words = _WORDS.get(kind) or str(first["msg"]).lower()
    given = "" if isinstance(first["input"], dict) else f", not {first['input']!r}"
    return f"{where}: {words}{given}"


def _nearest(wrong: str) -> str:
    records = (Declaration, Input, Block, Value, Ids, Part)
    known = {name for record in records for name in record.model_fields}
    near = difflib.get_close_matches(wrong, sorted(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else "; docs/tasks.md lists the keys"
