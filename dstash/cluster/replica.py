"""What background tasks know of the peer they run in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dstash.cluster.holdings import Holdings
from dstash.cluster.view import View


@dataclass
class Progress:
    """How far the filling of a peer has come, for people and for metrics.

    ``began`` and ``ended`` are milliseconds since 1970; ``ended`` is 0 while it goes on.
    """

    partitions: int = 0
    began: int = 0
    ended: int = 0
    records: int = 0
    bytes: int = 0

    def milliseconds(self, now: int) -> int:
        """Return how long it has taken."""
        return (self.ended or now) - self.began


@dataclass
class Replica:
    """One peer, as its background tasks see it.

    ``view`` and ``now`` return what is current when they are called, for a task lives long.
    """

    me: str
    holdings: Holdings
    view: Callable[[], View]
    now: Callable[[], int]
    progress: Progress = field(default_factory=Progress)
    healed: int = 0

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
