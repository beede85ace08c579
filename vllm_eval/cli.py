"""argv becomes a configuration, an error becomes an exit code."""

from __future__ import annotations

import atexit
import errno
import gc
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_eval.bench.contestants import bench_options, take_options
from vllm_eval.config.flags import FLOAT, config_layer, config_options, layer_options
from vllm_eval.errors import EvalError
from vllm_eval.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

PASS, FAIL, BAD_INPUT, COULD_NOT_EVALUATE, INTERRUPTED = 0, 1, 2, 3, 130
IMPOSSIBLE_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ)
"""Errors of the file system that only a name given by the user can bring about."""


class _RunByDefault(click.Group):
    """A group whose first word may be left out: it is then `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "--version")):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show what `run` takes as well: most users know no other command."""
        super().format_options(ctx, formatter)
        with formatter.section("Options of run"):
            records = (option.get_help_record(ctx) for option in self.commands["run"].params)
            formatter.write_dl([record for record in records if record and record[0] != "--help"])


@click.group(cls=_RunByDefault, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="vllm_eval")
def app() -> None:
    """Decide whether a LoRA adapter is good enough to ship.

    Base and students answer the same cases in one vLLM engine; the gate says PASS or FAIL.
    `run` is the default command.

    Exit codes: 0 PASS, 1 FAIL, 2 bad usage or input, 3 could not evaluate, 130 interrupted.
    """


@app.command("run")
@config_options
@click.option(
    "--resume",
    metavar="RUN|auto",
    help="Continue a run: its folder, its name, or auto for the newest one like this, if any.",
)
def run_command(
    files: Sequence[str], settings: Sequence[str], resume: str | None, **given: object
) -> None:
    """Evaluate base and students, and grade the students.

    Exit codes: 0 PASS, 1 FAIL, 2 bad usage or input, 3 could not evaluate, 130 interrupted.
    """
    from vllm_eval.api import evaluate_config
    from vllm_eval.run.resume import load_resumed

    config, folder = load_resumed(resume, files, settings, config_layer(given))
    result = evaluate_config(config, folder, progress=True, stop_on_signals=True)
    if result.pending:
        sys.exit(INTERRUPTED)
    sys.exit(PASS if result.passed else FAIL)


@app.command("check")
@config_options
@click.option("--json", "as_json", is_flag=True, help="One JSON array on standard output.")
def check_command(
    files: Sequence[str], settings: Sequence[str], as_json: bool, **given: object
) -> None:
    """Look at everything left of the engine, without loading a model.

    Exit codes: 0 nothing stands in the way, 2 something does.
    """
    from vllm_eval.config.settings import load_config
    from vllm_eval.preflight.check import check_config
    from vllm_eval.report.terminal import show_findings

    findings = check_config(load_config(files, settings, config_layer(given)))
    show_findings(findings, as_json=as_json)
    sys.exit(BAD_INPUT if any(finding.level == "error" for finding in findings) else PASS)


@app.command("score")
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--dataset-path", help="Data set with the requirements; default: as stored.")
@click.option("--task", help="Name or file; default: as stored by name, else product_owner.")
@click.option("--confidence", type=FLOAT, help="Level at which the ratio must hold too.")
@click.option("--repair", is_flag=True, help="Show what repairs of the text would recover.")
@layer_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object per answer, nothing else.")
def score_command(
    answers: Sequence[Path],
    files: Sequence[str],
    settings: Sequence[str],
    as_json: bool,
    **given: object,
) -> None:
    """Grade stored answers again, without an engine.

    ANSWERS are result files, ours or {"results": [...]}, journals (attempts.jsonl) or run folders.

    Exit codes: with one baseline and students 0 PASS, 1 FAIL; else 0 where every recorded status
    and score is reproduced, 1 where not; 2 bad usage or input.
    """
    from vllm_eval.config.settings import load_config
    from vllm_eval.rescore.score import score
    from vllm_eval.rescore.show import ScoreProgress, show_row, show_scored

    flags = {key: given[key] for key in ("dataset_path", "task") if given[key] is not None}
    if given["repair"]:
        flags["repair"] = True
    if given["confidence"] is not None:
        flags["gate"] = {"confidence": given["confidence"]}
    config = load_config(files, ["profile=none", *settings], flags)
    with ScoreProgress(silent=as_json) as progress:
        scored = score(answers, config, progress, show_row if as_json else None)
    if not as_json:
        show_scored(scored)
    sys.exit(PASS if scored.passed else FAIL)


@app.command("compare")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def compare_command(first: Path, second: Path, as_json: bool) -> None:
    """Hold run B against run A, case by case, on what was recorded.

    A and B are run folders, result files or journals.

    Exit codes: 0 compared, 2 bad usage or input, also two that must not be compared.
    """
    from vllm_eval.rescore.compare import compare_runs
    from vllm_eval.rescore.show import show_compared

    show_compared(compare_runs(first, second), as_json=as_json)
    sys.exit(PASS)


