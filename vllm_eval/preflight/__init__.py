"""Everything that can be found out about a run before a model is loaded."""
