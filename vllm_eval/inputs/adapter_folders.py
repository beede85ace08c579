"""From what was given as adapters to the folders that hold one: names, globs, training runs."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from vllm_eval.config.settings import PACKAGE, Config, resolve_path
from vllm_eval.errors import AdapterError
from vllm_eval.inputs.adapters import CONFIG_FILE
from vllm_eval.inputs.checkpoints import (
    BELOW,
    STATE_FILE,
    UNFINISHED,
    called,
    held_in,
    holds_checkpoints,
    is_adapter,
    read_state,
    step_in_name,
    step_of,
    subfolders,
)
from vllm_eval.inputs.hub import download
from vllm_eval.inputs.missing_paths import near

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAMED = re.compile(r"([^/\\=]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Found:
    """One adapter to compare."""

    given: str
    """What was given for it, without its name."""
    parts: tuple[str, ...]
    """Parts of the path that it can be called by."""
    folder: Path | None = None
    """None where there are no files of it here: a label, or an adapter on a server."""
    step: int | None = None
    training: Path | None = None
    """Folder of its training run."""
    final: bool = False
    """Whether it is what lies in the training run's own folder, beside checkpoints."""
    name: str | None = None
    """As given; None if it is to be called by its path."""


@dataclass(frozen=True, slots=True)
class Note:
    """What became of something that was given, to be shown before the run."""

    what: str
    todo: str = ""
    """What to do; empty where all is well."""


def find_adapters(given: str, config: Config, notes: list[Note]) -> list[Found]:
    """The adapters that `given` stands for: one, or those that a glob or a folder expands to.

    What it became is added to `notes`. A hub id is downloaded.

    Raises:
        AdapterError: there is none, or it cannot be told which.
    """
    try:
        if there := places(given, config.adapter_dirs):
            return _expanded(given, there[0], config, notes)
        if glob.has_magic(given) and (matches := _matches(given, config.adapter_dirs)):
            return _of_matches(given, matches, config, notes)
        if named := _NAMED.fullmatch(given):
            return [replace(_one(named[2], config), name=named[1])]
        return [_elsewhere(given, config)]
    except OSError as error:
        where = f" ({error.filename})" if error.filename != given else ""
        msg = f"adapter {given!r}: cannot be read: {error.strerror or error}{where}"
        raise AdapterError(f"{msg}; look at the folder's permissions") from error


def places(given: str, adapter_dirs: Sequence[str]) -> list[Path]:
    """The folders of that path or name, the one that counts first."""
    return [called(place) for place in _where(given, adapter_dirs) if place.is_dir()]


def _where(given: str, adapter_dirs: Sequence[str]) -> list[Path]:
    return [resolve_path(given), *(resolve_path(folder) / given for folder in adapter_dirs)]


def _one(given: str, config: Config) -> Found:
    """Exactly one adapter, so a folder that holds several but is none itself is refused."""
    there = places(given, config.adapter_dirs)
    if not there and glob.has_magic(given):
        msg = f"adapter {given!r}: a name is for one adapter, not for all that a glob matches"
        raise AdapterError(f"{msg}; leave out the name")
    found = _expanded(given, there[0], config, []) if there else [_elsewhere(given, config)]
    if found[-1].final:
        return found[-1]
    if len(found) > 1:
        names = ", ".join(one.parts[-1] for one in found[:3])
        msg = f"adapter {given!r}: a name is for one adapter, but this holds {len(found)} ({names}"
        raise AdapterError(f"{msg}{', ...' * (len(found) > 3)}); name one, or leave out the name")
    return found[0]


def _elsewhere(given: str, config: Config) -> Found:
    """An adapter of which nothing lies here: a label, one on a server, or one on the hub."""
    if glob.has_magic(given):
        msg = f"adapter {given!r}: matches no folder that holds an adapter"
        raise AdapterError(f"{msg}; {near(_where(given, config.adapter_dirs)) or 'give a folder'}")
    if config.answering == "scripted" or config.engine == "openai":
        return _label(given)
    if file := next((path for path in _where(given, config.adapter_dirs) if path.is_file()), None):
        todo = f"give its folder, {file.parent}, or put a glob into quotes"
        raise AdapterError(f"adapter {given!r}: is a file; {todo}")
    hint = near(_where(given, config.adapter_dirs))
    if _HUB_ID.fullmatch(given) and not _is_path(given):
        folder = download(given, hint)
        step = read_state(folder).get("global_step")
        return Found(given, tuple(given.split("/")), folder, step)
    looked = ", ".join(dict.fromkeys(str(place) for place in _where(given, config.adapter_dirs)))
    todo = hint or ("give a folder" if _is_path(given) else "give a folder or a hub id")
    raise AdapterError(f"adapter {given!r}: no such folder (looked for {looked}); {todo}")


