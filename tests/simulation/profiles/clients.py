"""Profiles of clients: threads, and calls in the same millisecond."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.simulation.conditions import Conditions
from tests.simulation.events import MS
from tests.simulation.profiles.registry import profile


@profile("threads", share=0.05)
def threads(drawn: Conditions, rng: Random) -> Conditions:
    """Let threads share a session."""
    count = rng.choice((1, 2))
    return replace(drawn, threads=count, calls=max(1, drawn.calls // (count + 1)))


@profile("one_millisecond", share=0.05)
def one_millisecond(drawn: Conditions, rng: Random) -> Conditions:
    """Start the calls of all clients in the same milliseconds, mostly on the same keys."""
    return replace(
        drawn,
        aligned=rng.choice((20, 100)) * MS,
        client_offset_ms=0,
        offsets_ms=(0,) * drawn.peers,
        jitter=100,
        keys=rng.choice((2, 4)),
        mix=(("touch", 40), ("put", 30)),
        faults=tuple(sorted({*drawn.faults, "fork"})),
    )
