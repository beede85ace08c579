"""Profiles, files and flags become one frozen record; the hardware; what identifies a run."""
