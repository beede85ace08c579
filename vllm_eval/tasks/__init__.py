"""What is asked and how an answer is graded: the Task protocol and the tasks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vllm_eval.errors import InputError
from vllm_eval.records import Case, Grade, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vllm_eval.tasks.declaration import Declaration

__all__ = ["Case", "Grade", "Problem", "Task", "open_stored", "open_task"]
"""What a task's own module and tests may rely on."""


class Task(Protocol):
    """A prompt, a contract and a metric. No method learns the arm, so none can favour one."""

    @property
    def name(self) -> str:
        """The name it is configured by."""

    @property
    def version(self) -> str:
        """Changes whenever the same answer could be graded differently."""

    @property
    def prompt_sha256(self) -> str:
        """Identifies what is put to the model, apart from the case."""

    @property
    def declaration(self) -> Declaration:
        """What the cases must hold and which shape an answer must have."""

    @property
    def dataset(self) -> Path | None:
        """Its own cases, used where none are given."""

    @property
    def grades(self) -> bool:
        """Whether answers can be graded: not where that would run code only a stored run names."""

    def prompt(self, case: Case, problem: Problem | None = None) -> str:
        """The text put to the model; with `problem`, a retry that names what was wrong."""

    def grade(self, case: Case, text: str) -> Grade:
        """Parse, check and score one answer. No answer makes it raise."""

    def blocks(self, text: str) -> Mapping[str, str]:
        """The raw text of each block that an answer holds, by its label in lower case."""


def open_task(name: str, template: Path | None = None) -> Task:
    """A task that the user names, with its prompt from `template` where one is given.

    Args:
        name: a shipped task, one that is installed (entry points of `vllm_eval.tasks`), or the
            path of a declaration or of a folder with a `task.yaml`. Its module is run.
        template: Jinja2 file that replaces the task's prompt.

    Raises:
        ConfigError: there is no such task, or it cannot be used.
    """
    from vllm_eval.tasks.sources import find_source
    from vllm_eval.tasks.task import open_declared

    return open_declared(find_source(name), template)


def refuse_file(name: str, where: Path) -> None:
    """Do nothing where a task is known by its name.

    Raises:
        InputError: `where` is stored with a file as its task, or one that is not installed here.
    """
    from vllm_eval.tasks.sources import is_named

    if not is_named(name):
        msg = f"{where}: its task {name!r} is not known by name here, and a file that only a stored"
        raise InputError(f"{msg} run names is not run; if you trust it, give --task {name}")


def open_stored(folder: Path, name: str) -> Task:
    """The task of a stored run, without running any code that only the run names.

    A shipped or installed task is opened as such, as long as the run's copy of the declaration is
    the same. Of any other there is the copy: answers can be shown, and graded where that takes no
    module.

    Args:
        folder: of the run.
        name: of the task, as the run was configured with it.

    Raises:
        InputError: the task is neither known by name nor declared in the folder.
    """
    from vllm_eval.tasks.declaration import TASK_FILE, read_declaration
    from vllm_eval.tasks.sources import is_named
    from vllm_eval.tasks.task import outline

    path = folder / TASK_FILE
    copy = read_declaration(path) if path.is_file() else None
    if is_named(name):
        task = open_task(name)
        if copy is None or copy == task.declaration:
            return task
    if copy is None:
        msg = (
            f"{folder}: its task {name!r} is not known by name here, and the run lacks {TASK_FILE}"
        )
        raise InputError(f"{msg}; put the file back")
    return outline(copy)
