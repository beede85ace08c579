"""What files of answers should hold: the gate must not pass on a part of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from vllm_eval.compare.gate import Rule
from vllm_eval.errors import InputError
from vllm_eval.records import BASELINE
from vllm_eval.rescore.settings import config_of, identity_of, records_of
from vllm_eval.store.folder import COMPARISON, JOURNAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vllm_eval.compare.gate import Verdict
    from vllm_eval.inputs.index import CaseIndex
    from vllm_eval.rescore.stored import Source


@dataclass(frozen=True, slots=True)
class Owed:
    """What the files owe together."""

    arms: tuple[str, ...]
    """All that their runs evaluate, also those without an answer yet."""
    outcomes: int
    """Of each arm: as many cases and samples as any of them is asked."""
    gaps: tuple[str, ...]
    """Why a file does not hold what it should."""

    def refuse(self, verdict: Verdict) -> Verdict:
        """The verdict, which no student passes on files with gaps."""
        if not self.gaps:
            return verdict
        why = "; ".join(self.gaps)
        name = "files that are whole"
        rule = Rule("whole_files", verdict.arm, name, None, 1.0, None, False, why)
        chance = None if verdict.pass_chance is None else 0.0
        rules = (*verdict.rules, rule)
        return replace(verdict, passed=False, rules=rules, pass_chance=chance)


def find_pending(sources: Sequence[Source], indexes: Mapping[Path, CaseIndex]) -> Owed:
    """What is pending, from what is stored in the files and beside them.

    Where a run says nothing of its size, an arm owes every case and sample that another one has.
    """
    arms: dict[str, None] = {}
    every: set[tuple[str, int]] = set()
    sizes = [0]
    gaps: list[str] = []
    for source in sources:
        arms |= dict.fromkeys(_arms(source))
        every |= {key[1:] for key in source.keys}
        size = _run_size(source, indexes[source.path])
        if size is not None:
            sizes.append(size)
        gaps += _gaps(source, size)
    return Owed(tuple(arms), max(len(every), *sizes), tuple(gaps))


def _gaps(source: Source, size: int | None) -> list[str]:
    path, held = source.path, source.outcomes
    gaps = []
    if source.partial:
        gaps.append(f'{path} says "partial": true')
    if source.stated is not None and source.stated != held:
        gaps.append(f"{path} says {source.stated} total_samples and holds {held}")
    each = Counter(key[0] for key, place in source.keys.items() if place)
    short = [arm for arm in _arms(source) if size is not None and each[arm] < size]
    return [*gaps, *(f"{path} holds {each[arm]} of {size} outcomes of {arm}" for arm in short)]


def _arms(source: Source) -> tuple[str, ...]:
    """The arms that a file should hold: of a journal all that its run evaluates."""
    identity = identity_of(source) if source.path.name == JOURNAL else None
    adapters = identity.get("adapters") if identity else None
    run = (BASELINE, *adapters) if isinstance(adapters, dict) else ()
    return tuple(dict.fromkeys((*source.arms, *run)))


def _run_size(source: Source, index: CaseIndex) -> int | None:
    """How many outcomes each arm of the run must have; None where that is not known."""
    identity = identity_of(source)
    records = records_of(source)
    if identity is not None and records is not None:
        return _size(identity, records)
    config = config_of(source)
    if source.partial or (source.path.name == JOURNAL and config):
        return _size(config, len(index.places))
    return None


def _size(settings: Mapping[str, Any], records: int) -> int:
    most, samples = settings.get("max_samples"), settings.get("samples_per_case")
    drawn = min(most, records) if isinstance(most, int) else records
    return drawn * (samples if isinstance(samples, int) else 1)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of answers behind `paths`, each of which is a file or a run folder.

    The result files of a run that did not end lack what its journal may hold.

    Raises:
        InputError: there is no such file, or a folder without answers.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [*sorted(path.glob(f"{BASELINE}*.json")), *sorted(path.glob("student*.json"))]
        if (path / JOURNAL).is_file() and not (inside and is_whole(path)):
            inside = [path / JOURNAL]
        if not inside:
            msg = f"{path}: holds no {BASELINE}_*.json, student_*.json or {JOURNAL}"
            raise InputError(msg)
        found += inside
    return list(dict.fromkeys(found))


def is_whole(folder: Path) -> bool:
    """Whether the run in a folder came to its end."""
    try:
        return not orjson.loads((folder / COMPARISON).read_bytes())["partial"]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False
