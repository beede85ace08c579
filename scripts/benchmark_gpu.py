"""A 7B model's speed on a GPU without its weights: three calls of `bench`, one summary.

The base is a `config.json` with the published sizes of Qwen2.5-7B; weights and the rank-32 adapter
are made up, answers are forced to their length, so that nothing depends on what is said. Prompts
are the product owner's for the demo's cases, each with a first line of its own, so that no two are
the same beyond the words they share by nature; tokens are the demo tokenizer's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vllm_eval.config.settings import resolve_path

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/config.json; the ends of a text are
those of the demo's tokenizer."""
TINY = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1536,
    "max_position_embeddings": 4096,
}
Parts = tuple[tuple[str, int, str, int], ...]
WHOLE: Parts = (
    ("20 cases x 2 arms", 20, "mixed,arms,generate", 3),
    ("200 cases x 2 arms", 200, "mixed", 2),
    ("transformers", 2, "transformers", 1),
)
"""Name, cases, contestants, repeats. Transformers' speed one at a time does not depend on how many
there are, so few will do."""
SMALL: Parts = (
    ("4 cases x 2 arms", 4, "mixed,arms,generate", 1),
    ("transformers", 2, "transformers", 1),
)


def main(output_dir: str, *, tiny: bool) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "shapes"
        base.mkdir()
        (base / "config.json").write_text(json.dumps(QWEN_7B | (TINY if tiny else {})), "utf-8")
        parts = SMALL if tiny else WHOLE
        data = write_cases(folder / "cases.jsonl", max(part[1] for part in parts))
        common = ["--base-model", str(base), "--load-format", "dummy", "--rank", "32"]
        common += ["--dataset-path", str(data), "--output-dir", output_dir]
        if tiny:
            common += ["--profile", "demo", "-c", "adapters=[]", "-c", "prompt_template=null"]
            common += ["--output-len", "16"]
        else:
            common += ["--profile", "gpu", "--dtype", "bfloat16", "--output-len", "700"]
        found = {part[0]: bench(part, common, output_dir) for part in parts}
    show(found)
    print(f"all of it took {time.monotonic() - start:.0f} s")


def write_cases(path: Path, count: int) -> Path:
    rows = resolve_path("package:demo/cases.jsonl").read_text("utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            case = json.loads(rows[number % len(rows)])["input"]
            case |= {"concept_id": f"G{number}", "concept": f"No. {number}. {case['concept']}"}
            file.write(json.dumps(case) + "\n")
    return path


def bench(part: tuple[str, int, str, int], common: list[str], output_dir: str) -> dict[str, Any]:
    name, count, contestants, repeats = part
    print(f"\n{name}", flush=True)
    tag = f"gpu_{count}x2"
    command = [sys.executable, "-m", "vllm_eval", "bench", *common, "--tag", tag]
    command += ["--max-samples", str(count), "--contestants", contestants]
    subprocess.run([*command, "--repeats", str(repeats)], check=True)
    newest = max(Path(output_dir).glob(f"benchmarks/{tag}_*/bench.json"))
    loaded: dict[str, Any] = json.loads(newest.read_text("utf-8"))
    return loaded


def show(found: dict[str, dict[str, Any]]) -> None:
    """The rows of the table in docs/speed.md."""
    slow = found["transformers"]["contestants"]["transformers"]
    one_at_a_time = slow["output_tokens_per_s"]["median"]
    print("\n| work | seconds | output tokens/s | share of the limit | over transformers |")
    print("|---|---|---|---|---|")
    for name, part in found.items():
        for contestant, row in part["contestants"].items():
            seconds, speed = row["seconds"]["median"], row["output_tokens_per_s"]["median"]
            share = row["limit"]["least_s"] / seconds
            print(
                f"| {name}, {contestant} | {seconds:.1f} | {speed:,.0f} | {share:.0%} "
                f"| {speed / one_at_a_time:.1f} |"
            )


if __name__ == "__main__":
    words = sys.argv[1:]
    given = [word for word in words if word != "--tiny"]
    main(given[0] if given else "results", tiny="--tiny" in words)
