"""One arm the old way: load model and adapter, ask one case at a time, grade, write a file.

usage: peers_predecessor.py ADAPTER|- PROMPTS.jsonl OUTPUT_LEN OUT.json BASE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_eval.records import Case
from vllm_eval.tasks import open_task


def main(adapter: str, prompts: str, output_len: int, out: str, base: str) -> None:
    task = open_task("product_owner")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter != "-":
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    torch.manual_seed(42)
    results, tokens = [], 0
    for number, line in enumerate(Path(prompts).read_text("utf-8").splitlines(), start=1):
        row = json.loads(line)
        inputs = tokenizer(row["prompt"], return_tensors="pt")
        with torch.inference_mode():
            rows = model.generate(
                **inputs,
                do_sample=True,
                temperature=0.2,
                top_p=0.9,
                min_new_tokens=output_len,
                max_new_tokens=output_len,
            )
        answer = rows[0][inputs["input_ids"].shape[1] :]
        tokens += len(answer)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        inputs = {key: row[key] for key in task.declaration.inputs}
        case = Case(row["id"], number, row["tier"], inputs)
        graded = task.grade(case, text)
        reason = graded.problem.reason if graded.problem else None
        results.append({"concept_id": case.id, "error": reason, "raw_response": text})
    Path(out).write_text(json.dumps({"output_tokens": tokens, "results": results}), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
