"""Profiles that combine faults, each of which alone has little effect."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Final

from dstash.peer.background.maintenance import Pace
from tests.simulation.conditions import Conditions
from tests.simulation.events import MS, SECOND
from tests.simulation.profiles.registry import profile

#: Tombstones are collected so often that a run has dozens of horizons.
_SHORT: Final = Pace(compare_ms=2_000, gc_interval_ms=2_000, gc_grace_ms=500)

#: Kinds of calls that repair what they read, or hide what was not repaired.
_READS: Final = (
    *("lookup", "batch_lookup", "record", "exists", "scan"),
    *("batch_put", "batch_delete", "put_ttl", "touch"),
)

_CUTS: Final = ("cut_pair", "isolate_one_way", "pause", "storm")


@profile("short_grace", share=0.06)
def short_grace(drawn: Conditions, rng: Random) -> Conditions:
    """Collect tombstones every two seconds, in long runs."""
    pause = max(drawn.pause, 200 * MS)
    return replace(drawn, pace=_SHORT, pause=pause, calls=drawn.calls * 3 // 2)


@profile("touch_and_horizon", share=0.03)
def touch_and_horizon(drawn: Conditions, rng: Random) -> Conditions:
    """Combine touches with deletes that a replica missed, and horizons between them."""
    return replace(
        drawn,
        pace=_SHORT,
        keys=rng.choice((1, 3)),
        mix=(("touch", 40), ("delete", 25), ("put", 25)),
        faults=(*rng.sample(_CUTS, 2), rng.choice(("kill", "kill_all", "election"))),
        calm=SECOND,
        pause=200 * MS,
    )


@profile("restore_and_horizon", share=0.03)
def restore_and_horizon(drawn: Conditions, rng: Random) -> Conditions:
    """Restore records that were deleted before the horizon, while replicas are cut off."""
    return replace(
        drawn,
        pace=_SHORT,
        keys=rng.choice((1, 3)),
        mix=(("restore", 30), ("delete", 25), ("put", 25), ("record", 20)),
        faults=(*rng.sample(_CUTS, 2), rng.choice(("kill", "kill_all", "change"))),
        calm=SECOND,
        pause=200 * MS,
    )


@profile("late_touch", share=0.03)
def late_touch(drawn: Conditions, rng: Random) -> Conditions:
    """Touch records some time after they were read, while replicas miss deletes.

    Horizons pass more often than replicas are compared, and calls seldom read, so that what a
    replica missed is not repaired before the next horizon.
    """
    return replace(
        drawn,
        pace=Pace(compare_ms=15_000, gc_interval_ms=1_000, gc_grace_ms=1_000),
        peers=3,
        offsets_ms=(0, 0, 0),
        zones=3,
        replicas=3,
        clients=4,
        calls=30,
        keys=rng.choice((6, 10)),
        levels=(0, 1, 0),
        mix=(*((kind, 0) for kind in _READS), ("late_touch", 60), ("delete", 5), ("put", 35)),
        faults=("lost_requests",),
        calm=500 * MS,
        pause=100 * MS,
        timeout=2.0,
    )
