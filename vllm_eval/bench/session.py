"""A benchmark from start to end: contestants, rounds in turn, equal work, figures, files.

With made-up weights vLLM makes those of the base, from its `config.json`; the adapter that fits it
is made here, of small random numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_eval.bench.contestants import REFERENCE, Contestant, choose, group, read_lengths
from vllm_eval.bench.figures import Benched, draw, spread, tabulate, unequal
from vllm_eval.bench.roofline import Limit, Speed, dtype_of, find_limit, measure_speed, read_costs
from vllm_eval.bench.rounds import Rounds
from vllm_eval.bench.trial import Work
from vllm_eval.config import machine
from vllm_eval.config.settings import resolve_path
from vllm_eval.errors import ConfigError, EngineError
from vllm_eval.inputs.adapters import CONFIG_FILE, WEIGHTS_FILE
from vllm_eval.inputs.base_model import linear_modules, read_base
from vllm_eval.inputs.plan import prepare
from vllm_eval.preflight.check import check_plan, refuse
from vllm_eval.store.folder import create_run, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllm_eval.bench.contestants import BenchOptions
    from vllm_eval.bench.trial import Trial
    from vllm_eval.config.layers import Layers
    from vllm_eval.inputs.plan import Plan
    from vllm_eval.records import Watcher


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
FILE, PLOT = "bench.json", "bench"
SCHEMA_VERSION = 1


def bench(layers: Layers, options: BenchOptions, watcher: Watcher) -> Benched:
    """Time all contestants in turn on the same work, and write the results.

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
    rounds = Rounds(folder, work, options, watcher.stage, alone=bool(hardware.gpus))
    trials = rounds.run(group(contestants))
    after = os.getloadavg()
    if why := unequal(trials):
        raise EngineError(f"bench: the contestants did not do the same work: {why}")
    done = Benched(
        folder=folder,
        rows=tuple(tabulate({name: trials[name] for name in plans}, reference)),
        reference=reference,
        work=work,
        size=trials[reference][0],
        starts={name: spread(seconds) for name, seconds in rounds.starts.items()},
        speed=speed,
        limits=_limits(contestants, plans, trials, speed, rounds.about),
    )
    described = {
        "schema_version": SCHEMA_VERSION,
        "command": ["vllm_eval", *sys.argv[1:]],
        "finished_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": asdict(hardware),
        "load_average": {"before": before, "after": after},
        "options": options.model_dump(mode="json"),
        "work": asdict(work) | {"cases": len(plans[reference].dataset.drawn)},
        "reference": reference,
        "speed": asdict(speed) if speed else None,
        "contestants": {
            row.name: asdict(row)
            | {
                "start_s": rounds.starts[row.name],
                "engine_open_s": rounds.opened[row.name],
                "engine": rounds.about[row.name],
                "limit": asdict(done.limits[row.name]) if row.name in done.limits else None,
                "trials": [asdict(trial) for trial in trials[row.name]],
                "config": plans[row.name].config.model_dump(mode="json"),
            }
            for row in done.rows
        },
    }
    write_json(folder / FILE, described)
    draw(done, folder / PLOT)
    return done


def _refuse_lengths(contestants: Sequence[Contestant], work: Work) -> None:
    """Only vLLM takes a length per request; a script has its own lengths."""
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
        costs = read_costs(plan)
        if costs is None or speed is None:
            continue
        batch = about[name].get("max_num_seqs") or plan.config.batch_size
        work, mixed = trials[name][0], contestant.mixes_arms
        limits[name] = find_limit(costs, speed, work, int(batch), len(plan.arms), together=mixed)
    return limits


def _with_shapes(layers: Layers, options: BenchOptions, scratch: Path) -> Layers:
    """With `--load-format`, and with a made-up adapter for made-up weights if none is named."""
    flags = dict(layers.flags)
    if options.load_format is not None:
        flags["engine_args"] = flags.get("engine_args", {}) | {"load_format": options.load_format}
        layers = replace(layers, flags=flags)
    config = layers.load()
    if config.engine_args.get("load_format") != "dummy" or config.adapters:
        return layers
    base, adapter = make_up(config.base_model, options.rank, scratch)
    flags |= {"base_model": str(base), "adapters": [str(adapter)]}
    return replace(layers, flags=flags)


def make_up(base_model: str | None, rank: int, folder: Path) -> tuple[Path, Path]:
    """A base folder with a tokenizer, and an adapter of `rank` on all its linear modules.

    `base_model` has at least a `config.json`; if it has no tokenizer, a copy in `folder` gets the
    demo's.

    Raises:
        ConfigError: there is no such base, or its configuration names no known modules.
    """
    source = resolve_path(base_model or "")
    if not base_model or not (source / "config.json").is_file():
        msg = f"base_model: --load-format dummy needs a folder with a config.json, not {source}"
        raise ConfigError(msg)
    base = source.resolve()
    if not (source / TOKENIZER[0]).is_file():
        base = folder / "base"
        base.mkdir(parents=True)
        for path in source.glob("*config.json"):
            shutil.copy(path, base)
        for name in TOKENIZER:
            shutil.copy(resolve_path(f"package:demo/base/{name}"), base)
    modules = linear_modules(read_base(str(base), weights=False))
    if modules is None:
        msg = f"base_model: {source / 'config.json'} is of no model whose modules are known here"
        raise ConfigError(msg)
    adapter = folder / f"made_up_rank_{rank}"
    _write_adapter(adapter, modules, rank, str(base))
    return base, adapter


def _write_adapter(folder: Path, modules: dict[str, tuple[int, int]], rank: int, base: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "bias": "none",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    source = np.random.default_rng(rank)
    tensors = {}
    for name, (inputs, outputs) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = _numbers(source, rank, inputs)
        tensors[f"base_model.model.{name}.lora_B.weight"] = _numbers(source, outputs, rank)
    save_file(tensors, folder / WEIGHTS_FILE)


def _numbers(source: Any, rows: int, columns: int) -> Any:
    """Float16 from 2**-7 to 2**-5, either sign."""
    numbers = source.uniform(2**-7, 2**-5, (rows, columns))
    return (numbers * source.choice((-1, 1), (rows, columns))).astype("float16")
