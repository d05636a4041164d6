"""Worlds with a fault planted into peers or clients, to show that the checks find it.

To add a planted fault, write a module of this package::

    @plant("name", "I1", "I3")
    class Name(World):
        '''What the code does wrong here.'''

        def __init__(self, seed: int) -> None:
            super().__init__(seed, conditions=planted_conditions(seed, "kill", "cut_pair"))

and override methods of ``World`` under "overridden by planted faults", or return ``mock.patch``
objects from ``patches()``.
"""

from __future__ import annotations

from tests.simulation.planted.registry import PLANTED, Planted, plant, planted_conditions
from tests.simulation.registry import import_all

__all__ = ["PLANTED", "Planted", "plant", "planted_conditions"]

import_all(__name__, __path__)
