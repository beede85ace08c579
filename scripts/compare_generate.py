"""Our generation phase against one bare `LLM.generate` call: same engine, prompts and sampling.

The two alternate, so that a machine that slows down slows both; the median of the ratios counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from vllm_eval import cases
from vllm_eval.config import load_config
from vllm_eval.engines.vllm import VllmEngine
from vllm_eval.evaluate import Job, Progress, derive_seed, evaluate
from vllm_eval.journal import Journal
from vllm_eval.plan import Plan, prepare
from vllm_eval.records import Ledger


def main(count: int, pairs: int) -> None:
    config = load_config(["demo"], flags={"max_samples": count, "retries": 0})
    plan = prepare(config)
    folder = Path(tempfile.mkdtemp())
    terminal = sys.stdout
    ratios = []
    log = folder / "engine.log"
    with closing(VllmEngine.open(config, plan.arms, plan.base_model or "", log)) as engine:
        lines = []
        for pair in range(pairs + 1):  # the first pair warms up
            ours, our_tokens = time_ours(plan, engine, folder / f"{pair}.jsonl")
            bare, bare_tokens = time_bare(plan, engine)
            lines.append(
                f"ours {ours:.2f} s, {our_tokens} tokens; bare {bare:.2f} s, {bare_tokens}"
            )
            if pair:
                ratios.append(ours / bare)
    print(*lines, sep="\n", file=terminal)
    print(f"{count} cases x 2 arms, ours / bare over {pairs} pairs:", file=terminal)
    print(f"median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def time_ours(plan: Plan, engine: VllmEngine, journal: Path) -> tuple[float, int]:
    job = Job(plan.task, plan.arms, lambda: cases.read_cases(plan.dataset), 1, 1, plan.config.seed)
    progress = Progress(total=2 * len(plan.dataset.drawn))
    engine._engine.reset_prefix_cache()
    start = time.monotonic()
    with Journal(journal) as opened:
        evaluate(job, engine, Ledger(set(), {}), opened.append, progress, lambda _: None)
    return time.monotonic() - start, progress.output_tokens


def time_bare(plan: Plan, engine: VllmEngine) -> tuple[float, int]:
    from vllm import SamplingParams

    config = plan.config
    prompts, sampling, loras = [], [], []
    for case in cases.read_cases(plan.dataset):
        for arm in plan.arms:
            prompts.append(plan.task.prompt(case))
            loras.append(engine._loras[arm.name])
            sampling.append(
                SamplingParams(
                    temperature=config.temperature,
                    top_p=config.top_p,
                    max_tokens=config.max_new_tokens,
                    seed=derive_seed(config.seed, case.id, 0, 1),
                )
            )
    engine._engine.reset_prefix_cache()
    start = time.monotonic()
    assert engine._llm is not None
    outputs = engine._llm.generate(prompts, sampling, lora_request=loras, use_tqdm=False)
    return time.monotonic() - start, sum(len(output.outputs[0].token_ids) for output in outputs)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [20, 5][len(given) :]))
