"""Our whole command against peers: same model, prompts, sampling and forced lengths, in turn.

Timed is what a user waits for, from the command to its end: both arms for us and for our
transformers engine, one process an arm for the predecessor's loop and for the harness. Each repeat
begins with another contestant; ratios are taken within a repeat. All run with the demo profile's
environment and engine options: without them the harness does not start with an adapter on a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import yaml

from vllm_eval.bench.figures import rotated, spread
from vllm_eval.config import machine
from vllm_eval.config.layers import load_config
from vllm_eval.config.settings import Config
from vllm_eval.inputs import cases
from vllm_eval.inputs.adapters import slot_rank
from vllm_eval.inputs.plan import Plan, prepare
from vllm_eval.store.folder import create_run, write_json

OURS = "ours"
EVERY = (OURS, "ours-transformers", "predecessor", "harness")
TASK = "task"
HERE = Path(__file__).parent
Commands = list[list[str]]


def main(python: str, count: int, repeats: int, output_len: int, names: list[str]) -> None:
    flags = {"max_samples": count, "max_new_tokens": output_len, "retries": 0, "ignore_eos": True}
    plan = prepare(load_config(["demo"], flags=flags))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = write_prompts(plan, folder)
        write_task(plan.config, prompts, folder)
        commands = {
            OURS: [ours(plan.config, folder)],
            "ours-transformers": [[*ours(plan.config, folder), "--engine", "transformers"]],
            "predecessor": predecessor(plan, prompts, folder),
            "harness": with_harness(plan, python, folder),
        }
        contestants = {name: commands[name] for name in names}
        seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
        before = os.getloadavg()
        for repeat in range(repeats):
            for contestant in rotated(list(contestants), repeat):
                taken = [timed(command, plan.config, folder) for command in contestants[contestant]]
                seconds[contestant].append(sum(taken))
                each = " + ".join(f"{one:.1f}" for one in taken)
                print(f"repeat {repeat + 1}: {contestant} {each} s", flush=True)
    report(seconds, count, output_len, before)


def write_prompts(plan: Plan, folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for case in cases.read_cases(plan.dataset):
            row = {"id": case.id, "tier": case.tier, **case.inputs}
            row |= {"prompt": plan.task.prompt(case)}
            file.write(json.dumps(row) + "\n")
    return path


def write_task(config: Config, prompts: Path, folder: Path) -> None:
    """A task of the harness: our prompts as they are, our sampling, our lengths, no metric."""
    task = {
        "task": "product_owner",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(prompts)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "",
        "generation_kwargs": {
            "until": [],
            "max_gen_toks": config.max_new_tokens,
            "min_tokens": config.max_new_tokens,
            "ignore_eos": True,
            "do_sample": True,
            "temperature": config.temperature,
            "top_p": config.top_p,
        },
        "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
    }
    (folder / TASK).mkdir()  # by itself: the harness takes every YAML file beside it for a task
    (folder / TASK / "product_owner.yaml").write_text(yaml.safe_dump(task), "utf-8")


def ours(config: Config, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "vllm_eval", "--config", "demo", "-c", "ignore_eos=true"),
        *("--max-samples", str(config.max_samples), "--retries", "0"),
        *("--max-new-tokens", str(config.max_new_tokens), "--output-dir", str(folder / "ours")),
    ]


def predecessor(plan: Plan, prompts: Path, folder: Path) -> Commands:
    script, length = str(HERE / "peers_predecessor.py"), str(plan.config.max_new_tokens)
    return [
        [
            *(sys.executable, script, str(arm.adapter.path) if arm.adapter else "-"),
            *(str(prompts), length, str(folder / f"{arm.name}.json"), str(plan.base_model)),
        ]
        for arm in plan.arms
    ]


def with_harness(plan: Plan, python: str, folder: Path) -> Commands:
    commands = []
    for arm in plan.arms:
        model: dict[str, object] = {"pretrained": plan.base_model, **plan.config.engine_args}
        if arm.adapter:
            model |= {"enable_lora": True, "max_loras": 1, "lora_local_path": arm.adapter.path}
            model |= {"max_lora_rank": slot_rank(arm.adapter.rank)}
        given = ",".join(f"{key}={value}" for key, value in model.items())
        commands.append(
            [
                *(python, "-m", "lm_eval", "run", "--model", "vllm", "--model_args", given),
                *("--tasks", "product_owner", "--include_path", str(folder / TASK)),
                *("--batch_size", "auto", "--log_samples"),
                *("--output_path", str(folder / f"harness_{arm.name}")),
            ]
        )
    return commands


def timed(command: list[str], config: Config, folder: Path) -> float:
    """Seconds of a whole command. Ours ends with 1 where forced answers fail the gate."""
    own = dict(config.engine_env) | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    own |= {"HF_HOME": str(folder / "hf"), "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "log"
    start = time.monotonic()
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=out, env=os.environ | own, cwd=HERE.parent, check=False
        )
    seconds = time.monotonic() - start
    fine = (0, 1, 4) if "vllm_eval" in command else (0,)
    assert done.returncode in fine, f"{command}\n{log.read_text()[-4000:]}"
    return seconds


def report(
    seconds: dict[str, list[float]], count: int, output_len: int, before: tuple[float, ...]
) -> None:
    rows = {}
    tokens = 2 * count * output_len
    print(f"{count} cases x 2 arms, {output_len} tokens each answer, {tokens:,} in all")
    for contestant, taken in seconds.items():
        ratio = spread([a / b for a, b in zip(seconds[OURS], taken, strict=True)])
        rows[contestant] = {"seconds": taken, "ours_over_it": asdict(ratio)}
        middle = spread(taken)
        print(
            f"{contestant}: {middle.median:.1f} s ({middle.low:.1f} to {middle.high:.1f}), ours "
            f"over it {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        )
    now = datetime.now().astimezone()
    folder = create_run(Path("results/benchmarks"), f"peers_{count}x2", now).path
    found = {
        "cases": count,
        "output_len": output_len,
        "machine": asdict(machine.detect()),
        "load_average": {"before": before, "after": os.getloadavg()},
        "contestants": rows,
    }
    print(f"written to {write_json(folder / 'peers.json', found)}")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[2:5]]
    count, repeats, output_len = given + [20, 3, 640][len(given) :]
    main(sys.argv[1], count, repeats, output_len, [OURS, *(sys.argv[5:] or EVERY[1:])])
