"""Where a task comes from: shipped, installed by another package, or a file; and its module.

A module is code. It runs if the user names its task, or installed it. Code that only a stored run
folder names never runs (`vllm_eval.tasks.open_stored`).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import ConfigError, EvalError, foreign
from vllm_eval.records import Case
from vllm_eval.tasks.declaration import TASK_FILE, Declaration, read_declaration
from vllm_eval.tasks.score import BUILT_IN, Blocks, Measure, built_in

GROUP = "vllm_eval.tasks"
"""Entry points of installed tasks: each names an object that is the path of a declaration."""
CHECK = "check"
"""The function of a module with rules beyond the declared ones."""
_SHIPPED = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Source:
    """A declaration, and where it was found."""

    path: Path
    kind: Literal["shipped", "installed", "file"]
    declaration: Declaration

    def beside(self, key: str, name: str) -> Path:
        """A file that the declaration names, which must be in the declaration's folder.

        Raises:
            ConfigError: it is outside that folder.
        """
        folder = self.path.parent.resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            msg = f"{self.path}: {key}: {name!r} is outside {folder}; put it beside the task"
            raise ConfigError(msg)
        return path


def shipped_names() -> list[str]:
    """The tasks that come with this package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def is_named(name: str) -> bool:
    """Whether a task of this name is shipped or installed."""
    return name in shipped_names() or bool(entry_points(group=GROUP, name=name))


def find_source(name: str) -> Source:
    """The declaration called `name`, or the one in a file or folder of that name.

    Raises:
        ConfigError: there is none, or it declares no task.
    """
    if name in shipped_names():
        path = _SHIPPED / f"{name}.yaml"
        return Source(path, "shipped", read_declaration(path))
    if found := tuple(entry_points(group=GROUP, name=name)):
        path = _installed(name, found[0].load)
        return Source(path, "installed", read_declaration(path))
    given = resolve_path(name)
    path = given / TASK_FILE if given.is_dir() else given
    if given.is_dir() and not path.is_file():
        raise ConfigError(f"task: the folder {given} has no {TASK_FILE} to declare the task")
    if not path.is_file():
        names = sorted({*shipped_names(), *entry_points(group=GROUP).names})
        known = ", ".join(repr(one) for one in names)
        msg = f"task: there is no task {name!r}, and no such file; known by name: {known}"
        raise ConfigError(msg)
    return Source(path, "file", read_declaration(path))


def _installed(name: str, load: Callable[[], Any]) -> Path:
    failed = f"task: the installed task {name!r} cannot be loaded"
    with foreign(lambda error: ConfigError(f"{failed}: {error!r}")):
        found = load()
    if not isinstance(found, str | Path):
        msg = f"task: the entry point {name!r} of {GROUP} must name a path, not {found!r}"
        raise ConfigError(msg)
    return Path(found)


@dataclass(frozen=True, slots=True)
class Grading:
    """What a task grades by, besides its contract."""

    measures: Mapping[str, Measure]
    """By metric part."""
    rule: Callable[..., Any] | None
    """The module's `check`."""
    version: str
    """For a task that is not shipped: changes with its files."""


def built_in_grading(declaration: Declaration) -> Grading:
    """The measures of a declaration that needs no module."""
    measures = {name: built_in(part, declaration) for name, part in declaration.metric.items()}
    return Grading(measures, None, declaration.version)


def open_grading(source: Source) -> Grading:
    """The measures that a declaration names, including its module's.

    Raises:
        ConfigError: the module cannot be run, or lacks a measure; names file and key.
    """
    declaration, module, code = source.declaration, None, b""
    if declaration.module is not None and source.kind == "shipped":
        module = importlib.import_module(f"{__package__}.{Path(declaration.module).stem}")
    elif declaration.module is not None:
        path = source.beside("module", declaration.module)
        try:
            code = path.read_bytes()
        except OSError as error:
            msg = f"{source.path}: module: cannot read {path}: {error.strerror}"
            raise ConfigError(msg) from error
        module = _run(path, code)
    measures = {
        name: built_in(part, declaration)
        if part.measure in BUILT_IN
        else _function(source, module, part.measure, f"metric.{name}.measure")
        for name, part in declaration.metric.items()
    }
    rule = getattr(module, CHECK, None)
    if rule is not None:
        rule = _function(source, module, CHECK, "module")
    version = declaration.version
    if source.kind != "shipped":
        text = declaration.model_dump_json(exclude_defaults=True).encode()
        version += f"+{hashlib.sha256(text + code).hexdigest()[:12]}"
    return Grading(measures, rule, version)


def _run(path: Path, code: bytes) -> ModuleType:
    """The module, from exactly the bytes that the task's version covers."""
    module = ModuleType(f"vllm_eval_task_{hashlib.sha256(code).hexdigest()[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    failed = f"{path}: cannot be run as the task's module"
    with foreign(lambda error: ConfigError(f"{failed}: {error!r}")):
        exec(compile(code, path, "exec"), module.__dict__)  # noqa: S102  the user named it
    return module


def _function(source: Source, module: ModuleType | None, name: str, key: str) -> Callable[..., Any]:
    """A function of the module, wrapped so that its failures name it."""
    function = getattr(module, name, None)
    if not callable(function):
        where = f"not a function of {module.__file__}" if module else "and there is no module"
        msg = f"{source.path}: {key}: {name!r} is none of {', '.join(BUILT_IN)}, {where}"
        raise ConfigError(msg)
    if source.kind == "shipped":
        return function  # type: ignore[no-any-return]

    def called(blocks: Blocks, case: Case) -> object:
        failed = f"{source.path}: {name} fails on an answer to case {case.id!r}"
        with foreign(lambda error: EvalError(f"{failed}: {error!r}; fix the task's module")):
            return function(blocks, case)

    return called
