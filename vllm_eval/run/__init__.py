"""A run from start to end: prepare, evaluate, conclude."""
