"""What one peer holds, partition by partition: digests, horizons, and what changed when.

Digests are worked out when somebody asks, and kept while their partition does not change. A walk
goes in slices, each with a snapshot of its own, so that none is held for long.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from dstash.cluster.replication.corruption import Corruption
from dstash.cluster.replication.lineage import Lineage, StoreMemory
from dstash.cluster.replication.tasks import Effect, Merge, Pause
from dstash.limits import PARTITIONS
from dstash.store.digest import BUCKETS, DigestKind, Sum, bucket_of
from dstash.store.interface import Store
from dstash.store.record import partition_in
from dstash.version import MAX_STAMP, Stamp

#: Records walked between two turns of the scheduler, if nothing else is said: to check so many
#: takes less time than a look-up.
SLICE: Final = 50
#: After so many slices of one partition a walk rests.
_RESTS_AFTER: Final = 3

#: Partitions looked into between two turns of the scheduler.
_LOOKED_INTO: Final = 64

#: What it costs to open a partition, in records walked.
_OPENING: Final = 10

#: A partition that changed within this time (milliseconds) is busy: replicas differ in passing.
BUSY_MS: Final = 2000

#: So long at most (milliseconds) nothing is compared because somebody brings what was missed.
CATCHING_UP_MS: Final = 40_000

#: How far (milliseconds) floors stay behind the time, at most, because writes arrive late; and how
#: long after the last such write.
_LONGEST_GRACE_MS: Final = 30_000
_GRACE_LASTS_MS: Final = 60_000

#: How long, at most, repairs of the past are refused while a horizon is being agreed on.
PROMISE_MS: Final = 10_000

HORIZONS_MARK: Final = b"horizons"
#: The epoch of the last order to lower floors and horizons that was carried out here, 8 bytes.
LOWERED_MARK: Final = b"lowered"
#: The highest stamp up to which this peer promised to refuse writes of clients, 8 bytes.
FLOOR_MARK: Final = b"floor"

Entries = list[tuple[bytes, bytes]]

Walking = Generator[Effect, None, "bytes"]


def bounds(partition: int) -> tuple[bytes, bytes]:
    """Return the range of storage keys of a partition."""
    end = partition + 1
    return partition.to_bytes(2, "big"), end.to_bytes(2, "big")


class LocalPartitions:
    """The partitions of one store, and what is known about them.

    Args:
        store: where they are.
        slice_records: how many records are walked between two turns of the scheduler.
        now: the time of the start (milliseconds since 1970).
    """

    def __init__(self, store: Store, slice_records: int = SLICE, now: int = 0) -> None:
        self.store = store
        self.slice_records = slice_records
        self.corruption = Corruption()
        #: By partition and kind.
        self._digests: dict[int, dict[DigestKind, bytes]] = {}
        self._work = 0  # since the last turn of the scheduler, in records walked
        self._changes = array("Q", bytes(8 * PARTITIONS))
        self._changed_at = array("Q", bytes(8 * PARTITIONS))
        self._pushed_since = self._pushed_at = 0
        self._compared_at: dict[str, array[int]] = {}
        self.horizons: array[int] = array("Q")
        kept = store.marked(HORIZONS_MARK)
        self.horizons.frombytes(kept or bytes(8 * PARTITIONS))
        self._promises: dict[int, tuple[Stamp, int]] = {}
        #: Partitions and peers whose replica was found to differ, with another horizon: the later
        #: one of the two.
        self.unreconciled: dict[tuple[int, str], Stamp] = {}
        #: Shorter where horizons are sought often: between two promises there must be room to heal.
        self.promise_ms = PROMISE_MS
        self._expirable: dict[int, bool] = {}
        self._counts = array("L", bytes(array("L").itemsize * PARTITIONS))
        #: Whether it is known that the store is as new as the other peers remember it.
        self.freshness_confirmed = False
        #: The highest horizon that this peer has had.
        self.newest_horizon: Stamp = max(self.horizons)
        mark = store.marked(FLOOR_MARK)
        #: The highest floor that was promised, as it is on disk; None: no promise was ever kept.
        self.kept_floor: Stamp | None = None if mark is None else int.from_bytes(mark, "big")
        #: The lives of this store, and what was seen of the stores of others.
        self.lineage = Lineage(store, now)
        self.memory = StoreMemory(store)
        #: By member, the store that it has according to the topology.
        self.store_ids: dict[str, str] = {}
        #: Writes of clients up to this stamp are refused; the client stamps them anew.
        self.floor: Stamp = max(self.kept_floor or 0, self.newest_horizon)
        #: The epoch of the last order to lower floors and horizons that this peer has carried out.
        self.lowered_in = int.from_bytes(store.marked(LOWERED_MARK) or b"", "big")
        self._grace = self._grace_until = 0
        #: Returns the highest stamp that may be promised; ``NotReady`` while that is not known.
        self.latest_promise: Callable[[], Stamp] = lambda: MAX_STAMP

    # -- changes

    def changed(self, partitions: Iterable[int], now: int) -> None:
        """Take note that records of partitions changed."""
        for partition in partitions:
            self._digests.pop(partition, None)
            self._changes[partition] += 1
            self._changed_at[partition] = now

    def pushed(self, now: int) -> None:
        """Take note that another peer brings what was missed here."""
        if not 0 <= now - self._pushed_at < BUSY_MS:
            self._pushed_since = now
        self._pushed_at = now

    def is_busy(self, partition: int, now: int) -> bool:
        """Whether a partition changed only just now, or may be about to.

        While a peer is brought what it missed, to compare would find the rest of that, and fetch
        it a second time. That lasts for a while only: some write may always go missing.
        """
        is_caught_up_with = (
            0 <= now - self._pushed_at < BUSY_MS and 0 <= now - self._pushed_since < CATCHING_UP_MS
        )
        # A time that lies ahead was taken before the clock was set back.
        return is_caught_up_with or 0 <= now - self._changed_at[partition] < BUSY_MS

    def compared_at(self, other: str, now: int) -> array[int]:
        """Return, by partition, when (milliseconds) it was last compared with another replica.

        Those that were not compared yet count as compared when this is first asked.
        """
        if other not in self._compared_at:
            self._compared_at[other] = array("Q", [now]) * PARTITIONS
        return self._compared_at[other]

    def forget_comparisons(self, other: str) -> None:
        """Forget when partitions were compared with another peer."""
        self._compared_at.pop(other, None)

    def changes(self, partition: int) -> int:
        """Return a number that grows with each change of a partition."""
        return self._changes[partition]

    def scrub(self, partition: int) -> Walking:
        """Check every record of a partition, and work its digest out anew."""
        self._digests.pop(partition, None)
        return (yield from self.digest(partition))

    def has_expirable(self, partition: int) -> bool:
        """Whether a partition held tombstones, or records that expire, when last walked."""
        return self._expirable.get(partition, False)

    def count(self, partition: int) -> int:
        """Return how many records a partition held when last walked."""
        return self._counts[partition]

    # -- horizons

    def arrived_late(self, late: int, now: int) -> None:
        """Take note that a write, or a promise to refuse it, was that much too late (milliseconds).

        Floors keep that distance for a while: else writes that take long on their way would be
        stamped again and again, and refused each time.
        """
        self._grace = max(self.grace(now), min(late, _LONGEST_GRACE_MS))
        self._grace_until = now + _GRACE_LASTS_MS

    def grace(self, now: int) -> int:
        """Return how far (milliseconds) floors have to stay behind the time, as writes arrive."""
        return self._grace if now < self._grace_until <= now + _GRACE_LASTS_MS else 0

    def promise(self, partition: int, stamp: Stamp, now: int) -> None:
        """Refuse repairs up to ``stamp`` for some seconds."""
        self._promises[partition] = (stamp, now + self.promise_ms)

    def has_promised(self, partition: int, stamp: Stamp, now: int) -> bool:
        """Whether a promise for exactly that stamp still holds."""
        return self.promises(now).get(partition) == stamp

    def release(self, partitions: Iterable[int], stamp: Stamp) -> list[int]:
        """Take back promises for exactly that stamp; returns the partitions that had one."""
        released = [
            partition
            for partition in partitions
            if self._promises.get(partition, (0, 0))[0] == stamp
        ]
        for partition in released:
            del self._promises[partition]
        return released

    def advance(self, partitions: Iterable[int], stamp: Stamp) -> tuple[bytes, bytes]:
        """Set horizons; returns the mark that keeps them."""
        for partition in partitions:
            self.horizons[partition] = max(stamp, self.horizons[partition])
            self.newest_horizon = max(stamp, self.newest_horizon)
            self._promises.pop(partition, None)
            self._digests.pop(partition, None)
        return HORIZONS_MARK, self.horizons.tobytes()

    def retreat(self, before: Mapping[int, Stamp], stamp: Stamp) -> None:
        """Go back to earlier horizons, by partition, where ``stamp`` could not be stored."""
        for partition, earlier in before.items():
            if self.horizons[partition] == stamp:
                self.horizons[partition] = earlier
                self._digests.pop(partition, None)
        self.newest_horizon = max(self.horizons)

    def adopt(self, horizons: Mapping[int, Stamp]) -> tuple[bytes, bytes]:
        """Take over horizons, by partition, with the truth up to them; returns the mark."""
        for partition, stamp in horizons.items():
            self.advance([partition], stamp)
            self.floor = max(self.floor, stamp)
        return HORIZONS_MARK, self.horizons.tobytes()

    def reset(self, partitions: Iterable[int]) -> tuple[bytes, bytes]:
        """Forget horizons (a partition that is gained anew begins without)."""
        for partition in partitions:
            self.horizons[partition] = 0
            self._digests.pop(partition, None)
        self.newest_horizon = max(self.horizons)
        return HORIZONS_MARK, self.horizons.tobytes()

    def lower(self, ceiling: Stamp, epoch: int) -> Generator[Effect, None, None]:
        """Lower (as a task) what was promised or agreed on above a stamp to it, durably.

        Args:
            ceiling: the stamp.
            epoch: of the order: each is carried out once.
        """
        self.floor = min(self.floor, ceiling)
        if self.kept_floor is not None:
            self.kept_floor = min(self.kept_floor, ceiling)
        for partition, horizon in enumerate(self.horizons):
            if horizon > ceiling:
                self.horizons[partition] = ceiling
                self._digests.pop(partition, None)
        self.newest_horizon = max(self.horizons)
        self._promises = {one: kept for one, kept in self._promises.items() if kept[0] <= ceiling}
        marks = [(HORIZONS_MARK, self.horizons.tobytes()), (LOWERED_MARK, epoch.to_bytes(8, "big"))]
        if self.kept_floor is not None:
            marks.append((FLOOR_MARK, self.kept_floor.to_bytes(8, "big")))
        yield Merge(marks=marks)
        self.lowered_in = epoch

    def promises(self, now: int) -> dict[int, Stamp]:
        """Return, by partition, the stamp up to which repairs are refused at the moment.

        One that has expired is gone for good, and none lasts longer because the clock is set back.
        """
        latest = now + self.promise_ms
        self._promises = {
            one: (stamp, min(until, latest))
            for one, (stamp, until) in self._promises.items()
            if until > now
        }
        return {one: stamp for one, (stamp, _) in self._promises.items()}

    @property
    def present(self) -> Stamp:
        """The newest stamp that is on disk: of a record, a horizon, or a promised floor."""
        return max(self.store.high_water, self.newest_horizon, self.kept_floor or 0)

    def keep_floor(self) -> Generator[Effect, None, None]:
        """Write (as a task) the floor to disk, unless it is there."""
        stamp = self.floor
        if self.kept_floor is None or stamp > self.kept_floor:
            yield Merge(marks=[(FLOOR_MARK, stamp.to_bytes(8, "big"))])
            self.kept_floor = max(stamp, self.kept_floor or 0)

    # -- walks

    def walk(self, partition: int, after: bytes = b"", limit: int = 0) -> Entries:
        """Return the next (storage key, record) pairs; fewer than a slice at the partition's end.

        A slice has ``limit`` records, or as many as always.
        """
        begin, end = bounds(partition)
        limit = limit or self.slice_records
        with self.store.snapshot() as snapshot:
            return list(islice(snapshot.walk(after + b"\0" if after else begin, end), limit))

    def walk_all(self, partitions: Sequence[int], after: bytes, limit: int = 0) -> Entries:
        """Like ``walk``, over several partitions in ascending order."""
        limit = limit or self.slice_records
        entries: Entries = []
        first = partition_in(after) if after else 0
        with self.store.snapshot() as snapshot:
            for partition in partitions[bisect_left(partitions, first) :]:
                begin, end = bounds(partition)
                begin = max(begin, after + b"\0") if after else begin
                entries += islice(snapshot.walk(begin, end), limit - len(entries))
                if len(entries) >= limit:
                    break
        return entries

    def empty_among(self, partitions: Sequence[int]) -> Generator[Effect, None, list[int]]:
        """Return (as a task) those of some partitions (ascending) of which nothing is here."""
        empty: list[int] = []
        for begin in range(0, len(partitions), _LOOKED_INTO):
            empty += self._empty_among(partitions[begin : begin + _LOOKED_INTO])
            yield Pause()
        return empty

    def _empty_among(self, partitions: Iterable[int]) -> Iterator[int]:
        held = 0  # the first partition that is not empty, as far as was looked
        _, end = bounds(PARTITIONS - 1)
        with self.store.snapshot() as snapshot:
            for partition in partitions:
                if partition > held or not partition:
                    first = next(snapshot.walk(bounds(partition)[0], end), None)
                    held = PARTITIONS if first is None else partition_in(first[0])
                if partition < held:
                    yield partition

    def slices(self, partition: int) -> Iterator[Entries]:
        """Yield a partition slice by slice, each from a snapshot of its own."""
        after = b""
        while True:
            entries = self.walk(partition, after)
            yield entries
            if len(entries) < self.slice_records:
                return
            after = entries[-1][0]

    def digest(
        self,
        partition: int,
        until: Stamp | None = None,
        kind: DigestKind = DigestKind.CONTENT,
    ) -> Walking:
        """Return (as a task) the digest of a partition, of its records up to ``until`` if given."""
        known = self._digests.get(partition, {}).get(kind) if until is None else None
        if known is not None:
            return known
        # Up to a horizon that is being agreed on, only what is alive at it has to be the same:
        # some replicas may have dropped the dead already, and others not yet.
        horizon = self.horizons[partition]
        total = Sum(horizon if until is None else until, until, kind)
        before, corrupt = self._changes[partition], self.corruption.known(partition)
        for number, entries in enumerate(self.slices(partition), 1):
            total.add(entries)
            if len(entries) == self.slice_records:
                # Requests come first: most of the time is theirs.
                yield Pause(int(number % _RESTS_AFTER == 0))
        self.corruption.checked(partition, corrupt, total.corrupt)
        is_whole = before == self._changes[partition] and horizon == self.horizons[partition]
        if until is None and is_whole:
            self._digests.setdefault(partition, {})[kind] = total.digest()
            self._expirable[partition] = total.expirable
            self._counts[partition] = total.count
        self._work += _OPENING + total.count
        if self._work >= self.slice_records:
            self._work = 0
            yield Pause()
        return total.digest()

    def buckets(self, partition: int, kind: DigestKind = DigestKind.CONTENT) -> Walking:
        """Return (as a task) the digests of the buckets of a partition, one behind the other."""
        sums = [Sum(self.horizons[partition], kind=kind) for _ in range(BUCKETS)]
        for entries in self.slices(partition):
            for entry in entries:
                sums[bucket_of(entry[0])].add([entry])
            yield Pause()
        for one in sums:
            self.corruption.report(one.corrupt)
        return b"".join([one.digest() for one in sums])