def _label(given: str) -> Found:
    *above, last = given.rstrip("/").removeprefix(PACKAGE).split("/")
    parts = [part for part in above if part.strip(".")]
    return Found(given, (*parts, last.rpartition(":")[2]))


def _is_path(given: str) -> bool:
    """Whether it looks like a path, so that the hub is never asked for it."""
    first = given.partition("/")[0]
    return (
        given.startswith((".", "/", "~", PACKAGE))
        or given.endswith("/")
        or "\\" in given
        or given.count("/") > 1
        or Path(first).is_dir()
    )


def _matches(pattern: str, adapter_dirs: Sequence[str]) -> list[Path]:
    """The folders that a glob matches here, else in the first adapter folder with any."""
    for place in _where(pattern, adapter_dirs):
        parts = place.parts
        first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        try:
            found = list(Path(*parts[:first]).glob("/".join(parts[first:])))
        except ValueError as error:
            raise AdapterError(f"adapter {pattern!r}: is not a valid glob: {error}") from error
        if folders := [called(path) for path in found if path.is_dir()]:
            return folders
    return []


def _of_matches(
    given: str, matches: Sequence[Path], config: Config, notes: list[Note]
) -> list[Found]:
    """What the matches of a glob expand to, each folder once; those with no adapter are left."""
    found: dict[Path, Found] = {}
    empty: list[str] = []
    for place in sorted(matches, key=_order):
        unfinished = place.name.startswith(UNFINISHED) and step_in_name(place.name) is not None
        inside = [] if unfinished else _inside(place, config, notes)
        if not inside and step_in_name(place.name) is not None:
            empty.append(place.name)
        for one in inside:
            found.setdefault(one.folder or place, one)
    if not found:
        count = f"{_count(len(matches), 'folder')}, such as {matches[0]}"
        msg = f"adapter {given!r}: matches {count}, but no adapter ({CONFIG_FILE}) in them"
        raise AdapterError(f"{msg}; give a glob of adapters' folders")
    notes.append(Note(f"{given}: {_count(len(found), 'adapter')}"))
    _note_empty(given, empty, notes)
    return list(found.values())


def _note_empty(given: str, names: Sequence[str], notes: list[Note]) -> None:
    if names:
        what = f"{given}: left out for want of an adapter: {', '.join(sorted(names))}"
        notes.append(Note(what, "copy or save what should be compared again"))


def _expanded(given: str, place: Path, config: Config, notes: list[Note]) -> list[Found]:
    """A folder as what it holds; as itself if that is nothing, for its reader to say why."""
    if found := _below(given, place, config, notes):
        return found
    if config.answering == "scripted":
        return [_label(given)]
    inside = [child for child in subfolders(place) if _inside(child, config, [])]
    if inside:
        names = ", ".join(child.name for child in inside[:3])
        msg = f"adapter {given!r}: holds no adapter itself, but folders with some ({names}"
        todo = f"give --adapter '{_any_in(given)}' for all of them, or name one"
        raise AdapterError(f"{msg}{', ...' * (len(inside) > 3)}); {todo}")
    if holds_checkpoints(place):
        msg = f"adapter {given!r}: none of its checkpoints holds an {CONFIG_FILE}"
        raise AdapterError(f"{msg}; was a whole model trained? Then it is a --base-model")
    return [_single(given, place, place, config)]


def _inside(place: Path, config: Config, notes: list[Note]) -> list[Found]:
    """The adapters of one of several folders; it may be none of the user's, as `lost+found`."""
    try:
        return _below(str(place), place, config, notes)
    except OSError as error:
        if step_in_name(place.name) is not None:
            raise
        what = f"{place}: is left out: {error.strerror or error}"
        notes.append(Note(what, "look at the folder's permissions"))
        return []


