"""The call paths of ARCHITECTURE.md, and their check against the code.

A path is a Markdown list. Each line names a function and why it is called, and, if its caller does
not mention its name, the name that connects them::

    1. `client/blocking.py:Client.put`: the call of the user
       - `client/calls.py:Calls.put`: checks the limits
    2. `client/blocking.py:Client._run`: lends a connection

The parent of a line is the previous numbered line, or the line that it is indented under. The
parent mentions its name, or both are connected ``through`` a table, queue or generator.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ARCHITECTURE.md"
TITLE = "## Call paths"

_LINE = re.compile(
    r"(?P<indent> *)(?:\d+\.|-) `(?P<place>[^`]+)`(?: through `(?P<through>[^`]+)`)?: (?P<why>.+)"
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Step(NamedTuple):
    """One line of a path; ``parent`` is the place that calls it, empty for the first line."""

    path: str
    parent: str
    place: str
    through: str

    def __str__(self) -> str:
        return f"{self.path}: {self.place}"


def steps(text: str) -> Iterator[Step]:
    """Yield the lines of all paths of a page."""
    path = ""
    parents: list[tuple[int, str]] = []
    for line in text.partition(TITLE)[2].split("\n## ")[0].splitlines():
        found = _LINE.fullmatch(line)
        if line.startswith("### "):
            path = line.removeprefix("### ")
        if found is None:
            if line and not line.startswith(" "):
                parents = []  # prose ends a list
            if re.match(r" *(\d+\.|-) ", line):
                raise ValueError(f"not a step of a path: {line.strip()!r}")
            continue
        indent = len(found["indent"])
        is_nested = found[0].lstrip().startswith("-")
        above = [parent for parent in parents if parent[0] <= indent - is_nested]
        yield Step(path, above[-1][1] if above else "", found["place"], found["through"] or "")
        parents = [parent for parent in parents if parent[0] < indent] + [(indent, found["place"])]


def fault(step: Step) -> str:
    """Return what is wrong with a step; empty if the code has it."""
    node = definition(step.place)
    if node is None:
        return f"{step.place} does not exist"
    if not step.parent:
        return ""
    parent = definition(step.parent)
    if parent is None:
        return ""  # reported separately
    name, through = _last(step.place), step.through.lstrip("_")
    if not through:
        return "" if name in names(parent) else f"{step.parent} does not mention {name}"
    if through not in names(parent):
        return f"{step.parent} does not mention {step.through}"
    if through in names(node) or _are_together(name, through):
        return ""
    return f"nothing connects {step.through} with {name}"


def definition(place: str) -> ast.AST | None:
    """Return the function, class or table that a place (``file:name``) names."""
    file, _, name = place.partition(":")
    if not (ROOT / "dstash" / file).is_file():
        return None
    node: ast.AST | None = _tree(file)
    for part in name.split("."):
        node = next((child for child in _children(node) if _name_of(child) == part), None)
    return node


def names(node: ast.AST) -> set[str]:
    """Return every name, attribute and keyword that a piece of code mentions.

    The underscore of a private name does not count: it often stores an argument of the same name.
    """
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            found.add(child.id)
        elif isinstance(child, ast.Attribute):
            found.add(child.attr)
        elif isinstance(child, ast.keyword) and child.arg:
            found.add(child.arg)
    return {name.lstrip("_") for name in found}


def _are_together(name: str, through: str) -> bool:
    return any({name, through} <= mentioned for mentioned in _mentioned_together())


@cache
def _mentioned_together() -> list[set[str]]:
    """Return the names that each function, and each table of a module, mentions."""
    kinds = (*_FUNCTIONS, ast.Assign, ast.AnnAssign)
    files = sorted((ROOT / "dstash").rglob("*.py"))
    trees = [_tree(file.relative_to(ROOT / "dstash").as_posix()) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    return [names(node) | {_name_of(node).lstrip("_")} for node in nodes]


def _last(place: str) -> str:
    return re.split(r"[:.]", place)[-1].lstrip("_")


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / "dstash" / file).read_text())


def _children(node: ast.AST | None) -> list[ast.AST]:
    body: list[ast.AST] = getattr(node, "body", []) if node is not None else []
    return body


def _name_of(node: ast.AST) -> str:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else ""
