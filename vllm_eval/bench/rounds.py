"""Trials in turn, each engine in a process of its own.

vLLM allows one engine a process, and each start is timed.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from vllm_eval.bench.contestants import BenchOptions, Contestant, Way
from vllm_eval.bench.figures import rotated
from vllm_eval.bench.trial import MeasuredVllm, Trial, Work, run_trial
from vllm_eval.config.settings import Config, file_name
from vllm_eval.engines import open_engine
from vllm_eval.engines.protocol import Engine
from vllm_eval.errors import EngineError
from vllm_eval.inputs.plan import Plan, prepare
from vllm_eval.preflight.slots import choose_slots

_T = TypeVar("_T")

LEAVE_S = 30.0
"""How long a worker may take to close its engine."""


class Rounds:
    """Holds the engines open while the trials run."""

    def __init__(
        self,
        folder: Path,
        work: Work,
        options: BenchOptions,
        say: Callable[[str], None],
        *,
        alone: bool,
    ) -> None:
        self._folder = folder
        self._work = work
        self._options = options
        self._say = say
        self._alone = alone or options.one_at_a_time
        self.starts: dict[str, list[float]] = {}
        self.opened: dict[str, list[float]] = {}
        self.about: dict[str, Mapping[str, str | int]] = {}

    def run(self, groups: Sequence[tuple[Contestant, ...]]) -> dict[str, list[Trial]]:
        """All trials, by contestant, one for each repeat.

        In every repeat each contestant has one trial, and each repeat begins with another, so that
        whatever drifts hits all alike. Engines stay open from the first repeat to the last; where
        they may not share the machine, each is opened anew for every repeat.
        """
        trials: dict[str, list[Trial]] = {c.name: [] for members in groups for c in members}
        workers: dict[str, Worker] = {}
        keep = not self._alone or len(groups) == 1
        with ExitStack() as stack:
            for repeat in range(self._options.repeats):
                for members in rotated(groups, repeat):
                    with ExitStack() as here:
                        name = members[0].name
                        if name not in workers:
                            workers[name] = self._open(members, stack if keep else here)
                        for contestant in rotated(members, repeat):
                            trial = workers[name].trial(contestant.way, warm=False)
                            trials[contestant.name].append(trial)
                            self._tell(repeat, contestant.name, trial)
                        if not keep:
                            del workers[name]
        return trials

    def _tell(self, repeat: int, name: str, trial: Trial) -> None:
        made, seconds = trial.output_tokens, trial.seconds
        speed = f"{made:,} output tokens, {made / seconds:,.0f} a second"
        self._say(
            f"repeat {repeat + 1} of {self._options.repeats}: {name} {seconds:.2f} s, {speed}"
        )

    def _open(self, members: Sequence[Contestant], stack: ExitStack) -> Worker:
        config = members[0].config
        self._say(f"starting {config.engine} for {', '.join(m.name for m in members)}")
        log = self._folder / f"engine_{file_name(members[0].name)}.log"
        worker = stack.enter_context(closing(Worker(config, self._work, log)))
        for contestant in members:
            self.starts.setdefault(contestant.name, []).append(worker.start_s)
            self.opened.setdefault(contestant.name, []).append(worker.engine_s)
            self.about[contestant.name] = worker.about
            for _ in range(self._options.warmup):
                worker.trial(contestant.way, warm=True)
        return worker


class Worker:
    """A process with one open engine."""

    def __init__(self, config: Config, work: Work, log: Path) -> None:
        """Start the process and wait until its engine is open.

        Raises:
            EvalError: the engine could not be opened.
        """
        begin = time.monotonic()
        self._log = log
        self.pid: int | None = None
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_follow_the_parent)
        with ExitStack() as stack:
            stack.callback(self.close)
            self.pid = self._call(os.getpid)
            self.engine_s, self.about = self._call(_open, config, work, log)
            stack.pop_all()
        self.start_s = time.monotonic() - begin
        """From no process to an open engine."""

    def trial(self, way: Way, *, warm: bool) -> Trial:
        """Do the work once.

        Raises:
            EvalError: a request got no answer, or the process ended.
        """
        return self._call(_try, way, warm)

    def close(self) -> None:
        """Close the engine and end its process, by force after `LEAVE_S`."""
        try:
            self._pool.submit(_close).result(LEAVE_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
        except BrokenProcessPool:
            pass
        self._pool.shutdown()

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _call(self, call: Callable[..., _T], *given: object) -> _T:
        try:
            return self._pool.submit(call, *given).result()
        except KeyboardInterrupt:
            self._signal(signal.SIGTERM)  # ends what it is doing, not the process
            raise
        except BrokenProcessPool:
            raise EngineError(f"bench: the process of an engine ended; see {self._log}") from None


_HELD: list[tuple[Plan, Engine, Work, Path]] = []
"""The open engine of a worker's process, with all it needs for a trial."""


def _follow_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    atexit.register(_close)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()


def _leave_with_the_parent() -> None:
    """End this process once its parent was killed, which a pool's process does not notice."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # ends a trial
        time.sleep(LEAVE_S)
        os.kill(os.getpid(), signal.SIGTERM)  # ends the wait for the next one


def _open(config: Config, work: Work, log: Path) -> tuple[float, Mapping[str, str | int]]:
    """Seconds to open the engine (imports, weights, adapters, canary), and its versions."""
    plan = prepare(config)
    begin = time.monotonic()
    opener: Any = MeasuredVllm.open if config.engine == "vllm" else open_engine
    engine = opener(choose_slots(plan).applied(config), plan.arms, plan.base_model, log)
    _HELD.append((plan, engine, work, log.parent))
    return time.monotonic() - begin, dict(engine.about)


def _try(way: Way, warm: bool) -> Trial:
    plan, engine, work, folder = _HELD[0]
    if isinstance(engine, MeasuredVllm):  # only vLLM keeps anything from one trial to the next
        engine.work = work
        engine.forget()
    return run_trial(plan, engine, way, work, folder, warm=warm)


def _close() -> None:
    for _, engine, _, _ in _HELD:
        engine.close()
    _HELD.clear()
