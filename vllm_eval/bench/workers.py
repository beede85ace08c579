"""Engines in processes of their own: vLLM allows one a process, and each start is timed."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_eval.bench.contestants import Way
from vllm_eval.bench.trial import Trial, run_trial
from vllm_eval.engines import open_engine
from vllm_eval.errors import EngineError, EvalError
from vllm_eval.inputs.plan import prepare

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import Self

    from vllm_eval.bench.work import Work
    from vllm_eval.config.settings import Config
    from vllm_eval.engines.protocol import Engine

LEAVE_S = 30.0
"""How long a worker may take to close its engine."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker's engine is open."""

    engine_s: float
    """Opening it: imports, weights, adapters, canary."""
    about: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told to do."""

    way: Way
    warm: bool


class Worker:
    """A process with one open engine."""

    def __init__(self, config: Config, work: Work, log: Path) -> None:
        """Start the process and wait until its engine is open.

        Raises:
            EvalError: the engine could not be opened.
        """
        begin = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._log = log
        self._process = context.Process(target=_live, args=(other, config, work, log))
        self._process.start()
        other.close()
        answer = self._receive()
        if not isinstance(answer, Started):
            raise TypeError(answer)
        self.started = answer
        self.start_s = time.monotonic() - begin
        """From no process to an open engine."""

    def trial(self, way: Way, *, warm: bool) -> Trial:
        """Do the work once."""
        self._pipe.send(Order(way, warm))
        answer = self._receive()
        if not isinstance(answer, Trial):
            raise TypeError(answer)
        return answer

    def close(self) -> None:
        """Have the engine closed; the process is ended if it does not."""
        self._pipe.close()
        self._process.join(LEAVE_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _receive(self) -> object:
        try:
            answer = self._pipe.recv()
        except KeyboardInterrupt:
            self._process.terminate()
            raise
        except EOFError:
            self.close()
            msg = f"bench: the process of an engine ended; see {self._log}"
            raise EngineError(msg) from None
        if isinstance(answer, EvalError):
            self.close()
            raise answer
        return answer


def serve(pipe: Connection, config: Config, work: Work, log: Path) -> None:
    """Open the engine and do what is ordered, until the other end is closed."""
    try:
        plan = prepare(config)
        begin = time.monotonic()
        with contextlib.closing(_open(config, plan.arms, plan.base_model, log)) as engine:
            pipe.send(Started(time.monotonic() - begin, dict(engine.about)))
            with contextlib.suppress(EOFError):
                while True:
                    order: Order = pipe.recv()
                    _prepare(engine, order.way, work)
                    done = run_trial(plan, engine, order.way, work, log.parent, warm=order.warm)
                    pipe.send(done)
    except EvalError as error:
        pipe.send(error)


def _live(pipe: Connection, config: Config, work: Work, log: Path) -> None:
    """A worker's life as a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(pipe, config, work, log)


def _open(config: Config, *rest: object) -> Engine:
    if config.engine == "vllm":
        from vllm_eval.bench.trial import MeasuredVllm

        return MeasuredVllm.open(config, *rest)  # type: ignore[arg-type]
    return open_engine(config, *rest)  # type: ignore[arg-type]


def _prepare(engine: Engine, way: Way, work: Work) -> None:
    """A clean slate; only vLLM keeps anything from one trial to the next."""
    from vllm_eval.bench.trial import MeasuredVllm

    if isinstance(engine, MeasuredVllm):
        engine.way, engine.work = way, work
        engine.forget()
