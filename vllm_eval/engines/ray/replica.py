"""A replica: the Ray actor that holds an engine, and its seat in the driver.

A seat is what the driver knows of a replica: the requests that it holds.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_eval.config.settings import Config
from vllm_eval.engines.base_canary import BaseAnswers
from vllm_eval.engines.protocol import Engine
from vllm_eval.records import Arm, Completion, Request


@dataclass(frozen=True, slots=True)
class Order:
    """What a replica must open."""

    config: Config
    arms: Sequence[Arm]
    base_model: str | None
    log: Path
    life: int
    """Earlier starts of this replica, as a script counts them."""
    opener: Callable[..., Engine]
    """`engines.open_engine`, passed in because it opens this engine too."""


@dataclass(frozen=True, slots=True)
class Started:
    """What an opened replica reports of itself."""

    capacity: int
    about: Mapping[str, str | int]
    host: str
    base: Sequence[BaseAnswers | None] = ()


class Replica:
    """Holds one engine; Ray runs its calls one after the other."""

    def __init__(self) -> None:  # also after Ray has restarted the process
        self._engine: Engine | None = None

    def open(self, order: Order) -> Started:
        """Open the engine with its canary, as `open_engine`; closes one that is already open."""
        self.close()
        config = order.config.model_copy(update={"engine": order.config.answering})
        log = order.log
        if not log.parent.is_dir():  # a node that does not share the driver's disk
            log = Path(tempfile.mkdtemp(prefix="vllm_eval-")) / log.name
        self._engine = order.opener(config, order.arms, order.base_model, log, order.life)
        engine, host = self._engine, socket.gethostname()
        return Started(engine.capacity, dict(engine.about), host, engine.base)

    def work(self, requests: Sequence[Request], seconds: float) -> list[Completion] | None:
        """Take requests and wait for completions, at most `seconds`.

        None if no engine is open: Ray has restarted the process since the last call, and what it
        held is gone.

        Raises:
            EngineError: the engine died.
        """
        if self._engine is None:
            return None
        end = time.monotonic() + seconds
        self._engine.submit(requests)
        finished: list[Completion] = []
        while not finished and self._engine.busy and (left := end - time.monotonic()) > 0:
            finished = self._engine.poll(left)
        return finished

    def close(self) -> None:
        """Close the engine and the processes that it started."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


@dataclass(slots=True)
class Seat:
    """A replica as the driver sees it."""

    number: int
    actor: Any
    call: Any = None
    """The one call in progress: opening, or working."""
    starts: int = 0
    started: Started | None = None
    """None while it is opening."""
    held: dict[str, Request] = field(default_factory=dict)
    """Requests given to it and not answered yet, by id."""
    outbox: list[Request] = field(default_factory=list)
    """Of those, the ones that go with the next call."""

    @property
    def load(self) -> float:
        """Share of its capacity in use; 1 while it is opening."""
        return len(self.held) / self.started.capacity if self.started else 1.0

    def answered(self, brought: Iterable[Completion]) -> list[Completion]:
        """The completions that it still holds; a replica that lost a request cannot answer it."""
        return [done for done in brought if self.held.pop(done.request_id, None) is not None]

    def give_back(self, queue: deque[Request]) -> None:
        """Put everything that it holds before the waiting requests, the oldest first."""
        queue.extendleft(reversed(self.held.values()))
        self.held.clear()
        self.outbox.clear()
        self.started = None


def share_out(queue: deque[Request], seats: Sequence[Seat]) -> None:
    """Give each request to the replica with the largest free share, so a slow one gets less."""
    while queue:
        seat = min(seats, key=lambda seat: seat.load)
        if seat.load >= 1.0:
            return
        request = queue.popleft()
        seat.held[request.id] = request
        seat.outbox.append(request)


def room(nodes: Iterable[Mapping[str, Any]], gpus: int) -> tuple[int, int]:
    """GPUs of a replica, and how many replicas the nodes, as `ray.nodes` lists them, hold.

    `gpus` is what one engine needs. If no node has a GPU, a replica takes none and there is one
    per node, because a CPU engine uses all cores.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    usable = [node for node in alive if node.get("CPU", 0) >= 1]
    if not any(node.get("GPU") for node in usable):
        return 0, len(usable)
    return gpus, sum(int(min(node.get("GPU", 0) // gpus, node["CPU"])) for node in usable)


def unlike(first: Started, other: Started) -> str | None:
    """How the engine of another replica differs from the first one's, or None."""
    for key in first.about:
        here, there = first.about[key], other.about.get(key)
        if key not in ("max_num_seqs", "canary_warning") and here != there:  # no answer changes
            return f"{key} is {there!r} on {other.host} and {here!r} on {first.host}"
    return None
