"""What background tasks know of the peer they run in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View

#: What a record takes that moves, beside its bytes, in time: as long as so many bytes.
RECORD_BYTES: Final = 256


def effort(weight: int, records: int) -> int:
    """Return what it takes to move ``weight`` bytes of records, as bytes that take as long."""
    return weight + RECORD_BYTES * records


@dataclass
class Progress:
    """How far the filling of a peer has come, for people and for metrics.

    ``began`` and ``ended`` are milliseconds since 1970; ``ended`` is 0 while it goes on. A pause is
    an end, after which it began later by as long as that took.
    """

    partitions: int = 0
    began: int = 0
    ended: int = 0
    records: int = 0
    bytes: int = 0

    def pause(self, now: int) -> None:
        """Let no time pass until it goes on."""
        self.ended = self.ended or now

    def go_on(self, now: int) -> None:
        """Go on where it was paused."""
        if self.ended:
            self.began += now - self.ended
            self.ended = 0

    @property
    def effort(self) -> int:
        """What it took to move what came in so far; see ``effort``."""
        return effort(self.bytes, self.records)

    def milliseconds(self, now: int) -> int:
        """Return how long it has taken; 0 when there was none yet."""
        return (self.ended or now) - self.began if self.began else 0

    def bytes_per_second(self, now: int) -> int:
        """Return how fast it came in so far."""
        return 1000 * self.bytes // max(1, self.milliseconds(now))

    def seconds_left(self, unstreamed: int, now: int) -> float | None:
        """Return how long the rest takes at this pace; None while nobody can tell."""
        done = self.partitions - unstreamed
        if not unstreamed:
            return 0.0
        return self.milliseconds(now) / 1000 * unstreamed / done if done else None


@dataclass
class RepairProgress:
    """How far a repair has come, in partitions, and what it could not do.

    ``ended`` counts the repairs that came to their end; ``failed`` the replicas that this one
    could not compare itself with.
    """

    left: int = 0
    of: int = 0
    failed: int = 0
    ended: int = 0
    _healed: int = 0

    def begin(self, partitions: int, repaired: int) -> None:
        """Begin a repair; ``repaired`` is how many records were ever healed before."""
        self.left = self.of = partitions
        self.failed = 0
        self._healed = repaired

    def end(self) -> None:
        """Come to the end."""
        self.left = 0
        self.ended += 1

    def describe(self, repaired: int) -> dict[str, int]:
        """Return it for people."""
        moved = repaired - self._healed
        details = {"left": self.left, "of": self.of, "failed": self.failed, "ended": self.ended}
        return details | {"records": moved}


class Differing:
    """Which partitions were found to differ from other replicas, and since when."""

    def __init__(self) -> None:
        self._since: dict[str, dict[int, int]] = {}

    def note(self, partition: int, other: str, now: int, *, differs: bool) -> None:
        """Take note of a comparison with another replica."""
        since = self._since.setdefault(other, {})
        if differs:
            since.setdefault(partition, now)
        else:
            since.pop(partition, None)

    def keep(self, other: str, partitions: Collection[int]) -> None:
        """Forget what was found with another peer, but for these partitions."""
        since = self._since.pop(other, {})
        kept = set(partitions)
        self._since[other] = {one: when for one, when in since.items() if one in kept}

    def others(self) -> list[str]:
        """Return the peers that some partition was compared with."""
        return list(self._since)

    def describe(self, now: int) -> dict[str, int]:
        """Return how many partitions differ, and for how long (milliseconds) the first of them."""
        found = [when for since in self._since.values() for when in since.values()]
        partitions = {partition for since in self._since.values() for partition in since}
        longest = max(0, now - min(found)) if found else 0
        return {"differing": len(partitions), "differing_ms": longest}


@dataclass
class Replica:
    """One peer, as its background tasks see it.

    ``view``, ``now`` and ``wall`` return what is current when they are called, for a task lives
    long. ``wall`` is this peer's own clock, ``clock`` the cluster's; ``now`` never goes back.
    """

    me: str
    local_partitions: LocalPartitions
    view: Callable[[], View]
    now: Callable[[], int]
    wall: Callable[[], int]
    clock: ClusterClock
    progress: Progress = field(default_factory=Progress)
    repair: RepairProgress = field(default_factory=RepairProgress)
    differing: Differing = field(default_factory=Differing)
    repaired: int = 0
    #: Partitions compared with another replica, those that differed, and keys replayed from hints.
    compared: int = 0
    differed: int = 0
    replayed: int = 0
    #: Bytes a second that may be moved to heal; 0: gently, see ``syncing.Throttle``.
    repair_rate: int = 0

    @property
    def rate(self) -> int:
        """Bytes a second that this peer may take in now: what an operator said, or the setting."""
        change = self.view().topology.change
        return self.repair_rate if change is None else change.rate

    def is_replica(self, peer: str, partition: int) -> bool:
        """Whether a peer holds a partition, before or after the change under way."""
        view = self.view()
        return peer in view.before[partition] or peer in view.writers[partition]

    def is_reader(self, peer: str, partition: int) -> bool:
        """Whether reads of a partition may come to a peer: it holds the whole of it."""
        return peer in self.view().readers[partition]

    def is_alive(self, peer: str) -> bool:
        """Whether a peer holds its lock."""
        return peer in self.view().alive
