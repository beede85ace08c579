"""From a journal to result files: one pass, one record."""
