"""Decide whether a LoRA adapter is good enough to ship: base and students in one vLLM engine."""

__version__ = "0.1.0"
