"""``python -m vllm_eval``."""

from vllm_eval.cli import main

if __name__ == "__main__":  # vLLM's worker processes import this module again
    main()