def _below(given: str, place: Path, config: Config, notes: list[Note]) -> list[Found]:
    """The adapters of a folder: its checkpoints by step, then others by name; its own last."""
    own, children = (place / CONFIG_FILE).is_file(), subfolders(place)
    checkpoints = [child for child in children if step_in_name(child.name) is not None]
    is_checkpoint = step_in_name(place.name) is not None  # in which DeepSpeed has global_step300
    held = held_in(place) if is_checkpoint or (own and not checkpoints) else []
    if len(held) == 1:
        return [_single(given, place, held[0], config)]
    found, empty = [], []
    for child in sorted(checkpoints, key=_order):
        held = [] if child.name.startswith(UNFINISHED) else held_in(child)
        if len(held) > 1:
            raise _ambiguous(child, held)
        found += [_single(str(child), child, folder, config) for folder in held]
        empty += [child.name] * (not held)
    count = _count(len(found), "checkpoint")
    if own:
        end = f" and the final adapter; NAME={given} takes that one alone"
        count = count + end if found else "the final adapter"
        found.append(_final(given, place))
    elif others := [c for c in children if c not in checkpoints and is_adapter(c)]:
        found += [
            _final(str(c), c) if holds_checkpoints(c) else _single(str(c), c, c, config)
            for c in others
        ]
        count = f"{count} and " * bool(checkpoints) + _count(len(others), "adapter")
    if found:
        notes.append(Note(f"{given}: {count}"))
        _note_empty(given, empty, notes)
        runs = [
            c.name for c in children if not own and c not in checkpoints and holds_checkpoints(c)
        ]
        if runs:
            what = f"{given}: the checkpoints in {', '.join(runs)} are left out"
            notes.append(Note(what, f"give --adapter '{_any_in(given)}' for them too"))
    return found


def _any_in(folder: str) -> str:
    """The glob of everything in a folder, in whose own name brackets are no pattern."""
    return f"{glob.escape(folder.rstrip('/'))}/*"


def _ambiguous(checkpoint: Path, held: Sequence[Path]) -> AdapterError:
    names = ", ".join(str(folder.relative_to(checkpoint)) for folder in held[:3])
    msg = f"adapter {checkpoint}: holds {len(held)} adapters ({names})"
    glob_of_one = f"{_any_in(str(checkpoint.parent))}/{held[0].relative_to(checkpoint)}"
    return AdapterError(f"{msg}; choose one, in all of them: --adapter '{glob_of_one}'")


def _single(given: str, place: Path, held: Path, config: Config) -> Found:
    """The adapter in `held`, called by `place`."""
    paths = (held.absolute(), held.resolve())  # a link may be called `best`
    above = chain.from_iterable([path, *path.parents[: len(BELOW)]] for path in paths)
    checkpoint = next((path for path in above if step_in_name(path.name) is not None), None)
    step = read_state(held).get("global_step")
    if checkpoint is not None and step is None:
        step = step_of(checkpoint)
    return Found(given, _parts(place), held.resolve(), step, _training(held, checkpoint, config))


def _training(held: Path, checkpoint: Path | None, config: Config) -> Path | None:
    """The folder of a training run: where an adapter's checkpoint lies, or it and checkpoints."""
    folder = (checkpoint or held).resolve().parent
    dirs = [resolve_path(name).resolve() for name in config.adapter_dirs]  # of many runs
    if checkpoint is not None or (folder not in dirs and holds_checkpoints(folder)):
        return folder
    return held.resolve() if (held / STATE_FILE).is_file() else None


def _final(given: str, place: Path) -> Found:
    """The adapter at the end of a training run, in the run's own folder."""
    steps = [
        (step, path)
        for path in subfolders(place)
        if (step := step_of(path)) is not None and not path.name.startswith(UNFINISHED)
    ]
    step = read_state(place).get("global_step")
    if step is None and steps:
        last, path = max(steps)
        planned = read_state(path).get("max_steps")
        step = planned if planned is not None and planned >= last else None
    return Found(given, _parts(place), place.resolve(), step, place.resolve(), final=True)


def _order(place: Path) -> tuple[str, bool, int, str]:
    """Checkpoints of one folder by step, before its other folders by name."""
    step = step_of(place)
    return str(place.parent), step is None, step or 0, place.name


def _parts(place: Path) -> tuple[str, ...]:
    whole = place.absolute()  # as the user calls it: a link keeps its name
    return (whole.resolve() if ".." in whole.parts else whole).parts[1:]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
