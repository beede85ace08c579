"""Replicas of an engine as Ray actors."""
