"""What vLLM's models say of their modules, read from its source files.

Importing vLLM takes 20 s, and its multimodal models need libraries for images; so nothing is run.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path


def models_folder() -> Path | None:
    """Where the installed vLLM keeps its models."""
    found = find_spec("vllm")
    return Path(found.origin).parent / "model_executor/models" if found and found.origin else None


def module_prefixes(models: Path, architecture: str) -> dict[str, str] | None:
    """Old and new beginnings of names, in vLLM's order (`hf_to_vllm_mapper`).

    None if vLLM does not know the architecture, or does not state its prefixes as literals.
    """
    try:
        registry = _parsed(models, "registry")
        if (registered := _registered(registry, architecture)) is None:
            return None
        module, name = registered
        source = _parsed(models, module)
        classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
        return _prefixes(classes, name)
    except (OSError, SyntaxError, ValueError):
        return None


@functools.cache
def lora_support(models: Path, architecture: str) -> frozenset[str] | None:
    """Last names of the embeddings that vLLM can serve a LoRA of, beside linear modules.

    None if its class of that name serves no LoRA at all.

    Raises:
        LookupError: vLLM knows no such architecture, or does not state this as a literal.
    """
    try:
        registry = _parsed(models, "registry")
        if (registered := _registered(registry, architecture)) is None:
            raise LookupError(architecture)
        lineage = list(_lineage(models, *registered))
        bases = {ast.unparse(base) for node in lineage for base in node.bases}
        if "SupportsLoRA" not in bases:
            return None
        stated = (_assigned(node, "embedding_modules") for node in lineage)
        value = next((one for one in stated if one is not None), None)
        return frozenset(ast.literal_eval(value)) if value is not None else frozenset()
    except (OSError, SyntaxError, ValueError) as error:
        raise LookupError(architecture) from error


def renamed(module: str, prefixes: Mapping[str, str]) -> str:
    """vLLM's name of a module."""
    name = f"{module}."
    for old, new in prefixes.items():
        if name.startswith(old):
            name = name.replace(old, new, 1)
    return name.removesuffix(".")


@functools.cache
def _parsed(models: Path, module: str) -> ast.Module:
    return ast.parse((models / f"{module}.py").read_text(encoding="utf-8"))


def _registered(registry: ast.Module, architecture: str) -> tuple[str, str] | None:
    """Module and class of an architecture."""
    for node in ast.walk(registry):
        for key, value in (
            zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
        ):
            if isinstance(key, ast.Constant) and key.value == architecture:
                module, name = ast.literal_eval(value)
                return module, name
    return None


def _prefixes(classes: Mapping[str, ast.ClassDef], name: str) -> dict[str, str] | None:
    """Those of the class itself, else of the first of its bases in the same file that has some."""
    if (found := classes.get(name)) is None:
        return None
    if (stated := _assigned(found, "hf_to_vllm_mapper")) is not None:
        for keyword in stated.keywords if isinstance(stated, ast.Call) else ():
            if keyword.arg == "orig_to_new_prefix":
                held = ast.literal_eval(keyword.value)
                return {old: new for old, new in held.items() if new is not None}
        return None
    others = (_prefixes(classes, base.id) for base in found.bases if isinstance(base, ast.Name))
    return next((prefixes for prefixes in others if prefixes is not None), None)


def _assigned(found: ast.ClassDef, name: str) -> ast.expr | None:
    """What a class assigns to an attribute."""
    for node in found.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    return None


def _lineage(models: Path, module: str, name: str) -> Iterator[ast.ClassDef]:
    """A class and its bases, of this file and of the models that it imports from."""
    source = _parsed(models, module)
    classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    if found := classes.get(name):
        yield found
        for base in found.bases:
            if isinstance(base, ast.Name):
                yield from _lineage(models, module, base.id)
    elif name in (imported := _imported(source)):
        yield from _lineage(models, *imported[name])
    elif name != "Protocol":  # from elsewhere, so the lineage is not known
        raise LookupError(name)


def _imported(source: ast.Module) -> dict[str, tuple[str, str]]:
    """Module and class of each name that a model takes from another model."""
    found: dict[str, tuple[str, str]] = {}
    for node in source.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            module = node.module.removeprefix("vllm.model_executor.models.")
            if node.level == 1 or module != node.module:
                found |= {one.asname or one.name: (module, one.name) for one in node.names}
    return found
