"""How vLLM renames the modules of a multimodal model, read from its source files.

Importing vLLM takes 20 s, and its multimodal models need libraries for images; so nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
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
        registry = ast.parse((models / "registry.py").read_text(encoding="utf-8"))
        if (registered := _registered(registry, architecture)) is None:
            return None
        module, name = registered
        source = ast.parse((models / f"{module}.py").read_text(encoding="utf-8"))
        classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
        return _prefixes(classes, name)
    except (OSError, SyntaxError, ValueError):
        return None


def renamed(module: str, prefixes: Mapping[str, str]) -> str:
    """vLLM's name of a module."""
    name = f"{module}."
    for old, new in prefixes.items():
        if name.startswith(old):
            name = name.replace(old, new, 1)
    return name.removesuffix(".")


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
    for node in found.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hf_to_vllm_mapper":
            stated = node.value.keywords if isinstance(node.value, ast.Call) else ()
            for keyword in stated:
                if keyword.arg == "orig_to_new_prefix":
                    held = ast.literal_eval(keyword.value)
                    return {old: new for old, new in held.items() if new is not None}
            return None
    others = (_prefixes(classes, base.id) for base in found.bases if isinstance(base, ast.Name))
    return next((prefixes for prefixes in others if prefixes is not None), None)
