"""Times engines, settings and ways of asking on the same work."""
