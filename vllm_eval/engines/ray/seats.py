"""What the driver knows of its replicas: how many fit, what each holds, who gets a request next."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_eval.config.settings import resolve_path
from vllm_eval.engines.tokens import open_counter
from vllm_eval.errors import EngineError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vllm_eval.config.settings import Config
    from vllm_eval.engines.ray.replica import Started
    from vllm_eval.records import Completion, Request


@dataclass(slots=True)
class Seat:
    """A replica as the driver sees it."""

    number: int
    actor: Any
    call: Any = None
    """The one call under way: it opens, or it works."""
    starts: int = 0
    started: Started | None = None
    """None while it is being opened."""
    held: dict[str, Request] = field(default_factory=dict)
    """Every request it was given and has not answered, by id."""
    outbox: list[Request] = field(default_factory=list)
    """Of those held, the ones that go with the next call."""

    @property
    def load(self) -> float:
        """Share of its capacity that is taken; full while it is being opened."""
        return len(self.held) / self.started.capacity if self.started else 1.0

    def answered(self, brought: Iterable[Completion]) -> list[Completion]:
        """The completions it was still waited for; who lost a request has no more say in it."""
        return [done for done in brought if self.held.pop(done.request_id, None) is not None]

    def give_back(self, queue: deque[Request]) -> None:
        """Put all it holds before what waits already, the oldest first."""
        queue.extendleft(reversed(self.held.values()))
        self.held.clear()
        self.outbox.clear()
        self.started = None


def share_out(queue: deque[Request], seats: Sequence[Seat]) -> None:
    """Give each request to the replica with the largest share of its room free.

    A slow one gets less, since what it holds goes down more slowly.
    """
    while queue:
        seat = min(seats, key=lambda seat: seat.load)
        if seat.load >= 1.0:
            return
        request = queue.popleft()
        seat.held[request.id] = request
        seat.outbox.append(request)


def room(nodes: Iterable[Mapping[str, Any]], gpus: int) -> tuple[int, int]:
    """GPUs of a replica, and how many replicas the nodes hold altogether.

    Where no node has a GPU, a replica takes none, and there is one on each node: a CPU engine
    uses all cores it finds.

    Args:
        nodes: as `ray.nodes` lists them.
        gpus: that one engine needs, where there are GPUs.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    usable = [node for node in alive if node.get("CPU", 0) >= 1]
    if not any(node.get("GPU") for node in usable):
        return 0, len(usable)
    return gpus, sum(int(min(node.get("GPU", 0) // gpus, node["CPU"])) for node in usable)


def environment(config: Config) -> dict[str, str]:
    """The engine's variables, before its process starts; what is set here already wins."""
    return {name: os.environ.get(name, value) for name, value in config.engine_env.items()}


def unlike(first: Started, other: Started) -> str | None:
    """How the engine of another replica differs from the first one's, or None.

    How many requests it runs at once may differ: that decides what fits, not what is answered.
    """
    for key in first.about:
        here, there = first.about[key], other.about.get(key)
        if key != "max_num_seqs" and here != there:
            return f"{key} is {there!r} on {other.host} and {here!r} on {first.host}"
    return None


def counter(config: Config, base_model: str | None) -> Callable[[str], int]:
    """Counts a prompt's tokens in the driver, as the replicas do.

    Raises:
        EngineError: a library is missing.
        InputError: the tokenizer cannot be read here.
    """
    folder = resolve_path(str(config.engine_args.get("tokenizer") or base_model))
    try:
        return open_counter(folder, config.prompt_format, config.engine_env)
    except ImportError as error:
        msg = f"ray: the tokenizer is needed here too: {error}; pip install transformers"
        raise EngineError(msg) from error
