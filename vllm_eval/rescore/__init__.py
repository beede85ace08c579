"""Stored answers, graded again or compared: everything after the engine."""
