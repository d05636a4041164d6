"""The write floor of a peer: the stamp that new writes of clients must exceed.

A peer promises other replicas to accept no more writes up to a horizon. A peer that cannot know
which promises it has made also refuses every write that is stamped before its start.
"""

from __future__ import annotations

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.topology.view import View
from dstash.errors import BelowFloor, NotReady
from dstash.version import VERSION_BYTES, Stamp, newest_stamp, stamp_at, stamp_milliseconds


class WriteFloor:
    """Decides which writes of clients are too old, and what the peer may promise next.

    Args:
        peer: the id of this peer.
        local_partitions: keeps the promises.
        clock: the cluster clock, as this peer knows it.
    """

    def __init__(self, peer: str, local_partitions: LocalPartitions, clock: ClusterClock) -> None:
        self._peer = peer
        self._local_partitions = local_partitions
        self._clock = clock
        #: Writes up to this stamp are refused, as those up to the promised floor are.
        self._start: Stamp = 0
        if local_partitions.kept_floor is None:
            self._raise_to_now()

    def install(self, before: View | None, view: View) -> None:
        """Take a new view: raise the floor when this peer's store has lost its data."""
        was = before.members.get(self._peer) if before else None
        member = view.members.get(self._peer)
        is_lost = member is not None and not member.synced
        if is_lost and (was is None or was.synced):
            self._raise_to_now()

    def correct(self) -> None:
        """Lower what was set by a clock that was ahead, once the clocks of a majority are known.

        Promises were made by the time of the cluster, so a later start came from a wrong clock.
        """
        self._start = min(self._start, stamp_at(self._clock.time()))

    def check(self, index: str, version: bytes, now: int) -> None:
        """Refuse a write that this peer promised to refuse.

        Checked on arrival, not at the commit: a promise is answered after all writes that came
        before it are on disk.

        Raises:
            BelowFloor: the version is not above the floor, or the index was dropped up to a later
                stamp.
        """
        check_floor(version, self._local_partitions.drops.floors.of_index(index))
        try:
            check_floor(version, max(self._local_partitions.floor, self._start))
        except BelowFloor:
            late = self._clock.time() - stamp_milliseconds(newest_stamp(version))
            self._local_partitions.arrived_late(late, now)
            raise

    def latest_promise(self, now: int) -> Stamp:
        """Return the highest floor that this peer may promise now (milliseconds since 1970).

        Raises:
            NotReady: the clocks of a majority are not known yet.
        """
        if not self._clock.knows_majority:
            raise NotReady(f"{self._peer}: the clocks of a majority are not known yet")
        grace = self._local_partitions.grace(now)
        if not grace:
            return self._clock.latest()
        return stamp_at(self._clock.time() - grace)

    def _raise_to_now(self) -> None:
        """Refuse writes stamped before now, because earlier promises are not known.

        The store is new, is older than it was, or was last used by a version without floors. Until
        the clocks of others are known, the only time is this peer's own.
        """
        self._start = stamp_at(self._clock.time())


def check_floor(version: bytes, floor: Stamp) -> None:
    """Refuse a version that is not above a floor.

    Raises:
        BelowFloor: the text says by how many milliseconds.
    """
    if len(version) == VERSION_BYTES and newest_stamp(version) <= floor:
        behind = stamp_milliseconds(floor) - stamp_milliseconds(newest_stamp(version))
        raise BelowFloor(
            f"the version is {behind} ms older than what may still be accepted", floor=floor
        )
