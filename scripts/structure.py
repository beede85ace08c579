"""Figures of the package's structure, and their limits.

usage: scripts/structure.py [PACKAGE_FOLDER]    exits with 1 where a limit is exceeded

The order of imports is checked by import-linter (`[tool.importlinter]` in pyproject.toml), heavy
imports by ruff (TID251, TID253).
"""

from __future__ import annotations

import ast
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 60
MAX_BROAD_EXCEPTS = 4
BROAD = {"Exception", "BaseException"}


@dataclass(frozen=True)
class Span:
    """A named stretch of lines."""

    name: str
    lines: int


def main(package: Path) -> int:
    files = sorted(package.rglob("*.py"))
    sizes = [Span(str(file), len(file.read_text("utf-8").splitlines())) for file in files]
    functions = [span for file in files for span in functions_of(file)]
    broad = [place for file in files for place in broad_excepts(file)]
    lengths = sorted(span.lines for span in functions)
    longest = max(sizes, key=lambda span: span.lines)
    print(f"{len(files)} modules, {sum(span.lines for span in sizes):,} lines")
    print(f"longest file {longest.lines} ({longest.name}), median {median(sizes)}")
    p95 = lengths[int(0.95 * len(lengths))]
    print(f"{len(functions)} functions, longest {lengths[-1]}, 95th percentile {p95}")
    print(f"{len(broad)} broad excepts")
    faults = [f"{s.name}: {s.lines} lines" for s in sizes if s.lines > MAX_FILE_LINES]
    faults += [f"{s.name}: {s.lines} lines" for s in functions if s.lines > MAX_FUNCTION_LINES]
    faults += broad if len(broad) > MAX_BROAD_EXCEPTS else []
    for fault in faults:
        print(f"over the limit: {fault}")
    return 1 if faults else 0


def functions_of(file: Path) -> list[Span]:
    tree = ast.parse(file.read_text("utf-8"))
    return [
        Span(
            f"{file}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def broad_excepts(file: Path) -> list[str]:
    return [
        f"{file}:{node.lineno} catches everything"
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node.type)
    ]


def catches_everything(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(one, ast.Name) and one.id in BROAD for one in kinds)


def median(sizes: list[Span]) -> int:
    return round(statistics.median(span.lines for span in sizes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "vllm_eval")))
