"""Fewer partitions for a simulated cluster.

A cluster has 4096 partitions regardless of its data, and repeatedly walks all of them. With a few
dozen keys, these walks would take most of the time of a run. The number is a constant of
``dstash.limits`` that other modules copy, so it must be changed before they are imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

_MODULE: Final = "dstash.limits"


class _Shrinking(Loader):
    def __init__(self, loader: Loader, count: int) -> None:
        self._loader = loader
        self._count = count

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.PARTITIONS = self._count  # type: ignore[attr-defined]


class _Finder(MetaPathFinder):
    def __init__(self, count: int) -> None:
        self._count = count

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == _MODULE else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Shrinking(spec.loader, self._count)
        return spec


def shrink(count: int) -> None:
    """Give clusters ``count`` partitions (a power of two) from now on, in this process."""
    if _MODULE in sys.modules:
        raise RuntimeError(f"{_MODULE} is imported already")
    sys.meta_path.insert(0, _Finder(count))
