"""How much of an expensive check a run makes: all of it with `--deep`, as in CI."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Depth:
    """Set before tests are collected."""

    deep: bool = False


DEPTH = Depth()


def count(normal: int, *, deep: int) -> int:
    """Examples, seeds or kills of one test."""
    return deep if DEPTH.deep else normal
