"""What code a stage runs, as a hash of each of its modules: what a run record says of it, and status compares."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# Files and records are written one way or another, and settings are compared by their values: these modules grow with
# every feature, and would mark all there is.
LEFT_OUT = ("artifacts", "code", "config")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def code_of(stage: str, package: Path = PACKAGE) -> dict[str, str]:
    """Hashes of the modules that a stage reaches by imports, those inside functions too.

    Comments, docstrings, formatting and line numbers do not count, nor do LEFT_OUT.
    Hashes of two versions of Python may differ, where their grammars do.

    Args:
        stage: the stage's name, which is its command's: its module is `stages/NAME.py`, with _ for -.
        package: the folder of the package.

    Returns:
        File, from the package's own folder on, -> 12 hex digits, sorted; empty where the stage has no module.
    """
    entry = package / "stages" / f"{stage.replace('-', '_')}.py"
    waiting, reached = [entry] if entry.exists() else [], set[Path]()
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += read_module(file, package)[1]
    return {file.relative_to(package.parent).as_posix(): read_module(file, package)[0] for file in sorted(reached)}


@cache
def read_module(file: Path, package: Path) -> tuple[str, list[Path]]:
    """The hash of a module, 12 hex digits, and the modules of the package that it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    words: list[str] = []
    imported: set[Path] = set()
    _collect(tree, words, imported, package)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12], sorted(imported)


def _collect(node: ast.AST, words: list[str], imported: set[Path], package: Path) -> None:
    """Append what a node says to `words`, and add the modules that it imports; positions are no fields."""
    words.append(type(node).__name__)
    if isinstance(node, ast.Import | ast.ImportFrom):
        imported.update(_files(node, package))
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name == "ctx":  # load or store: its parent says it; much of the time
            continue
        if name == "body" and isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            value = node.body[1:]
        parts = value if isinstance(value, list) else [value]
        words.append(f"{name} {len(parts)}")  # or a statement after a block would look like its last one
        for part in parts:
            if isinstance(part, ast.AST):
                _collect(part, words, imported, package)
            else:
                words.append(repr(part))


def _files(node: ast.Import | ast.ImportFrom, package: Path) -> Iterator[Path]:
    """The files of the package that an import names."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):  # `from kdtrans.x import y`: y may be a module of its own
        names = [f"{node.module}", *(f"{node.module}.{name}" for name in names)]
    for name in names:
        root, _, module = name.partition(".")
        if root == package.name and module and module not in LEFT_OUT:
            path = package.joinpath(*module.split("."))
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists())
