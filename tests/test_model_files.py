"""Headers and configurations of unknown origin: each broken or hostile one is a named error."""

from __future__ import annotations

import json
import struct
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.model_folders import base_shapes, write_adapter, write_base, write_json
from tests.model_folders import write_safetensors as write_weights
from vllm_eval.errors import InputError
from vllm_eval.inputs.adapters import read_adapter
from vllm_eval.inputs.base_model import Base, linear_modules, read_base
from vllm_eval.inputs.safetensors_headers import Tensor, read_header
from vllm_eval.preflight.adapter import check_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.model_folders import Shapes

    Write = Callable[..., Path]

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A file with this header, this length of it, and so many bytes of tensors."""

    def make(header: object, length: int | None = None, data: int = 8) -> Path:
        path = tmp_path / "model.safetensors"
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(raw) if length is None else length
        path.write_bytes(struct.pack("<Q", size) + raw + bytes(data))
        return path

    return make


def test_a_header_names_tensors_with_type_and_shape(write: Write) -> None:
    path = write({"__metadata__": {"format": "pt"}, "a": GOOD})
    assert read_header(path) == {"a": Tensor("F32", (2,))}


def test_a_file_the_safetensors_library_wrote_is_read(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), "float16"), "b": np.zeros((0,))}, tmp_path / "x")
    assert read_header(tmp_path / "x") == {"a": Tensor("F16", (3, 4)), "b": Tensor("F64", (0,))}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        GOOD | {"dtype": "F33"},
        GOOD | {"dtype": ["F32"]},
        GOOD | {"shape": [-2]},
        GOOD | {"shape": [2.0]},
        GOOD | {"shape": [True, 2]},
        GOOD | {"shape": "2"},
        GOOD | {"shape": [1] * 1000},
        GOOD | {"shape": [2**63, 2**63, 2**63]},
        GOOD | {"shape": [3]},
        GOOD | {"data_offsets": [8, 0]},
        GOOD | {"data_offsets": [0]},
        GOOD | {"data_offsets": [0, 8, 16]},
        GOOD | {"data_offsets": [8, 16]},
        GOOD | {"data_offsets": [2**62, 2**62 + 8]},
    ],
)
def test_a_tensor_that_cannot_be_is_an_error(write: Write, entry: object) -> None:
    path = write({"a": entry})
    with pytest.raises(InputError, match=str(path)):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "length", "data"),
    [
        (b"", 0, 0),
        (b"{}", 2**63, 0),
        (b"{}", 100_000_001, 0),
        (b"{}", 3, 0),
        (b"{", None, 0),
        (b"[]", None, 0),
        (b"\xff\xfe", None, 0),
        (b'{"a":' * 100_000, None, 0),
        (b"{}", None, 1),
        ({"a": GOOD}, None, 7),
        ({"a": GOOD}, None, 9),
        ({"a": GOOD, "b": GOOD}, None, 8),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_an_error(
    write: Write, header: object, length: int | None, data: int
) -> None:
    with pytest.raises(InputError, match="copy or save it again"):
        read_header(write(header, length, data))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\x80\x04\x95" + bytes(50)])
def test_what_is_no_safetensors_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_size": 16},
        {"hidden_size": "16", "num_attention_heads": 4},
        {"hidden_size": 2**80},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 0},
    ],
)
def test_a_configuration_that_is_no_decoder_is_not_believed(
    tmp_path: Path, config: dict[str, object]
) -> None:
    full = config and {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
    }
    write_json(tmp_path / "config.json", {**full, **config})
    assert read_base(str(tmp_path), weights=False).architecture is None


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 100_000])
def test_a_base_configuration_that_is_no_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        read_base(str(tmp_path))


def test_a_base_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        read_base(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/folder", "./gone", "a/b/c", "not a hub id/"])
def test_a_base_that_is_neither_folder_nor_hub_id_is_named(name: str) -> None:
    with pytest.raises(InputError, match="give --base-model"):
        read_base(name)


def test_a_base_without_weights_is_named(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        read_base(str(folder))


def test_a_base_with_pickled_weights_is_left_to_the_engine(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert read_base(str(folder)).tensors is None


def test_a_weight_file_that_the_index_names_and_nobody_copied_is_named(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    index = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    with pytest.raises(InputError, match=r"lacks 1 weight files, the first model-00002"):
        read_base(str(folder))


@pytest.mark.parametrize("held", [[], {}, {"weight_map": {"a": "../../etc/passwd"}}])
def test_an_index_that_names_no_files_beside_it_is_refused(tmp_path: Path, held: object) -> None:
    folder = write_base(tmp_path / "base")
    write_json(folder / "model.safetensors.index.json", held)
    with pytest.raises(InputError, match="does not name files in its own folder"):
        read_base(str(folder))


def test_modules_of_an_unknown_model_come_from_its_headers(tmp_path: Path) -> None:
    base = read_base(str(write_base(tmp_path / "base", model_type="new")))
    known = read_base(str(write_base(tmp_path / "known")))
    assert linear_modules(base) == linear_modules(known)


def test_modules_of_a_known_model_need_no_weights(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    modules = linear_modules(read_base(str(folder), weights=False)) or {}
    shapes = {f"{name}.weight": (outputs, inputs) for name, (inputs, outputs) in modules.items()}
    assert shapes.items() <= base_shapes().items()


def test_an_adapter_of_a_base_nobody_has_is_compared_with_itself_alone(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "pupil")
    (finding,) = check_adapter(read_adapter("pupil", folder), Base("org/base"), (0, 32))
    assert (finding.level, finding.what[:33]) == ("warning", "names and shapes were not compare")


@pytest.mark.parametrize(
    "name",
    [
        "x" * 100_000,
        "base_model.model.model.layers." + "9" * 5000 + ".self_attn.q_proj.lora_A.weight",
        "\x1b[31mred\u202e\n.lora_A.weight",
        "." * 5000 + "lora_A.weight",
    ],
)
def test_a_hostile_tensor_name_is_shown_short_and_escaped(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "pupil", {name: (4, 16)})
    base = read_base(str(write_base(tmp_path / "base")))
    lines = [f.line for f in check_adapter(read_adapter("pupil", folder), base, (0, 32))]
    assert all(line.isprintable() and len(line) < 1000 for line in lines)
    assert any(line.startswith("error") for line in lines)


def test_a_rank_pattern_that_would_run_for_hours_is_not_run(tmp_path: Path) -> None:
    pattern = {"(([a-z_.]+)+)+X": 4}
    folder = write_adapter(tmp_path / "pupil", rank_pattern=pattern)
    base = read_base(str(write_base(tmp_path / "base")))
    begin = time.process_time()
    check_adapter(read_adapter("pupil", folder), base, (0, 32))
    assert time.process_time() - begin < 1


def test_a_pattern_of_ranks_is_followed(tmp_path: Path) -> None:
    shapes: Shapes = {}
    for name, rank in (("q_proj", 4), ("k_proj", 8)):
        module = f"base_model.model.model.layers.1.self_attn.{name}"
        shapes[f"{module}.lora_A.weight"] = (rank, 16)
        shapes[f"{module}.lora_B.weight"] = (16 if name == "q_proj" else 8, rank)
    folder = write_adapter(tmp_path / "pupil", shapes, rank_pattern={"k_proj": 8})
    base = read_base(str(write_base(tmp_path / "base")))
    findings = check_adapter(read_adapter("pupil", folder), base, (0, 32))
    assert [finding.level for finding in findings] == ["ok"]


def test_half_precision_adapters_are_taken(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "pupil")
    header = read_header(folder / "adapter_model.safetensors")
    shapes = {name: tensor.shape for name, tensor in header.items()}
    write_weights(folder / "adapter_model.safetensors", shapes, "BF16")
    base = read_base(str(write_base(tmp_path / "base")))
    findings = check_adapter(read_adapter("pupil", folder), base, (0, 32))
    assert [finding.level for finding in findings] == ["ok"]
