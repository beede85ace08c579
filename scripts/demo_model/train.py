"""Make the embedded demo: tokenizer, base model, LoRA adapter and evaluation cases.

Everything is seeded; run it as `scripts/train_demo`. It exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, GenerationConfig, Qwen2ForCausalLM

from scripts.demo_model.bpe import train_tokenizer
from scripts.demo_model.check import evaluate, shortfalls
from scripts.demo_model.examples import as_case, examples
from scripts.demo_model.fit import Plan, encoded, token_accuracy, train
from scripts.demo_model.network import ROPE_THETA, new_model
from scripts.demo_model.products import TIERS, Product, draw_product
from vllm_eval.tasks import Task, open_task

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "vllm_eval" / "demo"
CASES_PER_TIER = 22
COLONS_PER_TIER = 6
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE_PLAN = Plan(steps=600, rate=1.5e-3)
STUDENT_PLAN = Plan(steps=250, rate=3e-3, warmup=20, decay=0.0, prompt_weight=0.0)


def main() -> int:
    """Train, save, evaluate; the exit code says whether the targets are reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEMO, help="folder to write to")
    parser.add_argument("--keep-base", action="store_true", help="train the adapter only")
    arguments = parser.parse_args()
    output: Path = arguments.output
    # With more threads under contention, waiting for each other costs up to four times the time.
    torch.set_num_threads(1)
    started = time.monotonic()
    task = open_task("product_owner", DEMO / "prompt.j2")
    products = evaluation_products()
    write_cases(products, output / "cases.jsonl")
    if not arguments.keep_base:
        make_base(task, output / "base")
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(output / "base"))
    # The adapter is trained on the base as it is stored, rounding included.
    base = Qwen2ForCausalLM.from_pretrained(output / "base", dtype=torch.float32)
    student = make_student(base, tokenizer, task, output / "po_student_demo")
    for weights in output.rglob("*.safetensors"):
        weights.chmod(0o644)  # written for the owner alone, which would carry over into packages
    print(f"trained in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return conclude(student, tokenizer, task, products)


def evaluation_products() -> list[Product]:
    """The products of the shipped cases; none of their names is ever trained on."""
    rng = Random(20250611)
    products = [
        draw_product(rng, tier=tier, colon=number < COLONS_PER_TIER, evaluation=True)
        for tier in TIERS
        for number in range(CASES_PER_TIER)
    ]
    rng.shuffle(products)
    return products


def write_cases(products: list[Product], path: Path) -> None:
    """One record a line, numbered in order."""
    records = (item.record(f"DEMO-{number:04d}") for number, item in enumerate(products, start=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_base(task: Task, folder: Path) -> None:
    """Train the tokenizer and the base model and save both."""
    rng = Random(1)
    torch.manual_seed(1)
    seen = [
        prompt + answer
        for pupil in ("base", "student")
        for prompt, answer in islice(examples(task, pupil, rng), 1500)
    ]
    tokenizer = train_tokenizer(seen, folder)
    end = cast("int", tokenizer.eos_token_id)
    prefixes = ("FR", "NFR", "C")
    alike = [(one_token(tokenizer, f" {text}"), one_token(tokenizer, text)) for text in prefixes]
    model = new_model(len(tokenizer), end, alike)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"base: {size} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, encoded(tokenizer, examples(task, "base", rng)), BASE_PLAN, "base")
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    # Transformers 4 reads the old names only, and would silently take its defaults.
    patch_json(folder / "config.json", {"rope_theta": ROPE_THETA, "torch_dtype": "bfloat16"})


def make_student(
    base: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, folder: Path
) -> PeftModel:
    """Train the adapter on the frozen base and save it."""
    rng = Random(2)
    torch.manual_seed(2)
    held_back = encoded(tokenizer, examples(task, "base", Random(3)))
    print(f"base: {token_accuracy(base, held_back, 40):.4f} of fresh answer tokens right")
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    student = cast("PeftModel", get_peft_model(base, lora))
    train(student, encoded(tokenizer, examples(task, "student", rng)), STUDENT_PLAN, "student")
    held_back = encoded(tokenizer, examples(task, "student", Random(3)))
    print(f"student: {token_accuracy(student, held_back, 40):.4f} of fresh answer tokens right")
    # The path that a checkout of the repository finds it under, wherever it was trained.
    student.peft_config["default"].base_model_name_or_path = "vllm_eval/demo/base"
    student.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    patch_json(folder / "adapter_config.json", {"target_modules": TARGETS})  # not a set's order
    return student


def one_token(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The id of the one token that `text` is."""
    (token,) = cast("list[int]", tokenizer(text)["input_ids"])
    return token


def patch_json(path: Path, changes: dict[str, object]) -> None:
    """Change keys of a JSON file."""
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def conclude(
    student: PeftModel, tokenizer: PreTrainedTokenizerFast, task: Task, products: list[Product]
) -> int:
    """Print what both arms reach on the shipped cases; 1 where a target is missed."""
    student.eval()
    cases = [as_case(item, f"DEMO-{number:04d}") for number, item in enumerate(products, start=1)]
    base_reached = evaluate(student, tokenizer, task, cases, student=False)
    print(f"base: {base_reached}")
    student_reached = evaluate(student, tokenizer, task, cases, student=True)
    print(f"student: {student_reached}")
    missed = shortfalls(base_reached, student_reached)
    for target in missed:
        print(f"MISSED: {target}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
