"""Outcomes become numbers, numbers become a verdict. Knows arms, knows no engine and no file."""
