"""The conditions of a run: the number and quality of machines, and the faults."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from dstash.cluster.replication.partitions import SLICE
from dstash.peer.background.maintenance import Pace
from tests.simulation.events import MS, SECOND
from tests.simulation.faults import common_kinds, shared_kinds
from tests.simulation.registry import independent, token_of

#: Clock regimes: the largest offset of a node (ms), that of one odd node, and steps while it runs.
_CLOCKS: Final = (
    (5, 5, (-3, 3)),
    (150, 150, (-100, 100)),
    (240, 240, (-200, 200)),
    (50, 3_000, (-400, 400)),
    (50, 20_000, (-5_000, 5_000)),
)

#: A promise about the past delays repairs for 10 s: horizons must not be agreed on more often.
_PACES: Final = (Pace(), Pace(3_000, 15_000, 5_000), Pace(2_000, 12_000, 500))

#: Records per slice: few, so that walks of a small store are interrupted like those of a large one.
_SLICES: Final = (1, 4, SLICE)

#: How large pages of a copy are, at least and at most (effort): of two or three records, or of all.
_PAGES: Final = ((600, 1200), (80 * 1024, 320 * 1024))

_LEVELS: Final = (
    (0, 1, 0),
    (1, 6, 1),
    (3, 3, 3),
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of one run. Times are in microseconds unless stated otherwise.

    Attributes:
        levels: weights of the levels one, quorum, all.
        offsets_ms: how far the clock of each peer is off.
        pause: mean pause of a client between calls.
        calm: mean time between faults.
        pace: how often peers compare replicas and agree on horizons.
        spares: machines that may join.
        slice_records: how many records a peer walks in one step.
        page_bytes: what a page of a copy weighs, at least and at most.
        down_out_after: seconds after which peers forget a member that is down; 0 for never.
        profiles: names of the profiles that changed the drawn conditions.
        weights: of the peers; all are 1.0 where there are none.
        threads: how many threads of a client share its session, in addition to the first.
        aligned: calls begin at multiples of this time, so that those of several clients meet in
            one millisecond; 0 for any time.
        mix: (kind of call, weight) pairs, in addition to the common mix, or instead of its pairs.
        batch: how many keys a batch has, at least and at most.
        padding: bytes by which values are longer than their names.
        has_small_limits: whether requests, replies and pages hold only a few records.
    """

    peers: int
    replicas: int
    zones: int
    clients: int
    calls: int
    keys: int
    levels: tuple[int, int, int]
    offsets_ms: tuple[int, ...]
    client_offset_ms: int
    clock_steps: tuple[int, ...]
    timeout: float
    pause: int
    calm: int
    jitter: int
    duplication: float
    pace: Pace
    spares: int
    down_out_after: float
    faults: tuple[str, ...]
    slice_records: int
    page_bytes: tuple[int, int]
    profiles: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    threads: int = 0
    aligned: int = 0
    mix: tuple[tuple[str, int], ...] = ()
    batch: tuple[int, int] = (2, 6)
    padding: int = 0
    has_small_limits: bool = False


def draw(rng: Random, calls: int, always: Collection[str] = ()) -> Conditions:
    """Draw the conditions of a run: the common ones, rare fault kinds, and profiles.

    Args:
        rng: the random number generator.
        calls: calls of all clients, about.
        always: names of profiles that the run has regardless of the draw.
    """
    from tests.simulation.profiles import apply  # profiles are made of conditions

    token = token_of(rng)
    drawn = draw_common(rng, calls)
    rare = [
        name
        for name, share in shared_kinds().items()
        if independent(token, f"kind {name}").random() < share
    ]
    drawn = replace(drawn, faults=(*drawn.faults, *rare))
    return apply(drawn, token, always)


def draw_common(rng: Random, calls: int) -> Conditions:
    """Draw the common conditions, with about that many calls.

    Put a new draw into a profile, or derive it from what is drawn here: otherwise every seed
    changes its meaning.
    """
    peers = rng.choice((3, 3, 3, 4, 5))
    small, odd, chunked = rng.choice(_CLOCKS)
    offsets = [rng.randint(-small, small) for _ in range(peers)]
    offsets[rng.randrange(peers)] = rng.choice((-odd, odd))
    clients = rng.randint(2, 5)
    count = rng.randint(1, 7)
    return Conditions(
        peers=peers,
        replicas=rng.choice((3, 3, 3, 3, 2)),
        zones=rng.choice((peers, peers, 2)),
        clients=clients,
        calls=max(1, calls // clients),
        keys=rng.choice((3, 8, 25)),
        levels=rng.choice(_LEVELS),
        offsets_ms=tuple(offsets),
        client_offset_ms=rng.choice((0, 100, 3_600_000)),
        clock_steps=chunked,
        timeout=rng.choice((0.7, 2.0, 5.0)),
        pause=rng.choice((20 * MS, 100 * MS, 300 * MS)),
        calm=rng.choice((300 * MS, SECOND, 3 * SECOND)),
        jitter=rng.choice((100, 1_000, 10_000)),
        duplication=rng.choice((0.0, 0.0, 0.05)),
        pace=rng.choice(_PACES),
        spares=rng.choice((1, 2)),
        down_out_after=rng.choice((0.0, 0.0, 2.5, 8.0)),
        faults=tuple(rng.sample(common_kinds(), count)),
        # Not drawn, so that earlier seeds keep their conditions.
        slice_records=_SLICES[sum(offsets) % len(_SLICES)],
        page_bytes=_PAGES[sum(offsets) // len(_SLICES) % len(_PAGES)],
    )
