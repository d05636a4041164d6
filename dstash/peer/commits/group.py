"""Group commit: the writes that wait become one commit, which then changes what the peer knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.cluster.replication.tasks import Merge
from dstash.errors import DStashError
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.writes import Internal, WaitingWrite
from dstash.peer.commits.commit import Commit
from dstash.peer.commits.recent_deletes import RecentDeletes
from dstash.peer.commits.rules import Rules
from dstash.peer.keyspaces import Keyspaces
from dstash.store.register.voter import Bounds, no_drops
from dstash.version import Stamp, latest_stamp


class GroupCommit:
    """Makes the commits of one peer. Only one may run at a time.

    Args:
        backlog: the writes that wait.
        local_partitions: the records; learns which partitions a commit changed.
        keyspaces: knows the partitions that this peer holds.
        clock: the cluster clock, as this peer knows it.
        max_clock_skew_ms: how far versions may be ahead of it.
        disk_reserve: bytes of disk that puts may not use.
    """

    def __init__(
        self,
        backlog: Backlog,
        local_partitions: LocalPartitions,
        keyspaces: Keyspaces,
        clock: ClusterClock,
        *,
        max_clock_skew_ms: int,
        disk_reserve: int,
    ) -> None:
        #: Keys that recent deletes found.
        self.recent_deletes = RecentDeletes()
        #: Storage keys of registers that a promise has kept from being merged.
        self.preempted: set[bytes] = set()
        self._backlog = backlog
        self._local_partitions = local_partitions
        self._keyspaces = keyspaces
        self._clock = clock
        self._max_clock_skew_ms = max_clock_skew_ms
        self._disk_reserve = disk_reserve
        #: By storage key, the bound for registers found corrupt; see ``Bounds.corruption``.
        self._corruption: dict[bytes, Stamp] = {}

    def add(self, merge: Merge, done: Callable[[DStashError | None], None]) -> None:
        """Queue a write of this peer's own tasks; ``done`` is called with the error, if any."""
        weight = sum(map(len, chain.from_iterable(merge.entries)))
        self._backlog.add(WaitingWrite(Ticket(b"", 0), Internal(merge, done), None, weight))

    def begin(self, now: int) -> Commit:
        """Return a commit of the writes that have waited longest.

        Args:
            now: this peer's own clock, in milliseconds since 1970.
        """
        group = self._backlog.take(now)
        local_partitions, clock = self._local_partitions, self._clock
        store, reserve = local_partitions.store, self._disk_reserve
        has_room = store.has_room(reserve)
        present = clock.present_ms()
        floors = local_partitions.drops.floors
        if all(write.entry is not None for write in group):
            # What puts are not checked against is left out.
            rules = Rules(
                now,
                present,
                self._max_clock_skew_ms,
                local_partitions.newest_horizon,
                has_room=has_room,
                upper_bound=store.high_water,
                latest=clock.highest_acked(),
                acked=clock.acked_by_contested(),
                floors=floors,
            )
            return Commit(group, rules, recent=self.recent_deletes)
        bounds = Bounds(
            # A vote counts as a write (V1, V2): after the promise of a floor it would be missed.
            max(local_partitions.floor, local_partitions.newest_horizon),
            latest_stamp(present + self._max_clock_skew_ms),
            store.high_water,
            self._corruption,
            floors.of_key if floors else no_drops,
            local_partitions.register_floors,
            floors_are_horizons=local_partitions.floors_are_horizons,
        )
        rules = Rules(
            now,
            present,
            self._max_clock_skew_ms,
            local_partitions.newest_horizon,
            local_partitions.promises(now),
            local_partitions.horizons,
            self._keyspaces.owned,
            has_room=has_room,
            has_spare=has_room or store.has_room(reserve // 2),
            upper_bound=store.high_water,
            latest=clock.highest_acked(),
            acked=clock.acked_by_contested(),
            floors=floors,
            bounds=bounds,
            life=local_partitions.lineage.current,
            resting=self._keyspaces.resting,
            lacks_data=self._keyspaces.lacks_data,
        )
        return Commit(group, rules, recent=self.recent_deletes)

    def end(self, commit: Commit, now: int) -> bool:
        """Take note of what a commit that has run changed, and tell the tasks that wait for it.

        Returns:
            whether that leaves a task something to do.
        """
        # A majority may hold later stamps by now: the client retries in a moment.
        self._clock.is_due = self._clock.is_due or commit.skewed
        for version in commit.contested:
            self._clock.contest(version)
        self._local_partitions.changed_keys(commit.changed, now)
        self._local_partitions.corruption.report(commit.corrupt)
        self.preempted.update(commit.preempted)
        for internal, error in commit.done:
            internal.done(error)
        return self._backlog.committed(commit.waiting, now) or commit.leaves_work
