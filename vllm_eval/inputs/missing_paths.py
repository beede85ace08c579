"""What may have been meant by a path that is not there."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

MOST = 3
"""Names offered."""
MOST_READ = 10_000
"""Entries of a folder looked at: it may be any folder of the disk."""
CUTOFF = 0.6


def near(places: Iterable[Path]) -> str:
    """`did you mean ...?` with folders beside these missing ones; empty if none is like them."""
    offered = dict.fromkeys(str(like) for place in places for like in _like(place))
    if not offered:
        return ""
    names = list(map(repr, islice(offered, MOST)))
    return f"did you mean {' or '.join(names)}?"


def _like(place: Path) -> Iterator[Path]:
    """Folders beside the first part of `place` that is missing, with the rest where it is there."""
    parts = place.parts
    for depth in range(len(parts)):
        parent, wanted = Path(*parts[:depth]), parts[depth]
        if (parent / wanted).is_dir():
            continue
        names = _subfolders(parent)
        like = difflib.get_close_matches(wanted.casefold(), names, MOST, CUTOFF)
        for name in (names[key] for key in like):
            rest = parent.joinpath(name, *parts[depth + 1 :])
            yield rest if rest.is_dir() else parent / name
        return


def _subfolders(parent: Path) -> dict[str, str]:
    """The names of the folders in `parent`, by their names in lower case."""
    try:
        with os.scandir(parent) as entries:
            some = islice(entries, MOST_READ)
            return {entry.name.casefold(): entry.name for entry in some if entry.is_dir()}
    except OSError:
        return {}
