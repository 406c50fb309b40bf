"""The house's imports run one way, function bodies included, and what must start fast or without torch stays so."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FLOORS = [
    {"__init__", "artifacts", "code", "config", "contracts", "layout", "products"},
    {"lattice"},
    {"models", "losses"},
    {"data", "targets", "training", "search", "scoring", "report"},
    {"bench"},
    {"stages"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = {"__init__", "artifacts", "code", "config", "contracts", "layout", "scoring", "report", "__main__"}
NEEDS_TORCH = {"torch", "torchaudio", "transformers", "lhotse"}
FILES = sorted((REPOSITORY / "kdtrans").rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path, only_top_level: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports; by default in its functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body if only_top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            if node.module == "kdtrans":  # from kdtrans import contracts
                found |= {f"kdtrans.{alias.name}" for alias in node.names if alias.name in FLOOR_OF}
            else:
                found.add(node.module)
    return found


def rooms_imported(path: Path) -> set[str]:
    return {room_of(name) for name in imports_of(path) if name.split(".")[0] == "kdtrans"}


def test_every_room_has_a_floor() -> None:
    assert {room_of(module_name(path)) for path in FILES} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_imports_from_a_floor_above(path: Path) -> None:
    room = room_of(module_name(path))
    above = {other for other in rooms_imported(path) if FLOOR_OF[other] > FLOOR_OF[room]}
    assert not above, f"{module_name(path)} ({room}) imports from {above}"


def test_rooms_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        room = room_of(module_name(path))
        graph.setdefault(room, set()).update(rooms_imported(path) - {room})
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_stays_where_it_belongs(path: Path) -> None:
    room = room_of(module_name(path))
    if room in WITHOUT_TORCH:
        assert rooms_imported(path) <= {*WITHOUT_TORCH, "stages"}
        found = imports_of(path)
    elif room == "stages":
        found = imports_of(path, only_top_level=True)
    else:
        return
    assert not {name.split(".")[0] for name in found} & NEEDS_TORCH


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_package_does_not_know_snakemake(path: Path) -> None:
    assert "snakemake" not in {name.split(".")[0] for name in imports_of(path)}
