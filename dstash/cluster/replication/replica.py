"""The peer as its background tasks see it, and the progress that they report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View

#: The cost of moving one record in addition to its bytes, as a number of bytes.
RECORD_BYTES: Final = 256


def effort(weight: int, records: int) -> int:
    """Return the cost of moving ``records`` of ``weight`` bytes, as a number of bytes."""
    return weight + RECORD_BYTES * records


@dataclass
class Progress:
    """The progress of streaming, for status and metrics.

    ``began`` and ``ended`` are milliseconds since 1970; ``ended`` is 0 while streaming runs. A
    pause sets ``ended``; resuming moves ``began`` forward by the length of the pause.
    """

    partitions: int = 0
    began: int = 0
    ended: int = 0
    records: int = 0
    bytes: int = 0

    def pause(self, now: int) -> None:
        """Stop the time of streaming."""
        self.ended = self.ended or now

    def resume(self, now: int) -> None:
        """Resume the time of streaming after a pause."""
        if self.ended:
            self.began += now - self.ended
            self.ended = 0

    @property
    def effort(self) -> int:
        """The cost of the data streamed so far; see ``effort``."""
        return effort(self.bytes, self.records)

    def milliseconds(self, now: int) -> int:
        """Return how long (milliseconds) streaming has run; 0 before it begins."""
        return (self.ended or now) - self.began if self.began else 0

    def bytes_per_second(self, now: int) -> int:
        """Return the average rate so far."""
        return 1000 * self.bytes // max(1, self.milliseconds(now))

    def seconds_left(self, unstreamed: int, now: int) -> float | None:
        """Return the estimated seconds until streaming completes; None without an estimate."""
        done = self.partitions - unstreamed
        if not unstreamed:
            return 0.0
        return self.milliseconds(now) / 1000 * unstreamed / done if done else None


@dataclass
class RepairProgress:
    """The progress of a full repair, in partitions, and its failures.

    ``ended`` counts the finished repairs; ``failed`` counts the replicas that this repair could
    not compare with.
    """

    left: int = 0
    of: int = 0
    failed: int = 0
    ended: int = 0
    _repaired_before: int = 0

    def begin(self, partitions: int, repaired: int) -> None:
        """Begin a repair; ``repaired`` is the number of records repaired before it."""
        self.left = self.of = partitions
        self.failed = 0
        self._repaired_before = repaired

    def end(self) -> None:
        """Finish the repair."""
        self.left = 0
        self.ended += 1

    def describe(self, repaired: int) -> dict[str, int]:
        """Return the progress as plain data."""
        moved = repaired - self._repaired_before
        details = {"left": self.left, "of": self.of, "failed": self.failed, "ended": self.ended}
        return details | {"records": moved}


class Differing:
    """The partitions that differ from other replicas, and since when they do."""

    def __init__(self) -> None:
        self._since: dict[str, dict[int, int]] = {}

    def note(self, partition: int, other: str, now: int, *, differs: bool) -> None:
        """Record the result of a comparison with another replica."""
        since = self._since.setdefault(other, {})
        if differs:
            since.setdefault(partition, now)
        else:
            since.pop(partition, None)

    def note_equal(self, partitions: Iterable[int], other: str) -> None:
        """Record that partitions are equal on another replica."""
        if since := self._since.get(other):
            for partition in partitions:
                since.pop(partition, None)

    def keep(self, other: str, partitions: Collection[int]) -> None:
        """Drop the results of comparisons with a peer, except for these partitions."""
        since = self._since.pop(other, {})
        kept = set(partitions)
        self._since[other] = {
            partition: when for partition, when in since.items() if partition in kept
        }

    def others(self) -> list[str]:
        """Return the peers that partitions were compared with."""
        return list(self._since)

    def describe(self, now: int) -> dict[str, int]:
        """Return how many partitions differ, and for how long (milliseconds) the first has."""
        times = [when for since in self._since.values() for when in since.values()]
        partitions = {partition for since in self._since.values() for partition in since}
        longest = max(0, now - min(times)) if times else 0
        return {"differing": len(partitions), "differing_ms": longest}


@dataclass
class Replica:
    """One peer, as its background tasks see it.

    ``view``, ``now`` and ``wall`` are callables, because a task runs for a long time and needs
    current values. ``wall`` is this peer's own clock, ``clock`` is the cluster clock; ``now`` never
    goes back.
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
    #: Bytes a second that repairs may move; 0 for no rate limit, see ``throttle.Throttle``.
    repair_rate: int = 0

    @property
    def streaming_rate(self) -> int:
        """Bytes a second that this peer may stream: the rate of the change, or that of repairs."""
        change = self.view().topology.change
        return self.repair_rate if change is None else change.rate

    def is_replica(self, peer: str, partition: int) -> bool:
        """Whether a peer holds a partition, before or after the topology change."""
        view = self.view()
        return peer in view.before[partition] or peer in view.writers[partition]

    def is_reader(self, peer: str, partition: int) -> bool:
        """Whether a peer serves reads of a partition, so that it holds all of it."""
        return peer in self.view().readers[partition]

    def is_alive(self, peer: str) -> bool:
        """Whether a peer holds its lock."""
        return peer in self.view().alive
