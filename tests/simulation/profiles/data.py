"""Profiles of data: large batches, values that cut replies, records restored from a backup."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.simulation.conditions import Conditions
from tests.simulation.profiles.registry import profile


@profile("large_batches", share=0.03)
def large_batches(drawn: Conditions, rng: Random) -> Conditions:
    """Write and read hundreds of keys in a call."""
    return replace(
        drawn,
        keys=400,
        batch=(20, rng.choice((50, 200))),
        calls=max(1, drawn.calls // 4),
        mix=(("batch_put", 30), ("batch_lookup", 30), ("batch_delete", 10), ("scan", 4)),
        has_small_limits=rng.random() < 0.5,
    )


@profile("small_limits", share=0.06)
def small_limits(drawn: Conditions, rng: Random) -> Conditions:
    """Fill a request, a reply or a page with a few records; some records are larger."""
    return replace(
        drawn,
        has_small_limits=True,
        padding=rng.choice((0, 40, 300, 1_000)),
        keys=25,
        batch=(2, 12),
        mix=(("batch_put", 12), ("batch_lookup", 14), ("scan", 6)),
    )


@profile("registers", share=0.1)
def registers(drawn: Conditions, rng: Random) -> Conditions:
    """Change and read registers, besides other calls."""
    return replace(drawn, mix=(("register", rng.choice((60, 300))),))


@profile("registers_in_batches", share=0.08)
def registers_in_batches(drawn: Conditions, rng: Random) -> Conditions:
    """Change and read registers, many of them in one call."""
    return replace(drawn, mix=(("register", rng.choice((20, 100))), ("register_batch", 200)))


@profile("restores", share=0.05)
def restores(drawn: Conditions, rng: Random) -> Conditions:
    """Restore old records while they are overwritten and deleted."""
    return replace(
        drawn,
        keys=rng.choice((2, 5)),
        mix=(("restore", 20), ("delete", 20), ("touch", 10), ("record", 10)),
    )
