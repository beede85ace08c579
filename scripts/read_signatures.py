"""What the parts of vLLM that we use look like in some releases, read from their wheels.

usage: scripts/read_signatures RELEASE...    for example 0.19.1 0.26.0 0.33.0

Downloads each wheel, parses its sources without running them, and writes
tests/vllm_signatures.json: the first release in full; of every later one what it appends to a list
of the first (+), or its whole list where it is anything else, so that a changed order is seen too.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD = Path(__file__).parents[1] / "tests" / "vllm_signatures.json"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 31, 35)]
SYMBOLS = {
    "vllm": "vllm/__init__.py",
    "vllm.EngineArgs": "vllm/engine/arg_utils.py",
    "vllm.LLM.__init__": "vllm/entrypoints/llm.py",
    "vllm.LLM.generate": "vllm/entrypoints/llm.py",
    "vllm.LLM.get_tokenizer": "vllm/entrypoints/llm.py",
    "vllm.SamplingParams": "vllm/sampling_params.py",
    "vllm.config.model.ModelConfig": "vllm/config/model.py",
    "vllm.config.scheduler.SchedulerConfig": "vllm/config/scheduler.py",
    "vllm.config.vllm.VllmConfig": "vllm/config/vllm.py",
    "vllm.envs": "vllm/envs.py",
    "vllm.inputs.tokens_input": "vllm/inputs/engine.py",
    "vllm.logprobs.Logprob": "vllm/logprobs.py",
    "vllm.lora.request.LoRARequest": "vllm/lora/request.py",
    "vllm.outputs.CompletionOutput": "vllm/outputs.py",
    "vllm.outputs.RequestOutput.__init__": "vllm/outputs.py",
    "vllm.platforms.interface.Platform.has_device_capability": "vllm/platforms/interface.py",
    "vllm.platforms.interface.Platform.is_cpu": "vllm/platforms/interface.py",
    "vllm.sampling_params.RequestOutputKind": "vllm/sampling_params.py",
    "vllm.sampling_params.StructuredOutputsParams": "vllm/sampling_params.py",
    "vllm.v1.attention.backends.registry.AttentionBackendEnum": (
        "vllm/v1/attention/backends/registry.py"
    ),
    "vllm.v1.engine.core_client.EngineCoreClient.shutdown": "vllm/v1/engine/core_client.py",
    "vllm.v1.engine.llm_engine.LLMEngine.abort_request": "vllm/v1/engine/llm_engine.py",
    "vllm.v1.engine.llm_engine.LLMEngine.add_lora": "vllm/v1/engine/llm_engine.py",
    "vllm.v1.engine.llm_engine.LLMEngine.add_request": "vllm/v1/engine/llm_engine.py",
    "vllm.v1.engine.llm_engine.LLMEngine.has_unfinished_requests": "vllm/v1/engine/llm_engine.py",
    "vllm.v1.engine.llm_engine.LLMEngine.step": "vllm/v1/engine/llm_engine.py",
    "vllm.v1.metrics.stats.RequestStateStats": "vllm/v1/metrics/stats.py",
}
"""Name in use, and the file that defines it."""


def read_release(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    """For each symbol its parameters, fields, members or names, in their order."""
    found = {}
    for symbol, file in SYMBOLS.items():
        tree = ast.parse(wheel.read(file))
        if symbol == "vllm":
            found[symbol] = _keys_of(tree, "MODULE_ATTRS")
        elif symbol == "vllm.envs":
            found[symbol] = _keys_of(tree, "environment_variables")
        else:
            found[symbol] = _members(tree, symbol, wheel)
    return found


def compress(releases: Mapping[str, Mapping[str, list[str]]]) -> dict[str, dict[str, str]]:
    """The first release as it is, the others as what differs from it; names parted by blanks."""
    first, *others = releases
    record = {first: {symbol: " ".join(names) for symbol, names in releases[first].items()}}
    for other in others:
        record[other] = {
            symbol: " ".join(changes)
            for symbol, names in releases[other].items()
            if (changes := _difference(releases[first][symbol], names))
        }
    return record


def expand(record: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """What `compress` was given."""
    first, *others = record
    whole = {symbol: names.split() for symbol, names in record[first].items()}
    releases = {first: whole}
    for other in others:
        changes = {symbol: names.split() for symbol, names in record[other].items()}
        releases[other] = whole | {
            symbol: [*whole[symbol], *(name[1:] for name in names)]
            if names[0].startswith("+")
            else names
            for symbol, names in changes.items()
        }
    return releases


def _difference(before: list[str], now: list[str]) -> list[str]:
    if now[: len(before)] == before:
        return [f"+{name}" for name in now[len(before) :]]
    return now


def _members(tree: ast.Module, symbol: str, wheel: zipfile.ZipFile) -> list[str]:
    *_, owner, name = symbol.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _fields(node)
        if isinstance(node, ast.ClassDef) and node.name == owner:
            return _parameters(_method(node, name, wheel))
        if isinstance(node, ast.FunctionDef) and node.name == name and not owner[0].isupper():
            return _parameters(node)
    raise LookupError(symbol)


def _fields(node: ast.ClassDef) -> list[str]:
    names = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.append(item.target.id)
        elif isinstance(item, ast.Assign):
            names += [target.id for target in item.targets if isinstance(target, ast.Name)]
    return names


def _method(node: ast.ClassDef, name: str, wheel: zipfile.ZipFile) -> ast.FunctionDef:
    """A method of a class, or of a class it inherits from in `vllm/entrypoints`."""
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    classes = [node]
    for file in wheel.namelist():
        if bases and file.startswith("vllm/entrypoints/") and file.endswith(".py"):
            nodes = ast.walk(ast.parse(wheel.read(file)))
            classes += [c for c in nodes if isinstance(c, ast.ClassDef) and c.name in bases]
    for owner in classes:
        for item in owner.body:
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return item
    raise LookupError(f"{node.name}.{name}")


def _parameters(node: ast.FunctionDef) -> list[str]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [parameter.arg for parameter in given if parameter.arg not in ("self", "cls")]


def _keys_of(tree: ast.Module, name: str) -> list[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            named = isinstance(target, ast.Name) and target.id == name
            if named and isinstance(node.value, ast.Dict):
                return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    raise LookupError(name)


def main(versions: list[str]) -> None:
    releases = {}
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder]
            command += ["--only-binary=:all:", "--python-version", "3.12", f"vllm=={version}"]
            command += [word for name in PLATFORMS for word in ("--platform", name)]
            subprocess.run(command, check=True)
            (path,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(path) as wheel:
                releases[version] = read_release(wheel)
        print(f"read vllm {version}")
    RECORD.write_text(json.dumps(compress(releases), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
