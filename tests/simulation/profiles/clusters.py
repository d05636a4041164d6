"""Profiles of clusters: numbers of replicas and peers, zones, weights."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.simulation.conditions import Conditions
from tests.simulation.profiles.registry import profile

#: Fault kinds that lose the data of a single replica.
_LOSSES = ("wipe", "damage", "old_copy", "unsynced")


@profile("replicas", share=0.06)
def replicas(drawn: Conditions, rng: Random) -> Conditions:
    """Keep one, two, four or five replicas."""
    count = rng.choice((1, 2, 4, 5))
    drawn = with_peers(drawn, rng, max(drawn.peers, count))
    if count == 1:  # no other replica could replace lost data
        kept = tuple(name for name in drawn.faults if name not in (*_LOSSES, "change"))
        drawn = replace(drawn, faults=kept or ("kill",), down_out_after=0.0)
    return replace(drawn, replicas=count)


@profile("many_peers", share=0.02)
def many_peers(drawn: Conditions, rng: Random) -> Conditions:
    """Form the cluster of six to nine peers."""
    drawn = with_peers(drawn, rng, rng.randint(6, 9))
    return replace(drawn, zones=rng.choice((2, 3, drawn.peers)), keys=25)


@profile("weights", share=0.05)
def weights(drawn: Conditions, rng: Random) -> Conditions:
    """Give peers different weights."""
    machines = drawn.peers + drawn.spares
    return replace(drawn, weights=tuple(rng.choice((0.5, 1.0, 2.0, 4.0)) for _ in range(machines)))


def with_peers(drawn: Conditions, rng: Random, peers: int) -> Conditions:
    """Return conditions with this number of peers; additional peers have similar clocks."""
    more = [rng.choice(drawn.offsets_ms) for _ in range(peers - drawn.peers)]
    zones = peers if drawn.zones == drawn.peers else drawn.zones
    offsets = (*drawn.offsets_ms, *more)[:peers]
    return replace(drawn, peers=peers, zones=zones, offsets_ms=offsets)
