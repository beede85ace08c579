"""Transformers and PEFT: the reference, and the fallback without vLLM."""
