"""The commands of the program, and what each exit code means."""

from __future__ import annotations

import functools
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vllm_eval.bench.contestants import BenchOptions
from vllm_eval.compare.verdict import NOT_FINISHED
from vllm_eval.config.flags import Command, Program, config_options, option
from vllm_eval.config.layers import Layers
from vllm_eval.config.settings import Select
from vllm_eval.version import __version__

DONE, BAD_INPUT, COULD_NOT_EVALUATE, INTERRUPTED = 0, 2, 3, 130
VERDICTS = {"PASS": DONE, "FAIL": 1, "UNDECIDED": 4, NOT_FINISHED: INTERRUPTED}
MODULE = "python -m vllm_eval"
EPILOG = f"""\
Exit codes: 0 PASS, 1 FAIL, 2 bad usage or input, 3 could not evaluate,
4 UNDECIDED, 130 interrupted.

Examples:

  {MODULE} --adapter po_student_v1 --max-samples 20
  {MODULE} --adapter runs/exp1 other=runs/exp2 --tag both --repair
  {MODULE} --config demo -c gate.min_ratio=0.95
"""


app = typer.Typer(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)
command = functools.partial(app.command, cls=Command)
OutputDir = Annotated[str, option("Folder that holds the runs.", "results", metavar="FOLDER")]
AsJson = Annotated[bool, option("Print JSON, and nothing else.", "off", "--json")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name.")]


def _print_version(asked: bool) -> None:
    if asked:
        from vllm_eval.report.terminal import write_out

        write_out(f"vllm_eval {__version__}\n")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Decide whether a LoRA adapter is good enough to ship.

    Base and adapters answer the same cases in one engine; the gate says PASS or
    FAIL, or with --certify also UNDECIDED. The command run may be left out: the
    options below are its own. Every switch has an opposite, such as --no-repair.
    """


@command("run", epilog=EPILOG)
@config_options()
def run_command(
    layers: Layers,
    resume: Annotated[
        str | None,
        option(
            "Continue a run: its folder, its name, or auto for the newest that matches.",
            "a new run",
            metavar="RUN",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate the base and the adapters, and decide by the gate."""
    from vllm_eval.api import evaluate_layers
    from vllm_eval.report.stored_run import outline
    from vllm_eval.report.terminal import only_json, show_json

    if not as_json:
        result = evaluate_layers(layers, resume, progress=True, stop_on_signals=True)
        return VERDICTS[result.word]
    with only_json() as stream:
        result = evaluate_layers(layers, resume, progress=True, stop_on_signals=True, stream=stream)
    code = VERDICTS[result.word]
    show_json(outline(result.run, code))
    return code


@command("check")
@config_options()
def check_command(layers: Layers, as_json: AsJson = False) -> int:
    """Find what would stop a run, without loading a model.

    Exit codes: 0 nothing stands in the way, 2 something does.
    """
    from vllm_eval.preflight.check import check_config
    from vllm_eval.report.terminal import show_findings

    findings = check_config(layers.load())
    show_findings(findings, as_json=as_json)
    return BAD_INPUT if any(finding.level == "error" for finding in findings) else DONE


@command("score")
@config_options("task", "dataset_path", "gate", "repair")
def score_command(
    layers: Layers,
    answers: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS", help="Result files, journals (attempts.jsonl) or run folders."
        ),
    ],
    as_json: AsJson = False,
) -> int:
    """Grade stored answers again, without an engine.

    Result files are those of a run, or {"results": [...]} with the same keys.
    Task, data set, gate and seed come from the answers' own run unless given.

    Exit codes: with one baseline and adapters 0 PASS, 1 FAIL, 4 UNDECIDED;
    otherwise 0 where every recorded status and score is reproduced, 1 where not;
    2 bad usage or input.
    """
    from vllm_eval.rescore.score import score
    from vllm_eval.rescore.show import ScoreProgress, show_row, show_scored

    config = replace(layers, settings=["profile=none", *layers.settings]).load()
    with closing(ScoreProgress(silent=as_json)) as progress:
        scored = score(answers, config, progress, show_row if as_json else None)
    if not as_json:
        show_scored(scored)
    return VERDICTS[scored.word]


