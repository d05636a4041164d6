"""Registries of the parts of the simulation, each of which is a module.

Fault kinds, planted faults, checks and profiles are registered when their module is imported.
A package imports all of its modules, so a new kind needs only a new file.
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
    """Return a random number generator for one decision.

    It depends only on the seed of the run and the name, so a new decision does not change the
    others.
    """
    return Random(f"{token}/{name}")  # nothing here is a secret


def token_of(rng: Random) -> int:
    """Return a number that identifies the state of a generator, without a draw from it."""
    copy = Random()
    copy.setstate(rng.getstate())
    return copy.getrandbits(64)
