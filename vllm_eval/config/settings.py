"""The configuration: its keys, their defaults, and what the command line says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from vllm_eval.config.template import TemplateKwargs
from vllm_eval.errors import ConfigError

PACKAGE = "package:"
"""Prefix of a path inside the installed package, as the demo profile uses it."""
_HERE = Path(__file__).parents[1]
ENGINE_ENV = "^(VLLM|OMP|MKL|TORCH(DYNAMO)?|PYTORCH|CUDA|NCCL|TRITON|HF|TOKENIZERS)_[A-Z0-9_]+$"
"""Names of variables a configuration may set: it may come with a run folder of unknown origin."""
SERVER_URL = r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$"
"""No user and password: the configuration is stored. The key comes from the environment."""
RETIRED = frozenset(("journal_part_mib",))
"""Keys in files of earlier versions, also in the `config.yaml` of their runs; without effect."""
WHAT, HOW, ENGINE, GATE, OUTPUT = "What to evaluate", "How to ask", "Engine", "Gate", "Output"
"""Help panels of the options, in their order."""
NOT_CHECKED, VLLM = "not checked", "the profile's or vLLM's"
LAYER = "layer"
"""Context in which a record is validated that is only a part of a configuration."""
_Positive = Annotated[int, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Inside = Annotated[float, Field(gt=0, lt=1)]
Select = Literal["all", "best"]
"""Whom the word on a run is about: all students, or the best of them."""


@dataclass(frozen=True, slots=True)
class Flag:
    """How the command line shows a field. Name, default and help are the field's own."""

    panel: str
    """Help panel that the option stands in."""
    unset: str = "none"
    """What an empty default stands for."""
    names: tuple[str, ...] = ()
    """The option's names, where they are not made from the field's."""
    metavar: str | None = None
    """What the help calls the value, where its type would not do."""
    on: str | None = None
    """Where set, the option is a switch that sets the field to this."""


class Record(BaseModel):
    """A frozen record whose docstrings below the fields are their descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


CONFIDENCE = 0.95
"""Level of intervals and evidence where none is configured."""


class GateConfig(Record):
    """Thresholds of the gate. Their source is "Aggregates and gate" of `product_owner.md`."""

    min_valid_rate: Annotated[_Share, Flag(GATE)] = 0.90
    """Lowest share of valid cases in each arm."""
    min_baseline_valid_rate: Annotated[_Share | None, Flag(GATE, "min_valid_rate")] = None
    """Lowest share of valid cases of the baseline, if it differs from the student's."""
    min_baseline_mean: Annotated[_Share, Flag(GATE)] = 0.75
    """Lowest mean score of the baseline."""
    min_ratio: Annotated[float, Field(ge=0), Flag(GATE)] = 0.90
    """Lowest ratio of the student's mean to the baseline's."""
    confidence: Annotated[_Inside | None, Flag(GATE, NOT_CHECKED)] = None
    """Confidence level at which the lower end of the ratio's interval must reach min_ratio too."""
    certify: Annotated[float | None, Field(ge=0.5, lt=1), Flag(GATE, NOT_CHECKED)] = None
    """Level of evidence: PASS if every rule is shown, FAIL if one is refuted, else UNDECIDED."""
    select: Annotated[Select, Flag(GATE)] = "all"
    """The run passes if all students do (all), or if any does, and the best is named (best)."""
    against: Annotated[Literal["baseline", "absolute"], Flag(GATE)] = "baseline"
    """Grade the student against the baseline, or by its own rules alone (absolute)."""
    min_ratio_all: Annotated[float | None, Field(ge=0), Flag(GATE, NOT_CHECKED)] = None
    """Lowest ratio of the student's mean to the baseline's, with failed answers as 0."""
    min_student_mean: Annotated[_Share | None, Flag(GATE, NOT_CHECKED)] = None
    """Lowest mean score of the student."""
    max_student_std: Annotated[_NotNegative | None, Flag(GATE, NOT_CHECKED)] = None
    """Highest standard deviation of the student's scores."""
    min_case_score: Annotated[_Share | None, Flag(GATE, NOT_CHECKED)] = None
    """Lowest score of any valid case of the student."""
    max_abs_difference: Annotated[_NotNegative | None, Flag(GATE, NOT_CHECKED)] = None
    """Largest difference of the two means, in either direction."""

    @property
    def level(self) -> float:
        """The level of the evidence."""
        return self.certify or CONFIDENCE

    @property
    def interval_level(self) -> float:
        """The level of the intervals."""
        return self.certify or self.confidence or CONFIDENCE

    @property
    def baseline_valid_rate(self) -> float:
        """The lowest share of valid cases of the baseline."""
        own = self.min_baseline_valid_rate
        return self.min_valid_rate if own is None else own

    @model_validator(mode="after")
    def _rules_fit_together(self, info: ValidationInfo) -> Self:
        if info.context == LAYER:  # what it lacks, or contradicts, may be in another one
            return self
        if self.against == "absolute":
            if self.min_student_mean is None:
                msg = "against: absolute needs min_student_mean: there is no other rule on scores"
                raise ValueError(msg)
            rules = ("confidence", "min_ratio_all", "min_baseline_valid_rate", "max_abs_difference")
            for name in rules:
                if getattr(self, name) is not None:
                    msg = f"{name} compares with the baseline, which against: absolute leaves out"
                    raise ValueError(msg)
        if self.certify is not None and self.confidence is not None:
            raise ValueError("confidence: certify tests the ratio already; leave one of them out")
        return self


