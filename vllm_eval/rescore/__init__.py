"""Stored answers, graded again or held against each other: everything right of the engine."""
