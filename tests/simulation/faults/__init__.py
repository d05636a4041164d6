"""Faults: each module is a family and registers its fault kinds with ``@kind``.

To add a kind, write a function in the module of its family, or in a new module of this package::

    @kind("name", share=0.05)
    def name(faults: Faults) -> Undo:
        ...begin the fault...
        return the_function_that_ends_it
"""

from __future__ import annotations

from tests.simulation.faults.registry import (
    KINDS,
    KINDS_PENDING,
    Kind,
    Undo,
    common_kinds,
    kind,
    shared_kinds,
)
from tests.simulation.faults.schedule import Faults
from tests.simulation.registry import import_all

__all__ = [
    "KINDS",
    "KINDS_PENDING",
    "Faults",
    "Kind",
    "Undo",
    "common_kinds",
    "kind",
    "shared_kinds",
]

import_all(__name__, __path__)
