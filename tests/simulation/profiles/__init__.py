"""Profiles: rare conditions that replace the drawn ones in a small share of all runs.

To add a profile, write a module of this package::

    @profile("name", share=0.03)
    def name(drawn: Conditions, rng: Random) -> Conditions:
        return replace(drawn, ...)
"""

from __future__ import annotations

from tests.simulation.profiles.registry import PROFILES, PROFILES_PENDING, apply, profile
from tests.simulation.registry import import_all

__all__ = ["PROFILES", "PROFILES_PENDING", "apply", "profile"]

import_all(__name__, __path__)
