"""Everything that can be checked before a model is loaded."""
