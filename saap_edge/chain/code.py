"""The code that a stage reaches: its module, and all modules that this imports (lazily too) or starts as a process.

A stage is run again when this code changes, and not when other code of the package does: after a change in the report,
no model is scored again. Imports for type checkers alone are left out.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["code_hash", "reached"]

PACKAGE = Path(__file__).parents[1]
_MODULE = re.compile(r"saap_edge(\.\w+)+")  # started as `python -m NAME`


@cache
def code_hash(module: str) -> str:
    """sha256 over the names and contents of all files that `module` reaches."""
    digest = hashlib.sha256()
    for path in reached(module):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()


def reached(module: str) -> list[Path]:
    """The files of this package that a module reaches, sorted: modules, and data files beside a module that names them.

    >>> [path.name for path in reached("saap_edge.errors")]
    ['errors.py']
    """
    found, waiting = set[Path](), _files(module)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _needed(path) if path.suffix == ".py" else []
    return sorted(found)


def _files(name: str) -> list[Path]:
    """The file of a dotted name and those of the packages above it; empty for a module of another package."""
    parts, found = name.split(".")[1:], []
    for count in range(1, len(parts) + 1):
        place = PACKAGE.joinpath(*parts[:count])
        found += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return found


@cache
def _needed(path: Path) -> list[Path]:
    files: list[Path] = []
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            files += [file for alias in node.names for file in _files(alias.name) if _ours(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            for alias in node.names:  # a module of a package, or a name in a module
                files += _files(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            files += _files(node.value) if _MODULE.fullmatch(node.value) else _beside(path, node.value)
    return files


def _ours(name: str) -> bool:
    return name.partition(".")[0] == "saap_edge"


def _beside(path: Path, name: str) -> list[Path]:
    """The data file of that name beside the module; empty where there is none."""
    if not re.fullmatch(r"[\w.-]+\.\w+", name) or name.endswith(".py"):
        return []
    return [file for file in [path.parent / name] if file.is_file()]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _nodes(child)
