"""What constrained decoding costs: the demo's answers free and constrained, in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = ("none", "only")


def main() -> None:
    """Print output tokens per second of each repeat, and constrained to free within a repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", type=int, default=20)
    given, more = parser.parse_known_args()
    ratios = []
    for repeat in range(given.repeats):
        speeds = {way: _measure(way, given.cases, more) for way in WAYS}
        ratios.append(speeds["only"] / speeds["none"])
        said = ", ".join(f"{way} {speed:.0f}" for way, speed in speeds.items())
        sys.stdout.write(f"{repeat + 1}: {said} output tokens/s, ratio {ratios[-1]:.3f}\n")
    sys.stdout.write(f"median ratio {statistics.median(ratios):.3f}\n")


def _measure(way: str, cases: int, more: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "vllm_eval", "--config", "demo", "--no-report"),
            *("-c", f"constrain={way}", "--retries", "0", "--max-samples", str(cases)),
            *("--output-dir", folder, *more),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1, 4):
            sys.exit(done.stderr)
        (run,) = Path(folder).iterdir()
        timing = json.loads((run / "comparison.json").read_bytes())["timing"]
        return float(timing["output_tokens_per_s"])


if __name__ == "__main__":
    main()
