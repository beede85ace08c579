"""Checkpoints to choose from: a LoRA on the demo base, as transformers' `Trainer` leaves it.

Fresh weights of the embedded student's shape learn the student's answers from the made-up products
that it learnt from, one a step. Nothing is staged: after 60 steps most answers still break the
contract, after 120 hardly any does. Both losses, of training and of examples held out, are in each
checkpoint's `trainer_state.json`.
"""

from __future__ import annotations

import argparse
import math
import time
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from scripts.demo_model.examples import examples
from scripts.demo_model.fit import IGNORED, encoded
from scripts.demo_model.train import DEMO, ROOT, TARGETS
from vllm_eval.tasks import Task, open_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Example = dict[str, list[int]]

RATE = 5e-3
HELD_OUT = 24
"""Examples that the evaluation loss is the mean of."""


def main() -> None:
    """Train and save; says where and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    output = ROOT / "runs" / "demo_checkpoints"
    parser.add_argument("--output", type=Path, default=output, help="folder to write to")
    parser.add_argument("--steps", type=int, default=240, help="of the optimizer, an example each")
    parser.add_argument("--checkpoints", type=int, default=4, help="how many, evenly spaced")
    chosen = parser.parse_args()
    if chosen.output.exists():
        parser.error(f"{chosen.output} is there already; its checkpoints would get mixed up")
    # With more threads under contention, waiting for each other costs up to four times the time.
    torch.set_num_threads(1)
    started = time.monotonic()
    train(chosen.output, steps=chosen.steps, checkpoints=chosen.checkpoints)
    print(f"{chosen.output}: trained in {time.monotonic() - started:.0f} s")


def train(output: Path, *, steps: int, checkpoints: int) -> None:
    """Train for so many steps, leaving checkpoints, and the last weights in `output` itself."""
    task = open_task("product_owner", DEMO / "prompt.j2")
    base = str(DEMO / "base")
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(base))
    torch.manual_seed(2)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    every = math.ceil(steps / checkpoints)  # the trainer saves after the last step as well
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            adam_beta2=0.98,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=every,
            save_steps=every,
            save_only_model=True,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=learnt(tokenizer, task, seed=2, count=steps),
        eval_dataset=learnt(tokenizer, task, seed=3, count=HELD_OUT),
        data_collator=default_data_collator,  # one example at a time: nothing to pad
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


def learnt(
    tokenizer: PreTrainedTokenizerFast, task: Task, *, seed: int, count: int
) -> list[Example]:
    """So many of the student's examples, whose prompts do not count in the loss."""
    pairs = islice(encoded(tokenizer, examples(task, "student", Random(seed))), count)
    return [{"input_ids": ids, "labels": [IGNORED] * at + ids[at:]} for ids, at in pairs]


if __name__ == "__main__":
    main()
