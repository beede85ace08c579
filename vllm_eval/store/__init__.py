"""The run folder: the append-only journal, what it holds, and the files beside it."""
