"""Markdown, HTML, plots and other tools' formats from a run folder. Renders and never computes."""