@command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder, result file or journal.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same, to compare with A.")],
    as_json: AsJson = False,
) -> int:
    """Compare run B with run A case by case, as recorded.

    Exit codes: 0 compared, 2 bad usage or input, also where the two must not be
    compared.
    """
    from vllm_eval.rescore.compare import compare_runs
    from vllm_eval.rescore.show import show_compared

    show_compared(compare_runs(first, second), as_json=as_json)
    return DONE


@command("report")
def report_command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUNS", help="Run folders, or names of runs.")
    ],
    output_dir: OutputDir = "results",
    output: Annotated[
        Path | None,
        option("Page over several runs.", "history.html in --output-dir", metavar="FILE"),
    ] = None,
    mlflow: Annotated[
        str | None, option("MLflow store or server to log to as well.", metavar="URI")
    ] = None,
    certify: Annotated[
        float | None, option("Level at which to say what the runs show together.", metavar="LEVEL")
    ] = None,
    select: Annotated[
        Select | None,
        option("With --certify: whether all students must pass, or any (best).", "as in the runs"),
    ] = None,
) -> int:
    """Render stored runs again: HTML, Markdown, plots, JUnit and the ZIP.

    A run that was interrupted is concluded from what it has.
    Several runs also get a page over time.

    Exit codes: 0 rendered, 2 bad usage or input; with --certify those of run.
    """
    from vllm_eval.errors import ConfigError
    from vllm_eval.report.terminal import Terminal
    from vllm_eval.report.write import render

    if select is not None and certify is None:
        raise ConfigError("--select: is about --certify here; give its LEVEL too")
    with Terminal() as terminal:
        render(runs, terminal, output_dir, output, mlflow)
    if certify is not None:
        from vllm_eval.rescore.show import show_certificates

        return VERDICTS[show_certificates(runs, output_dir, certify, select)]
    return DONE


@command("diagnose")
def diagnose_command(
    run_name: RunName, output_dir: OutputDir = "results", as_json: AsJson = False
) -> int:
    """Say why answers failed, and what would help by how much.

    A run that was interrupted is concluded from what it has.

    Exit codes: 0 shown, 2 bad usage or input.
    """
    from vllm_eval.conclude.conclude import concluded
    from vllm_eval.report.diagnosis_tables import diagnosis_tables
    from vllm_eval.report.terminal import Terminal, show_json
    from vllm_eval.store.folder import find_run

    diagnosis = concluded(find_run(run_name, output_dir))["diagnosis"]
    if as_json:
        show_json(diagnosis)
    else:
        with Terminal() as terminal:
            terminal.show(diagnosis_tables(diagnosis))
    return DONE


@command("export")
def export_command(
    run_name: RunName,
    path: Annotated[
        Path, typer.Argument(metavar="FILE.parquet", dir_okay=False, help="File to write.")
    ],
    output_dir: OutputDir = "results",
    attempts: Annotated[
        bool, option("Every attempt, not only the outcomes.", "off", "--attempts")
    ] = False,
) -> int:
    """Write a run's outcomes as a Parquet table, one row each.

    Exit codes: 0 written, 2 bad usage or input.
    """
    from vllm_eval.report.terminal import Terminal
    from vllm_eval.store.export import export_run
    from vllm_eval.store.folder import find_run

    with Terminal() as terminal:
        rows = export_run(find_run(run_name, output_dir), path, attempts=attempts)
        terminal.stage(f"{rows:,} rows in {path}")
    return DONE


@command("bench")
@config_options(more=BenchOptions)
def bench_command(layers: Layers, options: BenchOptions) -> int:
    """Time engines, settings and ways of asking on the same work.

    Answers have forced lengths; contestants take turns. Files go to benchmarks/
    in the output folder.

    Exit codes: 0 timed, 2 bad usage or input, 3 could not be timed.
    """
    from vllm_eval.bench.figures import bench_tables
    from vllm_eval.bench.session import bench
    from vllm_eval.report.terminal import Terminal

    with Terminal() as terminal:
        done = bench(layers, options, terminal)
        terminal.show(bench_tables(done))
        terminal.stage(f"files in {done.folder}")
    return DONE
