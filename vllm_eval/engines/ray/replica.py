"""The inside of one Ray actor: an engine like any other, opened and driven from afar."""

from __future__ import annotations

import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vllm_eval.config.settings import Config
    from vllm_eval.engines.protocol import Engine
    from vllm_eval.records import Arm, Completion, Request


@dataclass(frozen=True, slots=True)
class Order:
    """What a replica is to open."""

    config: Config
    arms: Sequence[Arm]
    base_model: str | None
    log: Path
    life: int
    """Starts of this replica before this one, as a script counts them."""
    opener: Callable[..., Engine]
    """`engines.open_engine`, handed in since it opens this engine too."""


@dataclass(frozen=True, slots=True)
class Started:
    """What an opened replica says of itself."""

    capacity: int
    about: Mapping[str, str | int]
    host: str


class Replica:
    """Holds one engine; Ray runs its calls one after the other."""

    def __init__(self) -> None:
        """Nothing is opened yet: also after Ray has started the process again."""
        self._engine: Engine | None = None

    def open(self, order: Order) -> Started:
        """Open the engine with its canary; one that is open already is closed before.

        Raises:
            EvalError: as `open_engine` raises it.
        """
        self.close()
        config = order.config.model_copy(update={"engine": order.config.answering})
        log = order.log
        if not log.parent.is_dir():  # a node that does not share the driver's disk
            log = Path(tempfile.mkdtemp(prefix="vllm_eval-")) / log.name
        self._engine = order.opener(config, order.arms, order.base_model, log, order.life)
        return Started(self._engine.capacity, dict(self._engine.about), socket.gethostname())

    def work(self, requests: Sequence[Request], seconds: float) -> list[Completion] | None:
        """Take requests and wait for completions, `seconds` at most.

        None where no engine is open: Ray has started the process again since the last call, and
        what it held is gone.

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
        """Close the engine, and with it the processes it has started."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
