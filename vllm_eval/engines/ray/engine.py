"""Replicas of the vLLM engine as actors of a Ray cluster, used like one engine.

Ray places the actors, restarts them if there is room, and says which are lost. The driver only
keeps track of the requests that each replica holds, and gives those of a lost one to the others.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from vllm_eval.config.settings import Config, gpus_of, resolve_path
from vllm_eval.engines.base_canary import BaseAnswers
from vllm_eval.engines.engine_log import OutputToFile
from vllm_eval.engines.ray.replica import Order, Replica, Seat, Started, room, share_out, unlike
from vllm_eval.engines.tokens import open_counter, too_long
from vllm_eval.errors import EngineDiedError, EngineError, EvalError, foreign, one_line
from vllm_eval.records import Completion, Request

WORK_S = 0.1
"""Longest call of a replica, in seconds; requests given to it meanwhile wait for its end."""
CLOSE_S = 15.0
"""Seconds for replicas to end their engines' processes before they are killed."""
LOCAL = "local"
"""Ray's address for a new cluster of this machine alone."""


class RayEngine:
    """All replicas of a run, and the requests that no replica has yet."""

    def __init__(self, order: Order, output: OutputToFile, *, ours: bool) -> None:
        """Use a connection to Ray; `ours` if the cluster was started for this run."""
        self._order, self._config, self._output = order, order.config, output
        self._ours = ours
        self._seats: list[Seat] = []
        self._queue: deque[Request] = deque()
        self._first: Started | None = None
        self._lost = 0
        self._seen = time.monotonic()
        """When a replica was last open."""
        self._count: Callable[[str], int] | None = None
        self._open = True

    @classmethod
    def open(cls, order: Order) -> RayEngine:
        """Connect, place the replicas and wait for the first one; others join when ready.

        Raises:
            EngineError: Ray is missing, no cluster answers, no node has room, or every replica
                failed to start.
            ConfigError: an option of the engine does not exist.
            InputError: the tokenizer cannot be read here.
        """
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            os.environ.setdefault(name, "0")
        with ExitStack() as undo:
            output = OutputToFile(order.log)
            undo.callback(output.restore)
            engine = cls(order, output, ours=_connect(order.config))
            undo.callback(engine.close)
            engine._place()
            engine._await_first()
            undo.pop_all()
            return engine

    @property
    def capacity(self) -> int:
        """Room of all open replicas; at least 1, or the loop would consider the run finished."""
        return max(1, sum(seat.started.capacity for seat in self._seats if seat.started))

    @property
    def about(self) -> Mapping[str, str | int]:
        """What the first replica reports of itself, and how many there are."""
        import ray

        own = self._first.about if self._first else {}
        counts = {"replicas": len(self._seats), "replicas_lost": self._lost}
        return {**own, "engine": "ray", "replica": own["engine"], "ray": ray.__version__, **counts}

    @property
    def base(self) -> Sequence[BaseAnswers | None]:
        """What the bare base of every open replica answered the canary."""
        return [base for seat in self._seats if seat.started for base in seat.started.base]

    def refusal(self, prompt: str) -> str | None:
        """Counted here with the same tokenizer: asking a replica costs a call per prompt."""
        limit = self._first.about.get("max_model_len") if self._first else None
        if self._count is None or not isinstance(limit, int):
            return None
        return too_long(self._count(prompt), self._config.max_new_tokens, limit)

    def submit(self, requests: Sequence[Request]) -> None:
        """Give requests to the replicas with room; the rest wait here."""
        self._queue.extend(requests)
        self._hand_out()

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._queue) or any(seat.held for seat in self._seats)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Wait for any replica; calls that returned are renewed at once."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        finished: list[Completion] = []
        while self.busy and not finished:
            self._hand_out()
            left = max(0.0, end - time.monotonic())
            back = self._wait(min(left, 1.0))
            for seat in back:
                finished += self._take(seat)
            self._hold_patience()
            if not back and left == 0.0:
                break
        self._hand_out()
        return finished

    def close(self) -> None:
        """End the replicas, their engines and, if it was started for this run, the cluster."""
        import ray

        if not self._open:
            return
        self._open = False
        try:
            # An actor killed at once would leave its engine's processes behind.
            ending = [seat.actor.close.remote() for seat in self._seats if seat.started]
            if ending:
                ray.wait(ending, num_returns=len(ending), timeout=CLOSE_S)
            for seat in self._seats:
                ray.kill(seat.actor)
            self._seats.clear()
            self._queue.clear()
        finally:
            if self._ours:
                ray.shutdown()
            self._output.restore()

    def _place(self) -> None:
        """Ask Ray for the actors, and have each open its engine once it is placed."""
        import ray

        gpus, fit = room(ray.nodes(), gpus_of(self._config))
        needs = f"{gpus} GPUs and a CPU for a replica; see ray status"
        if not (self._config.replicas or fit):
            raise EngineError(f"ray: no node of the cluster has {needs}")
        # The engine's variables, before its process starts; what is set here already wins.
        variables = {n: os.environ.get(n, value) for n, value in self._config.engine_env.items()}
        actor = ray.remote(Replica).options(
            num_cpus=1,
            num_gpus=gpus,  # of one node: an actor never spans several
            max_restarts=self._config.max_engine_restarts,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )
        for number in range(self._config.replicas or fit):
            self._seats.append(Seat(number, actor.remote()))
            self._start(self._seats[-1])
        placed = [seat.actor.__ray_ready__.remote() for seat in self._seats]
        if not ray.wait(placed, timeout=self._config.server_patience_s)[0]:
            msg = f"ray: no replica was placed within {self._config.server_patience_s:.0f} s"
            raise EngineError(f"{msg}: no node has {needs}")

    def _await_first(self) -> None:
        while self._first is None:
            for seat in self._wait(None):
                self._take(seat)
        if (config := self._config).answering == "scripted":
            return
        folder = resolve_path(str(config.engine_args.get("tokenizer") or self._order.base_model))
        try:
            self._count = open_counter(folder, config)
        except ImportError as error:
            msg = f"ray: the tokenizer is needed here too: {error}; pip install transformers"
            raise EngineError(msg) from error

    def _start(self, seat: Seat) -> None:
        """Have a replica open its engine; Ray repeats the call if the process dies of it."""
        log = self._order.log.with_stem(f"{self._order.log.stem}_replica{seat.number}")
        order = replace(self._order, log=log, life=self._order.life + seat.starts)
        seat.starts += 1
        seat.call = seat.actor.open.options(max_task_retries=-1).remote(order)

    def _hand_out(self) -> None:
        """Fill the replicas, and renew the call of each one with work."""
        share_out(self._queue, self._seats)
        for seat in self._seats:
            if seat.call is None and seat.held:
                seat.call = seat.actor.work.remote(seat.outbox, WORK_S)
                seat.outbox = []

    def _wait(self, seconds: float | None) -> list[Seat]:
        """The replicas whose call returned within `seconds`."""
        import ray

        calls = {seat.call: seat for seat in self._seats if seat.call is not None}
        ray.wait(list(calls), timeout=seconds)
        back, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [calls[call] for call in back]

    def _take(self, seat: Seat) -> list[Completion]:
        """Handle a call's result: an opened replica, completions, or the loss of the replica."""
        import ray
        from ray.exceptions import ActorDiedError, RayError, RayTaskError

        call, seat.call = seat.call, None
        try:
            brought = ray.get(call)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, EvalError) else EngineError(str(error))
            if isinstance(cause, EngineDiedError):
                ray.kill(seat.actor, no_restart=False)
                self._lose(seat)
            else:
                self._give_up(seat, cause)
        except RayError as error:
            if isinstance(error, ActorDiedError) and seat.started is None:
                msg = f"ray: replica {seat.number}: {one_line(error)}"
                self._give_up(seat, EngineDiedError(msg))
            else:
                self._lose(seat)
        else:
            if isinstance(brought, list):
                return seat.answered(brought)
            self._join(seat, brought) if brought else self._lose(seat)
        return []

    def _join(self, seat: Seat, started: Started) -> None:
        """Add an opened replica, if its engine is like the others'."""
        self._first = self._first or started
        if other := unlike(self._first, started):
            self._give_up(seat, EngineError(f"ray: {other}; the replicas must be alike"))
        else:
            seat.started = started

    def _lose(self, seat: Seat) -> None:
        """Give its requests to the others; it opens again wherever Ray restarts it."""
        self._lost += 1
        seat.give_back(self._queue)
        self._start(seat)

    def _give_up(self, seat: Seat, why: EvalError) -> None:
        """Continue without a replica that cannot be started; raise `why` if it was the last one."""
        import ray

        self._lost += 1
        seat.give_back(self._queue)
        self._seats.remove(seat)
        ray.kill(seat.actor)
        if not self._seats:
            raise why

    def _hold_patience(self) -> None:
        """EngineDiedError if no replica has been open for `server_patience_s`."""
        now = time.monotonic()
        if any(seat.started for seat in self._seats):
            self._seen = now
        if now - self._seen > self._config.server_patience_s:
            msg = "ray: all replicas are lost, and none came back in server_patience_s"
            raise EngineDiedError(f"{msg}; see ray status")


def _connect(config: Config) -> bool:
    """Connect to the cluster; returns whether the connection or cluster is ours to end."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise EngineError("Ray is not installed; pip install 'vllm_eval[ray]'") from error
    if ray.is_initialized():  # for example a notebook's own connection
        return False
    address = config.ray_address or LOCAL
    start = "start one with ray start --head" if config.ray_address else "see its message"
    board = False if address == LOCAL else None

    def absent(error: Exception) -> EngineError:
        return EngineError(f"ray: no cluster at {address}: {one_line(error, 300)}; {start}")

    with foreign(absent):  # no terminal output and no dashboard
        ray.init(address, include_dashboard=board, log_to_driver=False, logging_level="ERROR")
    return True