@app.command("report")
@click.argument("runs", nargs=-1, required=True)
@click.option("--output-dir", default="results", help="Where runs lie.  [results]")
@click.option("--output", type=click.Path(path_type=Path), help="Page over several runs.")
@click.option("--mlflow", metavar="URI", help="Log to this MLflow store or server as well.")
def report_command(
    runs: Sequence[str], output_dir: str, output: Path | None, mlflow: str | None
) -> None:
    """Render stored runs again: report.html, report.md, plots, junit.xml, summary.md, the ZIP.

    RUNS are run folders, or names of runs. One that was cut off is concluded from what it has. Of
    several runs there is one page over time as well, history.html in the output folder.

    Exit codes: 0 rendered, 2 bad usage or input.
    """
    from vllm_eval.report.terminal import Terminal
    from vllm_eval.report.write import render

    with Terminal() as terminal:
        render(runs, terminal, output_dir, output, mlflow)
    sys.exit(PASS)


@app.command("diagnose")
@click.argument("run_name", metavar="RUN")
@click.option("--output-dir", default="results", help="Where runs lie.  [results]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def diagnose_command(run_name: str, output_dir: str, as_json: bool) -> None:
    """Say why answers failed, and what would help by how much.

    RUN is a run folder, or the name of a run. One that was cut off is concluded from what it has.

    Exit codes: 0 shown, 2 bad usage or input.
    """
    from vllm_eval.conclude.conclude import concluded
    from vllm_eval.report.tables import diagnosis_tables
    from vllm_eval.report.terminal import Terminal, show_json
    from vllm_eval.store.folder import find_run

    diagnosis = concluded(find_run(run_name, output_dir))["diagnosis"]
    if as_json:
        show_json(diagnosis)
    else:
        with Terminal() as terminal:
            terminal.show(diagnosis_tables(diagnosis))
    sys.exit(PASS)


@app.command("export")
@click.argument("run_name", metavar="RUN")
@click.argument("path", metavar="FILE.parquet", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--output-dir", default="results", help="Where runs lie.  [results]")
@click.option("--attempts", is_flag=True, help="Every attempt, not only the outcomes.")
def export_command(run_name: str, path: Path, output_dir: str, attempts: bool) -> None:
    """Write a run's outcomes as a Parquet table, one row each.

    RUN is a run folder, or the name of a run.

    Exit codes: 0 written, 2 bad usage or input.
    """
    from vllm_eval.report.terminal import Terminal
    from vllm_eval.store.export import export_run
    from vllm_eval.store.folder import find_run

    with Terminal() as terminal:
        rows = export_run(find_run(run_name, output_dir), path, attempts=attempts)
        terminal.stage(f"{rows:,} rows in {path}")
    sys.exit(PASS)


@app.command("bench")
@config_options
@bench_options
def bench_command(files: Sequence[str], settings: Sequence[str], **given: object) -> None:
    """Time engines, settings and ways of asking on the same work: forced lengths, in turn.

    Contestants: mixed, arms, barrier, generate, transformers, transformers-batched. Files go to
    benchmarks/ in the output folder.

    Exit codes: 0 timed, 2 bad usage or input, 3 could not be timed.
    """
    from vllm_eval.bench.contestants import Layers
    from vllm_eval.bench.figures import bench_tables
    from vllm_eval.bench.session import bench
    from vllm_eval.report.terminal import Terminal

    options = take_options(given)
    with Terminal() as terminal:
        done = bench(Layers(files, settings, config_layer(given)), options, terminal)
        for part in bench_tables(done):
            terminal.console.print(part)
        terminal.stage(f"files in {done.folder}")
    sys.exit(PASS)


def main(argv: Sequence[str] | None = None) -> None:
    """The program: never returns, exits with one of the documented codes."""
    # The interpreter's last collections would go through all that torch and vLLM made: seconds.
    atexit.register(gc.freeze)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # closes engines, as Ctrl-C does
    try:
        app.main(args=list(argv) if argv is not None else None, standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; what a run had finished is in its journal", INTERRUPTED)
    except EvalError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:  # a full disk, a folder taken away: no defect of ours
        code = BAD_INPUT if error.errno in IMPOSSIBLE_NAMES else COULD_NOT_EVALUATE
        _fail(f"{error.filename or 'files'}: {error.strerror or error}", code)
    except Exception as error:  # noqa: BLE001  the one place where the unforeseen ends
        traceback.print_exc()
        _fail(f"this is a defect of vllm_eval: {error!r}", COULD_NOT_EVALUATE)
    sys.exit(PASS)


def _fail(text: str, code: int) -> None:
    from vllm_eval.report.terminal import show_error

    show_error(text)
    sys.exit(code)
