"""The Python door, for notebooks and training scripts; the command line goes through it too.

Options are the configuration's keys, by their own names: `max_samples=20`, `gate={"min_ratio": 1}`.
Bad ones raise what the command line prints. Nothing here prints, exits or handles signals unless
it is asked to; what happens is told to the logger `vllm_eval`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vllm_eval.config.layers import Layers
from vllm_eval.errors import ConfigError
from vllm_eval.preflight.check import check_config
from vllm_eval.records import Progress
from vllm_eval.report.display import Result, result_of, show
from vllm_eval.report.terminal import Terminal
from vllm_eval.rescore.compare import compare_runs
from vllm_eval.rescore.score import Scored
from vllm_eval.rescore.score import score as score_files
from vllm_eval.rescore.show import ScoreProgress
from vllm_eval.run.resume import load_resumed
from vllm_eval.run.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_eval.preflight.finding import Findings

    Names = str | Path | Sequence[str | Path]
    Tell = bool | Callable[[Progress], None]

__all__ = [
    "Progress",
    "Result",
    "check",
    "compare_runs",
    "evaluate",
    "evaluate_layers",
    "score",
    "show",
]

SOURCE = "options"
"""What an error calls the arguments given here."""
LOG = logging.getLogger("vllm_eval")


def evaluate(
    adapters: Names = (),
    *,
    config: Names = (),
    resume: str | Path | None = None,
    progress: Tell = False,
    stop_on_signals: bool = False,
    **options: object,
) -> Result:
    """Evaluate adapters against their base, as `vllm_eval run` does.

    Args:
        adapters: folders, training runs, globs, names in `adapter_dirs`, hub ids; `NAME=PATH`
            names one.
        config: YAML files or shipped profiles, lowest first; the options go over them.
        resume: a run to continue, by folder or name, or `auto`: the newest like this one, if any.
        progress: True for the terminal's display; or a function, which is called with the counts
            while the engine answers, and may set their `stopping` to end with a partial run.
        stop_on_signals: end in order, with a partial run, on the first Ctrl-C or SIGTERM.
        options: keys of the configuration.

    Raises:
        InputError: something about options, data set, adapters or base.
        EngineError: the engine could not be started, or died too often.
        KeyboardInterrupt: Ctrl-C, unless `stop_on_signals`. The run can be resumed.
    """
    layers = _layers(config, options, adapters)
    return evaluate_layers(layers, resume, progress=progress, stop_on_signals=stop_on_signals)


def evaluate_layers(
    layers: Layers,
    resume: str | Path | None = None,
    *,
    progress: Tell = False,
    stop_on_signals: bool = False,
    stream: TextIO | None = None,
) -> Result:
    """What `evaluate` and the command line do with the configuration they are given.

    The terminal's display goes to standard output, or else to `stream`.
    """
    config, folder = load_resumed(layers, resume)
    if progress is not True:
        watcher = _Quiet(progress or None)
        _, stored = run(config, watcher, folder, stop_on_signals=stop_on_signals)
        return result_of(stored)
    with Terminal(stream) as terminal:
        finished, stored = run(config, terminal, folder, stop_on_signals=stop_on_signals)
        terminal.finished(finished)
    return result_of(stored)


def check(adapters: Names = (), *, config: Names = (), **options: object) -> Findings:
    """Look at everything that a run needs, without loading a model, as `vllm_eval check` does.

    Takes what `evaluate` takes. What it finds wrong is in the findings.

    Raises:
        ConfigError: an option cannot be used.
    """
    return check_config(_layers(config, options, adapters).load())


def score(
    answers: Names, *, config: Names = (), progress: Tell = False, **options: object
) -> Scored:
    """Grade stored answers again, without an engine, as `vllm_eval score` does.

    Args:
        answers: result files, journals or run folders.
        config: YAML files or shipped profiles, lowest first; the options go over them.
        progress: True for a bar on standard error; or a function, called with the counts.
        options: keys of the configuration: `dataset_path`, `task`, `gate`, `repair`.

    Raises:
        InputError: an option, a file, a line or a data set cannot be used.
    """
    settled = _layers(config, {"profile": "none"} | options).load()
    paths = [Path(name) for name in _names("answers", answers)]
    if progress is not True:
        return score_files(paths, settled, _Quiet(progress or None))
    with closing(ScoreProgress(silent=False)) as bar:
        return score_files(paths, settled, bar)


@dataclass(frozen=True, slots=True)
class _Quiet:
    """Tells the logger what happens, and a function the counts."""

    tell: Callable[[Progress], None] | None

    def stage(self, text: str) -> None:
        LOG.info("%s", text)

    def progress(self, progress: Progress) -> None:
        if self.tell is not None:
            self.tell(progress)


def _layers(config: Names, options: Mapping[str, object], adapters: Names = ()) -> Layers:
    given = {"adapters": _names("adapters", adapters)} if adapters else {}
    return Layers(_names("config", config), (), {**options, **given}, SOURCE)


def _names(option: str, given: Names) -> list[str]:
    """One name or several, as strings.

    Raises:
        ConfigError: anything else.
    """
    names: list[object] = [given]
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        names = list(given)
    if not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(f"{SOURCE}: {option}: input should be a name or several, not {given!r}")
    return [str(name) for name in names]
