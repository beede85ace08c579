"""The command line's options, and the configuration keys they set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Flag:
    """A command-line option and the configuration key it sets."""

    name: str
    key: str
    help: str
    kind: Any = str
    many: bool = False
    on: Any = True
    """What a switch sets its key to."""

    @property
    def parameter(self) -> str:
        """Its name as a Python argument."""
        return self.name.partition("/")[0].removeprefix("--").replace("-", "_")


FLOAT, _INT, _SWITCH = float, int, bool
FLAGS = (
    Flag(
        "--adapter", "adapters", "Adapter: folder, name or hub id; repeat for several.", many=True
    ),
    Flag("--adapter-path", "adapters", "The same, as the old script called it.", many=True),
    Flag("--base-model", "base_model", "Folder or hub id; default: the adapter's own base."),
    Flag(
        "--dataset-path",
        "dataset_path",
        "Cases: JSON lines, .gz, .parquet, a saved data set, hf:NAME.",
    ),
    Flag("--output-dir", "output_dir", "Where run folders are made.  [results]"),
    Flag("--tag", "tag", "Label of the run; default: the adapter's name."),
    Flag("--max-samples", "max_samples", "How many cases are drawn; default: all.", _INT),
    Flag("--samples-per-case", "samples_per_case", "Answers per arm and case.  [1]", _INT),
    Flag("--seed", "seed", "Seed of the draw and of the sampling.  [42]", _INT),
    Flag("--temperature", "temperature", "Sampling temperature.  [0.2]", FLOAT),
    Flag("--top-p", "top_p", "Nucleus sampling.  [0.9]", FLOAT),
    Flag("--max-new-tokens", "max_new_tokens", "Longest answer in tokens.  [1024]", _INT),
    Flag("--retries", "retries", "Further attempts after a failed first one.  [2]", _INT),
    Flag("--confidence", "gate.confidence", "Level at which the ratio must hold too.", FLOAT),
    Flag("--prompt-template", "prompt_template", "Jinja2 file that replaces the task's prompt."),
    Flag("--prompt-format", "prompt_format", "raw text, or the chat template.  [raw]"),
    Flag(
        "--constrain", "constrain", "Beside each arm one held to its shape.", _SWITCH, on="beside"
    ),
    Flag("--repair/--no-repair", "repair", "Repair failed answers, beside the verdict.", _SWITCH),
    Flag("--report/--no-report", "report", "Whether a run ends with its report.  [yes]", _SWITCH),
    Flag("--load-4bit", "load_4bit", "Quantise the base to 4 bit (bitsandbytes).", _SWITCH),
    Flag("--bnb-compute-dtype", "bnb_compute_dtype", "Type computed in with --load-4bit."),
    Flag("--task", "task", "Task: name, or its file or folder.  [product_owner]"),
    Flag("--engine", "engine", "vllm, transformers, openai, ray or scripted.  [vllm]"),
    Flag("--base-url", "base_url", "Server of the openai engine; repeat for several.", many=True),
    Flag("--load-adapters/--no-load-adapters", "load_adapters", "Servers load adapters.", _SWITCH),
    Flag("--ray-address", "ray_address", "Cluster of the ray engine; default: this machine."),
    Flag("--replicas", "replicas", "Engines of the ray engine; default: what fits.", _INT),
    Flag("--batch-size", "batch_size", "Cases at a time, transformers engine only.  [1]", _INT),
    Flag("--script", "script", "Answers of the scripted engine, one JSON object a line."),
    Flag("--profile", "profile", "Shipped profile to start from, auto or none.  [auto]"),
    Flag("--tensor-parallel-size", "engine_args.tensor_parallel_size", "vLLM's own.", _INT),
    Flag("--pipeline-parallel-size", "engine_args.pipeline_parallel_size", "vLLM's own.", _INT),
    Flag("--max-model-len", "engine_args.max_model_len", "vLLM's own.", _INT),
    Flag("--max-num-seqs", "engine_args.max_num_seqs", "vLLM's own.", _INT),
    Flag("--gpu-memory-utilization", "engine_args.gpu_memory_utilization", "vLLM's own.", FLOAT),
    Flag("--quantization", "engine_args.quantization", "vLLM's own."),
    Flag("--dtype", "engine_args.dtype", "vLLM's own."),
    Flag("--enforce-eager", "engine_args.enforce_eager", "vLLM's own.", _SWITCH),
)


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of `FLAGS`, besides `--config` and `-c`."""
    for flag in reversed(FLAGS):
        command = click.option(
            flag.name,
            flag.parameter,
            type=flag.kind,
            is_flag=flag.kind is _SWITCH,
            multiple=flag.many,
            default=None,
            help=flag.help,
        )(command)
    return layer_options(command)


def layer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--config` and `-c`."""
    command = click.option(
        "settings", "-c", multiple=True, metavar="KEY.PATH=VALUE", help="Set one configuration key."
    )(command)
    return click.option(
        "files",
        "--config",
        multiple=True,
        metavar="FILE|NAME",
        help="YAML file or shipped profile; repeat to layer.",
    )(command)


def config_layer(given: Mapping[str, object]) -> dict[str, Any]:
    """The options that were given, as a configuration layer."""
    layer: dict[str, Any] = {}
    for flag in FLAGS:
        value = given[flag.parameter]
        absent = value is False and "/" not in flag.name  # a switch without an opposite
        if value is None or value == () or absent:
            continue
        if flag.many:
            layer[flag.key] = [*layer.get(flag.key, ()), *value]  # type: ignore[misc]
        elif "." in flag.key:
            section, _, key = flag.key.partition(".")
            layer.setdefault(section, {})[key] = value
        else:
            layer[flag.key] = flag.on if value is True else value
    return layer
