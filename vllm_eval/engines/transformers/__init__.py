"""Transformers and PEFT: the old way of asking, kept for comparison."""
