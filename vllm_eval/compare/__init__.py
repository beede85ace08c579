"""Outcomes become numbers, and numbers a verdict. Knows arms, but no engine and no file."""
