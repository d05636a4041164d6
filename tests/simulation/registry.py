"""Registries that fill themselves: each part of the simulation is a file of its own.

Fault kinds, planted faults, checks and profiles are registered when their module is imported.
A package imports all of its modules, so another file is all that another kind needs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from random import Random


def import_all(package: str, paths: Iterable[str]) -> None:
    """Import every module of a package, in the order of the names."""
    for name in sorted(module.name for module in pkgutil.iter_modules(paths)):
        importlib.import_module(f"{package}.{name}")


def independent(token: int, name: str) -> Random:
    """Return a source of chance for one decision.

    What it gives depends on nothing but the seed of the run and the name. A decision that is added
    later therefore leaves the others as they were.
    """
    return Random(f"{token}/{name}")  # nothing here is a secret


def token_of(rng: Random) -> int:
    """Return a number that names the state of a source of chance, without a draw from it."""
    copy = Random()
    copy.setstate(rng.getstate())
    return copy.getrandbits(64)
