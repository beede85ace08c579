"""The work, the same for every contestant: forced answer lengths and forced failures.

Which answer is how long and which one fails follows from its request and the seed alone, so that no
order, batch or engine changes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from vllm_eval.records import Problem
from vllm_eval.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.engines.protocol import Engine
    from vllm_eval.records import Case, Completion, Grade, Request

FAILED = "\n[bench: counts as failed]"
PROBLEM = Problem("bench_forced", "the answer breaks the contract, as the benchmark wants it")
"""The same for every forced failure, so that every retry asks the same words."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked for, beside the cases."""

    least: int
    """Fewest tokens of an answer."""
    most: int
    """Most; lengths between the two are equally likely."""
    fail_rate: float = 0.0
    """Share of attempts that count as failed."""
    attempts: int = 1
    """Most attempts per arm and case."""
    seed: int = 42
    """Another one draws other lengths and other failures."""

    @property
    def varies(self) -> bool:
        """Whether answers differ in length."""
        return self.least < self.most

    def length(self, request: Request) -> int:
        """Tokens of the answer to `request`."""
        chance = _chance(f"length|{self.seed}", request)
        return self.least + int(chance * (self.most - self.least + 1))

    def fails(self, request: Request) -> bool:
        """Whether the answer to `request` counts as failed."""
        return _chance(f"verdict|{self.seed}", request) < self.fail_rate


class ForcedEngine:
    """An engine whose answers are marked as failed where the work says so."""

    def __init__(self, engine: Engine, work: Work) -> None:
        """Wrap an open engine."""
        self._engine = engine
        self._work = work
        self._failing: set[str] = set()

    @property
    def capacity(self) -> int:
        """As the engine's."""
        return self._engine.capacity

    @property
    def about(self) -> Mapping[str, str | int]:
        """As the engine's."""
        return self._engine.about

    @property
    def busy(self) -> bool:
        """As the engine's."""
        return self._engine.busy

    def refusal(self, prompt: str) -> str | None:
        """As the engine's."""
        return self._engine.refusal(prompt)

    def submit(self, requests: Sequence[Request]) -> None:
        """Note which will fail, and pass all on."""
        self._failing |= {request.id for request in requests if self._work.fails(request)}
        self._engine.submit(requests)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """The engine's answers, marked."""
        return [
            replace(done, text=done.text + FAILED) if done.request_id in self._failing else done
            for done in self._engine.poll(timeout)
        ]

    def close(self) -> None:
        """As the engine's."""
        self._engine.close()


class ForcedTask(Task):
    """A task that grades in earnest, and then says what the mark says."""

    __slots__ = ()

    def grade(self, case: Case, text: str) -> Grade:
        """The grading takes the time it takes; its verdict is replaced by the mark's."""
        graded = Task.grade(self, case, text.removesuffix(FAILED))
        return replace(graded, problem=PROBLEM if text.endswith(FAILED) else None)


def force(task: Task) -> ForcedTask:
    """The same task, its verdicts by the marks."""
    return ForcedTask(**{field.name: getattr(task, field.name) for field in fields(task)})


def _chance(what: str, request: Request) -> float:
    """A number in [0, 1) that belongs to the request."""
    key = f"{what}|{request.case_id}|{request.arm}|{request.sample}|{request.attempt}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
