"""Imports: no cycle among the modules of dstash, and no folder with too many modules.

import-linter checks the layers; it ignores imports for typing alone, and cycles inside a layer.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

from tests.documents.blocks import ROOT

MAX_MODULES_PER_FOLDER: Final = 16


def modules_in(package: Path) -> dict[str, Path]:
    """Return the file of each module of a package by its dotted name."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_in(source: str, modules: Collection[str]) -> Iterator[str]:
    """Yield the modules that a source imports anywhere, in functions and for typing included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "relative imports are not used"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                imported = submodule if submodule in modules else node.module
                if imported in modules:
                    yield imported


def graph_of(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return what each module imports. A package's own imports of its modules do not count.

    ``dstash/__init__.py`` names the classes that users import, for type checkers.
    """
    graph = {name: set(imports_in(file.read_text(), modules)) for name, file in modules.items()}
    for name, file in modules.items():
        if file.name == "__init__.py":
            graph[name] = {other for other in graph[name] if not other.startswith(f"{name}.")}
    return graph


def cycle_in(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Return the modules of one cycle, in the order of their imports; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def modules_per_folder(root: Path) -> dict[str, int]:
    """Return the number of modules in each folder, ``__init__`` not counted."""
    counts: dict[str, int] = {}
    for file in root.rglob("*.py"):
        if file.name != "__init__.py":
            folder = str(file.parent.relative_to(root.parent))
            counts[folder] = counts.get(folder, 0) + 1
    return counts


def test_imports_of_dstash_have_no_cycle() -> None:
    assert cycle_in(graph_of(modules_in(ROOT / "dstash"))) == []


def test_folders_have_at_most_16_modules() -> None:
    counts = modules_per_folder(ROOT / "dstash") | modules_per_folder(ROOT / "bench")
    assert {f: count for f, count in counts.items() if count > MAX_MODULES_PER_FOLDER} == {}


def test_cycle_is_found_through_typing_imports_and_functions(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("if TYPE_CHECKING:\n    from p.b import B\n")
    (package / "b.py").write_text("def b():\n    from p import c\n")
    (package / "c.py").write_text("import p.a\n")
    assert set(cycle_in(graph_of(modules_in(package)))) == {"p.a", "p.b", "p.c"}


def test_modules_are_counted_per_folder(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "q").mkdir(parents=True)
    for name in ("__init__.py", "a.py", "q/__init__.py", "q/b.py", "q/c.py"):
        (package / name).touch()
    assert modules_per_folder(package) == {"p": 1, "p/q": 2}
