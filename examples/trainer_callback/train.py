"""Train a LoRA adapter for a few steps and evaluate it against its base when training ends.

usage: python examples/trainer_callback/train.py FOLDER

It trains the embedded demo model on the CPU, to show how the pieces fit: after so few steps the
adapter is no better than its base.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import vllm_eval

DEMO = Path(str(files("vllm_eval"))) / "demo"
STEPS = 4


class EvaluateAdapter(TrainerCallback):  # type: ignore[misc]
    """When training ends, saves the adapter and evaluates it against its base."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self.options = options
        self.result: vllm_eval.Result | None = None

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / self.name
        given["model"].save_pretrained(folder)
        # A fresh process: engine and trainer share no CUDA state, threads or standard output.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            self.result = pool.submit(vllm_eval.evaluate, folder, **self.options).result()
        student = self.result.comparison.arms[self.name]
        state.log_history.append({"step": state.global_step, "eval_mean": student.mean})


def main(output: Path) -> None:
    """Train below `output`, and leave the run folder there too."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "base")
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    cases = [json.loads(line) for line in (DEMO / "cases.jsonl").open(encoding="utf-8")][:STEPS]
    texts = [tokenizer(case["input"]["requirements_yaml"])["input_ids"] for case in cases]
    evaluation = EvaluateAdapter(
        "few_steps", config="demo", output_dir=output / "results", max_samples=2, retries=0
    )
    trainer = Trainer(
        get_peft_model(base, lora),
        TrainingArguments(
            output_dir=str(output),
            max_steps=STEPS,
            per_device_train_batch_size=1,
            learning_rate=2e-3,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=[{"input_ids": text, "labels": text} for text in texts],
        callbacks=[evaluation],
    )
    trainer.train()
    print(evaluation.result)


if __name__ == "__main__":  # the evaluation's process imports this file
    main(Path(sys.argv[1]))