class VllmArgs(Record):
    """Those of vLLM's engine arguments that have an option of their own."""

    tensor_parallel_size: Annotated[int | None, Flag(ENGINE, VLLM)] = None
    """vLLM: GPUs that share each layer."""
    pipeline_parallel_size: Annotated[int | None, Flag(ENGINE, VLLM)] = None
    """vLLM: groups of GPUs that the layers are divided among."""
    max_model_len: Annotated[int | None, Flag(ENGINE, VLLM)] = None
    """vLLM: longest prompt and answer together, in tokens."""
    max_num_seqs: Annotated[int | None, Flag(ENGINE, VLLM)] = None
    """vLLM: most requests in one step."""
    gpu_memory_utilization: Annotated[float | None, Flag(ENGINE, VLLM)] = None
    """vLLM: share of the GPU's memory to use."""
    quantization: Annotated[str | None, Flag(ENGINE, VLLM)] = None
    """vLLM: quantisation method."""
    dtype: Annotated[str | None, Flag(ENGINE, VLLM)] = None
    """vLLM: type of weights and activations."""
    enforce_eager: Annotated[bool | None, Flag(ENGINE, VLLM)] = None
    """vLLM: run without CUDA graphs and compilation."""


class Config(Record):
    """Everything a run depends on; stored with it and good to run again."""

    adapters: Annotated[
        tuple[str, ...], Flag(WHAT, names=("--adapter", "--adapter-path"), metavar="ADAPTER")
    ] = ()
    """Adapters: folders, training runs with all their checkpoints, globs, names in adapter_dirs,
    hub ids; NAME=PATH to name one. Takes several, and may be repeated."""
    adapter_dirs: tuple[str, ...] = ("artifacts/models", "adapters")
    """Folders in which the names of adapters are looked up."""
    base_model: Annotated[str | None, Flag(WHAT, "the adapter's own base", metavar="MODEL")] = None
    """Base model: a folder or a hub id."""
    baseline: Annotated[str | None, Flag(WHAT, "asked anew", metavar="RUN")] = None
    """Take the baseline's answers from an earlier run: its folder, or its name in output_dir."""
    task: Annotated[str, Flag(WHAT, metavar="TASK")] = "product_owner"
    """Task: a name, a file or a folder."""
    dataset_path: Annotated[str, Flag(WHAT, metavar="DATA")] = (
        "artifacts/synthetic/product_owner/product_owner_val.jsonl"
    )
    """Cases: JSON lines (also .gz), Parquet, a saved data set, or hf:NAME."""
    max_samples: Annotated[
        _Positive | None, Flag(WHAT, "all", names=("--max-samples", "--max-cases"))
    ] = None
    """Number of cases to draw."""
    until_settled: Annotated[bool, Flag(WHAT)] = False
    """Draw cases only until the verdict is settled at the level of --certify."""
    samples_per_case: Annotated[_Positive, Flag(WHAT)] = 1
    """Answers of each arm to each case, each with its own seed."""
    seed: Annotated[int, Flag(WHAT)] = 42
    """Seed for drawing cases and for sampling."""

    prompt_template: Annotated[str | None, Flag(HOW, "the task's", metavar="FILE")] = None
    """Jinja2 template that replaces the task's prompt."""
    prompt_format: Annotated[Literal["raw", "chat"], Flag(HOW)] = "raw"
    """Send the prompt as it is (raw), or through the tokenizer's chat template (chat)."""
    chat_template_kwargs: Annotated[TemplateKwargs, Flag(HOW, metavar="JSON")] = {}
    """Arguments of the tokenizer's chat template, such as {"enable_thinking": false}."""
    temperature: Annotated[_NotNegative, Flag(HOW)] = 0.2
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1), Flag(HOW)] = 0.9
    """Nucleus sampling: total probability of the tokens to choose from."""
    max_new_tokens: Annotated[_Positive, Flag(HOW)] = 1024
    """Longest answer, in tokens."""
    ignore_eos: bool = False
    """Every answer runs to `max_new_tokens`, as vLLM calls it: equal work for timing."""
    retries: Annotated[int, Field(ge=0), Flag(HOW)] = 2
    """Further attempts after a failed first one."""
    constrain: Annotated[Literal["none", "beside", "only"], Flag(HOW, on="beside")] = "none"
    """Constrain decoding to the task's grammar: none, beside (in a second arm beside each one) or
    only (in every arm). The option stands for beside."""

    profile: Annotated[str, Flag(ENGINE, metavar="NAME")] = "auto"
    """Shipped profile to start from: its name, auto (by machine) or none."""
    engine: Annotated[
        Literal["vllm", "transformers", "openai", "ray", "scripted"], Flag(ENGINE, metavar="NAME")
    ] = "vllm"
    """Engine: vllm, transformers, openai (servers), ray (a cluster) or scripted."""
    load_4bit: Annotated[bool, Flag(ENGINE)] = False
    """Quantise the base to 4 bits with bitsandbytes."""
    bnb_compute_dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None, Flag(ENGINE, "--dtype", metavar="TYPE")
    ] = None
    """Type to compute in with 4 bits: float16, bfloat16 or float32."""
    engine_args: dict[str, Any] = {}
    """Arguments of vLLM's `EngineArgs`, by their own names."""
    engine_env: dict[Annotated[str, Field(pattern=ENGINE_ENV)], str] = {}
    """Environment variables of the engine; those already set stay as they are."""
    max_engine_restarts: Annotated[int, Field(ge=0)] = 2
    """How often an engine that died is started again for the pending requests."""
    batch_size: Annotated[_Positive, Flag(ENGINE)] = 1
    """Cases that the transformers engine answers at a time."""
    base_url: Annotated[
        tuple[Annotated[str, Field(pattern=SERVER_URL)], ...], Flag(ENGINE, metavar="URL")
    ] = ()
    """Server of the openai engine, as http://HOST:8000/v1. Repeat for more servers of the same."""
    served_models: dict[str, str] = {}
    """Model name on the servers, by arm; by default the arm's name, or the base they announce."""
    load_adapters: Annotated[bool, Flag(ENGINE)] = False
    """Have the servers load the adapters that they do not serve yet."""
    max_concurrency: _Positive = 256
    """Most requests at a time to one server; fewer while it answers that it is overloaded."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a byte of an answer after which a request has failed."""
    server_patience_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a success, or without a Ray replica, after which the run gives up."""
    ray_address: Annotated[str | None, Flag(ENGINE, "this machine", metavar="ADDRESS")] = None
    """Cluster of the ray engine: auto or HOST:6379."""
    replicas: Annotated[_Positive | None, Flag(ENGINE, "as many as fit")] = None
    """Engines that the ray engine keeps."""
    script: Annotated[str | None, Flag(ENGINE, metavar="FILE")] = None
    """Answers of the scripted engine: JSON lines."""

    gate: GateConfig = GateConfig()
    """Thresholds of the gate."""

    output_dir: Annotated[str, Flag(OUTPUT, metavar="FOLDER")] = "results"
    """Folder in which run folders are made."""
    tag: Annotated[str | None, Flag(OUTPUT, "what is compared")] = None
    """Label of the run; its folder's name starts with it."""
    repair: Annotated[bool, Flag(OUTPUT)] = False
    """Also show what failed answers score with their text repaired; the verdict ignores it."""
    report: Annotated[bool, Flag(OUTPUT)] = True
    """Write the report at the end of the run; the report command writes it at any time."""

    @model_validator(mode="after")
    def _keys_fit_together(self, info: ValidationInfo) -> Self:
        if info.context == LAYER:
            return self
        if self.until_settled and self.gate.certify is None:
            raise ValueError("until_settled needs gate.certify, the level of the verdict")
        if self.chat_template_kwargs and self.prompt_format == "raw":
            msg = "chat_template_kwargs: a raw prompt has no template; give --prompt-format chat"
            raise ValueError(msg)
        return self

    @property
    def answering(self) -> str:
        """The engine that answers: within a replica, where the engine is ray."""
        if self.engine == "ray":
            return "scripted" if self.script else "vllm"
        return self.engine

    @property
    def dtype(self) -> str:
        """The type vLLM computes in: `bnb_compute_dtype`, else the one a profile may name."""
        return self.bnb_compute_dtype or str(self.engine_args.get("dtype") or "auto")


def resolve_path(text: str) -> Path:
    """A configured path: `package:` is the installed package, `~` the home folder."""
    if "\0" in text:
        raise ConfigError(f"{text!r}: a path cannot hold a NUL character")
    if text.startswith(PACKAGE):
        return _HERE / text.removeprefix(PACKAGE)
    return Path(text).expanduser()


def file_name(text: str) -> str:
    """`text` as part of a file's name: whatever could lead elsewhere becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def gpus_of(config: Config) -> int:
    """GPUs that one engine takes: tensor times pipeline parallelism."""
    args = config.engine_args
    return whole(args.get("tensor_parallel_size")) * whole(args.get("pipeline_parallel_size"))


def quantization_of(config: Config) -> str | None:
    """The method asked for at load time."""
    given = config.engine_args.get("quantization")
    return str(given) if given else "bitsandbytes" if config.load_4bit else None


def whole(value: object, default: int = 1) -> int:
    """A positive whole number; what else was given is the engine's to refuse."""
    return value if type(value) is int and value > 0 else default
