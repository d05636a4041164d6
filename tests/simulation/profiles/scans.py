"""Profile of scans: for items, keys and counts, while replicas miss writes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.simulation.conditions import Conditions
from tests.simulation.profiles.registry import profile


@profile("scans", share=0.06)
def scans(drawn: Conditions, rng: Random) -> Conditions:
    """Scan a few keys, or pages of them, again and again."""
    return replace(
        drawn,
        keys=rng.choice((4, 12, 60)),
        mix=(("scan", 25), ("keys", 12), ("count", 12), ("batch_put", 15), ("batch_delete", 12)),
        has_small_limits=rng.random() < 0.5,
    )
