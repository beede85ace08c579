"""The story of a benchmark: who, warm-up, rounds in turn, equal work, figures, files."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.bench.contestants import REFERENCE, Contestant, Layers, choose, group, read_lengths
from vllm_eval.bench.figures import Benched, Row, rotated, spread, tabulate, unequal
from vllm_eval.bench.roofline import (
    Asked,
    Limit,
    Speed,
    dtype_of,
    find_limit,
    measure_speed,
    read_shapes,
)
from vllm_eval.bench.shapes import make_up
from vllm_eval.bench.show import draw
from vllm_eval.bench.work import Work
from vllm_eval.bench.workers import Worker
from vllm_eval.config import machine
from vllm_eval.config.settings import file_name, resolve_path
from vllm_eval.errors import ConfigError, EngineError
from vllm_eval.inputs.plan import prepare
from vllm_eval.preflight.check import check_plan, refuse
from vllm_eval.store.folder import create_run, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    from vllm_eval.bench.contestants import BenchOptions
    from vllm_eval.bench.trial import Trial
    from vllm_eval.inputs.plan import Plan

    class Watcher(Protocol):
        """Whoever wants to see it happen."""

        def stage(self, text: str) -> None:
            """Something begins or has ended."""


FILE, PLOT = "bench.json", "bench"
SCHEMA_VERSION = 1


def bench(layers: Layers, options: BenchOptions, watcher: Watcher) -> Benched:
    """Time all contestants on the same work, in turn, and write what was found.

    Raises:
        InputError: an option, the data set or an adapter cannot be used.
        EngineError: an engine could not be started, or did other work than the others.
    """
    least, most = read_lengths(options.output_len)
    with tempfile.TemporaryDirectory(prefix="vllm_eval_bench_") as scratch:
        flags = layers.flags | {"ignore_eos": True, "max_new_tokens": most}
        layers = _with_shapes(replace(layers, flags=flags), options, Path(scratch))
        base = layers.load()
        attempts = 1 + base.retries if options.fail_rate else 1
        work = Work(least, most, options.fail_rate, attempts, base.seed)
        return _compete(layers, options, work, watcher)


def _compete(layers: Layers, options: BenchOptions, work: Work, watcher: Watcher) -> Benched:
    contestants = choose(layers, options.contestants, options.sets, fails=options.fail_rate > 0)
    _refuse_lengths(contestants, work)
    plans = {contestant.name: prepare(contestant.config) for contestant in contestants}
    for plan in plans.values():
        refuse(check_plan(plan))
    reference = REFERENCE if REFERENCE in plans else contestants[0].name
    base = plans[reference].config
    output = resolve_path(base.output_dir) / "benchmarks"
    folder = create_run(output, base.tag or "bench", datetime.now().astimezone()).path
    speed = _measure(plans[reference], watcher)
    hardware, before = machine.detect(), os.getloadavg()
    arena = _Arena(folder, work, options, watcher, alone=bool(hardware.gpus))
    trials = arena.fight(group(contestants))
    after = os.getloadavg()
    if why := unequal(trials):
        msg = f"bench: the contestants did not do the same work: {why}"
        raise EngineError(msg)
    done = Benched(
        folder=folder,
        rows=tuple(tabulate({name: trials[name] for name in plans}, reference)),
        reference=reference,
        work=work,
        size=trials[reference][0],
        starts={name: spread(seconds) for name, seconds in arena.starts.items()},
        speed=speed,
        limits=_limits(contestants, plans, trials, speed, arena.about),
    )
    described = {
        "schema_version": SCHEMA_VERSION,
        "command": ["vllm_eval", *sys.argv[1:]],
        "finished_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": asdict(hardware),
        "load_average": {"before": before, "after": after},
        "options": asdict(options),
        "work": asdict(work) | {"cases": len(plans[reference].dataset.drawn)},
        "reference": reference,
        "speed": asdict(speed) if speed else None,
        "contestants": {
            row.name: _describe(done, row, arena)
            | {
                "trials": [asdict(trial) for trial in trials[row.name]],
                "config": plans[row.name].config.model_dump(mode="json"),
            }
            for row in done.rows
        },
    }
    write_json(folder / FILE, described)
    draw(done, folder / PLOT)
    return done


def _describe(done: Benched, row: Row, arena: _Arena) -> dict[str, Any]:
    limit = done.limits.get(row.name)
    return asdict(row) | {
        "start_s": arena.starts[row.name],
        "engine_open_s": arena.opened[row.name],
        "engine": arena.about[row.name],
        "limit": asdict(limit) if limit else None,
    }


class _Arena:
    """Holds the engines open while the trials run."""

    def __init__(
        self, folder: Path, work: Work, options: BenchOptions, watcher: Watcher, *, alone: bool
    ) -> None:
        self._folder = folder
        self._work = work
        self._options = options
        self._watcher = watcher
        self._alone = alone or options.one_at_a_time
        self.starts: dict[str, list[float]] = {}
        self.opened: dict[str, list[float]] = {}
        self.about: dict[str, Mapping[str, str | int]] = {}

    def fight(self, groups: Sequence[tuple[Contestant, ...]]) -> dict[str, list[Trial]]:
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
                            worker = (stack if keep else here).enter_context(self._open(members))
                            workers[name] = worker
                        for contestant in rotated(members, repeat):
                            trial = workers[name].trial(contestant.way, warm=False)
                            trials[contestant.name].append(trial)
                            self._say(repeat, contestant.name, trial)
                        if not keep:
                            del workers[name]
        return trials

    def _open(self, members: Sequence[Contestant]) -> Worker:
        config = members[0].config
        self._watcher.stage(f"starting {config.engine} for {', '.join(m.name for m in members)}")
        log = self._folder / f"engine_{file_name(members[0].name)}.log"
        worker = Worker(config, self._work, log)
        for contestant in members:
            self.starts.setdefault(contestant.name, []).append(worker.start_s)
            self.opened.setdefault(contestant.name, []).append(worker.started.engine_s)
            self.about[contestant.name] = worker.started.about
            for _ in range(self._options.warmup):
                worker.trial(contestant.way, warm=True)
        return worker

    def _say(self, repeat: int, name: str, trial: Trial) -> None:
        speed = trial.output_tokens / trial.seconds
        self._watcher.stage(
            f"repeat {repeat + 1} of {self._options.repeats}: {name} {trial.seconds:.2f} s, "
            f"{trial.output_tokens:,} output tokens, {speed:,.0f} a second"
        )


def _with_shapes(layers: Layers, options: BenchOptions, scratch: Path) -> Layers:
    """With `--load-format`, and a made-up adapter where none is named for made-up weights."""
    flags = dict(layers.flags)
    if options.load_format is not None:
        flags["engine_args"] = flags.get("engine_args", {}) | {"load_format": options.load_format}
        layers = replace(layers, flags=flags)
    config = layers.load()
    if config.engine_args.get("load_format") != "dummy" or config.adapters:
        return layers
    made = make_up(config.base_model, options.rank, scratch)
    flags |= {"base_model": str(made.base), "adapters": [str(made.adapter)]}
    return replace(layers, flags=flags)


def _refuse_lengths(contestants: Sequence[Contestant], work: Work) -> None:
    """Only vLLM is told a length for each request; a script has its own."""
    told = ("vllm", "scripted")
    others = [one.name for one in contestants if one.config.engine not in told]
    if work.varies and others:
        msg = f"--output-len: {others[0]} cannot vary it; give one number, or --contestants"
        raise ConfigError(msg)


def _measure(plan: Plan, watcher: Watcher) -> Speed | None:
    if plan.base_model is None:
        return None
    watcher.stage("measuring the bandwidth and the arithmetic of this machine")
    return measure_speed(dtype_of(plan), plan.config.engine_env)


def _limits(
    contestants: Sequence[Contestant],
    plans: Mapping[str, Plan],
    trials: Mapping[str, Sequence[Trial]],
    speed: Speed | None,
    about: Mapping[str, Mapping[str, Any]],
) -> dict[str, Limit]:
    limits = {}
    for contestant in contestants:
        name, plan = contestant.name, plans[contestant.name]
        shapes = read_shapes(plan)
        if shapes is None or speed is None:
            continue
        batch = about[name].get("max_num_seqs") or plan.config.batch_size
        asked = Asked(len(plan.arms), contestant.mixes_arms)
        limits[name] = find_limit(shapes, speed, trials[name][0], int(batch), asked)
    return limits
