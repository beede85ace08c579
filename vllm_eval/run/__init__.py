"""The story of a run: prepare, evaluate, conclude."""
