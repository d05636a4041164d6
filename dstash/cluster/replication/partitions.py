"""The partitions of one store: their digests, horizons, promises and times of change."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from typing import Final

from dstash.cluster.replication.corruption import Corruption
from dstash.cluster.replication.digests.digests import Digests, Entries, slices
from dstash.cluster.replication.digests.recent_replies import RecentReplies
from dstash.cluster.replication.drops import Drops
from dstash.cluster.replication.lineage import Lineage, StoreMemory
from dstash.cluster.replication.tasks import Effect, Merge, Pause
from dstash.cluster.topology.drops import Drop
from dstash.limits import PARTITIONS
from dstash.store.interface import Snapshot, Store
from dstash.store.record import partition_in, partition_range
from dstash.store.register.ballot import registers_between
from dstash.version import MAX_STAMP, Stamp

#: Default number of records walked in one scheduler step: checking them is faster than a look-up.
SLICE: Final = 50
#: Partitions tested for records in one scheduler step.
_MAX_PARTITIONS_PER_STEP: Final = 64

#: A write is noted by its keys if the store has this many times as many records. Else it is noted
#: by its partitions, because most of their segments would have to be read again anyway.
_RECORDS_PER_KEY: Final = 200

#: A partition that changed within this time is busy: its replicas may differ for a moment.
BUSY_MS: Final = 2000

_PREFIX: Final = itemgetter(slice(2))

#: The longest time for which incoming missed writes keep a peer's partitions busy.
CATCHING_UP_MS: Final = 40_000

#: How far floors lag behind the time, at most, because writes arrive late; and how long they do
#: so after the last late write.
_MAX_GRACE_MS: Final = 30_000
_GRACE_DURATION_MS: Final = 60_000

#: The longest time for which repairs of old records are refused during agreement on a horizon.
PROMISE_MS: Final = 10_000

HORIZONS_MARK: Final = b"horizons"
#: By partition, the highest horizon that a replica had when floors were lowered; as horizons.
REGISTER_FLOORS_MARK: Final = b"register floors"
#: The epoch in which such floors were streamed last, 8 bytes.
FLOORS_STREAMED_MARK: Final = b"floors streamed"
#: The epoch of the last executed request to lower floors and horizons, 8 bytes.
LOWERED_MARK: Final = b"lowered"
#: The highest stamp up to which this peer has promised to refuse writes of clients, 8 bytes.
FLOOR_MARK: Final = b"floor"


class LocalPartitions:
    """The partitions of one store, with their state in memory.

    Args:
        store: the store.
        slice_records: how many records are walked in one scheduler step.
        now: the start of the process (milliseconds since 1970).
    """

    def __init__(self, store: Store, slice_records: int = SLICE, now: int = 0) -> None:
        self.store = store
        self.slice_records = slice_records
        self.corruption = Corruption()
        self.drops = Drops()
        self.digests = Digests(
            store, self.drops, self.corruption, lambda number: self.horizons[number], slice_records
        )
        self._changed_at = array("Q", bytes(8 * PARTITIONS))
        #: The latest of these times.
        self._last_change = 0
        self._pushed_since = self._pushed_at = 0
        self._compared_at: dict[str, array[int]] = {}
        self.recent_replies = RecentReplies(self.unchanged_since)
        kept = store.marked(HORIZONS_MARK)
        #: By partition. Never changed in place: a commit on another thread may use it.
        self.horizons: array[int] = array("Q", kept or bytes(8 * PARTITIONS))
        kept = store.marked(REGISTER_FLOORS_MARK)
        #: By partition, a stamp that rounds of registers must exceed (T7): the highest horizon that
        #: any replica had before it was lowered. Empty if none ever was. Never changed in place.
        self.register_floors: array[int] = array("Q", kept or b"")
        #: The epoch in which some of them were streamed last.
        self.floors_streamed_in = int.from_bytes(store.marked(FLOORS_STREAMED_MARK) or b"", "big")
        self._promises: dict[int, tuple[Stamp, int]] = {}
        #: By (partition, peer) whose replica differs and has another horizon: the later of the two
        #: horizons.
        self.unreconciled: dict[tuple[int, str], Stamp] = {}
        #: Shorter where tombstone GC runs often, so that repairs find time between two promises.
        self.promise_ms = PROMISE_MS
        #: Whether the store is known to be as new as the other peers have seen it.
        self.freshness_confirmed = False
        #: The highest horizon of any partition.
        self.newest_horizon: Stamp = max(self.horizons)
        mark = store.marked(FLOOR_MARK)
        #: The highest promised floor on disk; None if none was ever stored.
        self.kept_floor: Stamp | None = None if mark is None else int.from_bytes(mark, "big")
        #: The lives of this store, and the lives seen of the stores of other peers.
        self.lineage = Lineage(store, now)
        self.memory = StoreMemory(store)
        #: By member, its store id in the topology.
        self.store_ids: dict[str, str] = {}
        #: Writes of clients up to this stamp are refused; the client stamps them again.
        self.floor: Stamp = max(self.kept_floor or 0, self.newest_horizon)
        #: The epoch of the last executed request to lower floors and horizons.
        self.lowered_in = int.from_bytes(store.marked(LOWERED_MARK) or b"", "big")
        self._grace = self._grace_until = 0
        #: The epoch of the last request to lower floors and horizons.
        self.lowering_epoch = 0
        #: Returns the highest stamp that may be promised; raises ``NotReady`` while it is unknown.
        self.latest_promise: Callable[[], Stamp] = lambda: MAX_STAMP

    # -- changes

    def changed(self, partitions: Collection[int], now: int) -> None:
        """Record that any records of partitions may have changed."""
        self._last_change = max(now, self._last_change)
        self.digests.changed(partitions)
        changed_at = self._changed_at
        for partition in partitions:
            changed_at[partition] = now

    def changed_keys(self, storage_keys: Sequence[bytes], now: int) -> None:
        """Record that records may have changed."""
        if len(storage_keys) > self.digests.records // _RECORDS_PER_KEY + 1:
            self.changed(list(map(partition_in, set(map(_PREFIX, storage_keys)))), now)
            return
        self._last_change = max(now, self._last_change)
        for storage_key in storage_keys:
            self._changed_at[self.digests.changed_key(storage_key)] = now

    def pushed(self, now: int) -> None:
        """Record that another peer sends writes that this peer missed."""
        if not 0 <= now - self._pushed_at < BUSY_MS:
            self._pushed_since = now
        self._pushed_at = now

    def quiet_among(self, partitions: Sequence[int], now: int) -> list[int]:
        """Return the partitions that are not busy: did not just change, and will not soon.

        While a peer receives the writes that it missed, a comparison would find the remaining
        writes and fetch them a second time. This is bounded in time, because new writes may be
        missed continually.
        """
        if self._is_catching_up(now):
            return []
        if now - self._last_change >= BUSY_MS:
            return list(partitions)
        changed_at = self._changed_at
        # A time in the future was taken before the clock was set back.
        return [number for number in partitions if not 0 <= now - changed_at[number] < BUSY_MS]

    def _is_catching_up(self, now: int) -> bool:
        return (
            0 <= now - self._pushed_at < BUSY_MS and 0 <= now - self._pushed_since < CATCHING_UP_MS
        )

    def unchanged_since(self, now: int) -> int | None:
        """Return a number that is the same as long as all known digests and horizons are.

        None if a comparison depends on more than these.
        """
        depends = self._is_catching_up(now) or self.corruption.is_any or self.drops.unswept
        return None if depends else self.digests.generation

    def compared_at(self, peer: str, now: int) -> array[int]:
        """Return, by partition, when (milliseconds) it was last compared with a peer's replica.

        A partition that was never compared counts as compared at the first call.
        """
        if peer not in self._compared_at:
            self._compared_at[peer] = array("Q", [now]) * PARTITIONS
        return self._compared_at[peer]

    def forget_comparisons(self, peer: str) -> None:
        """Discard the times of comparisons with a peer."""
        self._compared_at.pop(peer, None)

    def install_drops(self, drops: tuple[Drop, ...]) -> None:
        """Take the drops of another topology."""
        if self.drops.install(drops):
            self.digests.clear()

    # -- horizons

    def arrived_late(self, late: int, now: int) -> None:
        """Record that a write, or a floor, arrived ``late`` milliseconds too late.

        Floors keep that distance for a while. Otherwise a client with slow writes would stamp them
        again and again, and see them refused each time.
        """
        self._grace = max(self.grace(now), min(late, _MAX_GRACE_MS))
        self._grace_until = now + _GRACE_DURATION_MS

    def grace(self, now: int) -> int:
        """Return how far (milliseconds) floors must lag behind the time, given late writes."""
        return self._grace if now < self._grace_until <= now + _GRACE_DURATION_MS else 0

    def promise(self, partition: int, stamp: Stamp, now: int) -> None:
        """Refuse repairs stamped up to ``stamp`` for ``promise_ms``."""
        self._promises[partition] = (stamp, now + self.promise_ms)

    def has_promised(self, partition: int, stamp: Stamp, now: int) -> bool:
        """Whether a promise for exactly this stamp still holds."""
        return self.promises(now).get(partition) == stamp

    def release(self, partitions: Iterable[int], stamp: Stamp) -> list[int]:
        """Withdraw the promises for exactly this stamp; return their partitions."""
        released = [
            partition
            for partition in partitions
            if self._promises.get(partition, (0, 0))[0] == stamp
        ]
        for partition in released:
            del self._promises[partition]
        return released

    def advance(self, partitions: Iterable[int], stamp: Stamp) -> tuple[bytes, bytes]:
        """Advance horizons; returns the mark to store."""
        return self._advance(dict.fromkeys(partitions, stamp))

    def _advance(self, stamps: Mapping[int, Stamp]) -> tuple[bytes, bytes]:
        """Advance horizons to stamps, by partition; returns the mark to store."""
        horizons = self.horizons[:]
        for partition, stamp in stamps.items():
            horizons[partition] = max(stamp, horizons[partition])
            self.newest_horizon = max(stamp, self.newest_horizon)
            self._promises.pop(partition, None)
            self.digests.horizon_changed(partition)
        self.horizons = horizons
        return HORIZONS_MARK, horizons.tobytes()

    def retreat(self, before: Mapping[int, Stamp], stamp: Stamp) -> None:
        """Restore the earlier horizons, by partition, where ``stamp`` could not be stored."""
        horizons = self.horizons[:]
        for partition, earlier in before.items():
            if horizons[partition] == stamp:
                horizons[partition] = earlier
                self.digests.horizon_changed(partition)
        self.horizons, self.newest_horizon = horizons, max(horizons)

    def adopt(self, horizons: Mapping[int, Stamp]) -> tuple[bytes, bytes]:
        """Adopt the horizons of a source that streamed partitions; returns the mark to store."""
        self.floor = max(self.floor, *horizons.values()) if horizons else self.floor
        return self._advance(horizons)

    def reset(self, partitions: Iterable[int]) -> tuple[bytes, bytes]:
        """Clear horizons, because a partition that is gained again has none; returns the mark."""
        horizons = self.horizons[:]
        for partition in partitions:
            horizons[partition] = 0
            self.digests.horizon_changed(partition)
        self.horizons, self.newest_horizon = horizons, max(horizons)
        return HORIZONS_MARK, horizons.tobytes()

    def reaped(self, partition: int) -> Stamp:
        """Return the stamp up to which tombstones of registers may have been dropped."""
        floors = self.register_floors
        return max(self.horizons[partition], floors[partition] if floors else 0)

    def raise_register_floors(self, floors: Mapping[int, Stamp]) -> list[tuple[bytes, bytes]]:
        """Raise the floors of registers, by partition; returns the marks to store."""
        floors = {partition: stamp for partition, stamp in floors.items() if stamp}
        if not floors:
            return []
        raised = array("Q", self.register_floors or bytes(8 * PARTITIONS))
        for partition, stamp in floors.items():
            raised[partition] = max(raised[partition], stamp)
        self.register_floors = raised
        return [(REGISTER_FLOORS_MARK, raised.tobytes())]

    def stream_register_floors(
        self, floors: Mapping[int, Stamp], epoch: int
    ) -> list[tuple[bytes, bytes]]:
        """Take the floors of registers of a source, in an epoch; returns the marks to store."""
        marks = self.raise_register_floors(floors)
        if marks:
            self.floors_streamed_in = epoch
            marks.append((FLOORS_STREAMED_MARK, epoch.to_bytes(8, "big")))
        return marks

    @property
    def floors_are_horizons(self) -> bool:
        """Whether floors of registers count as horizons, until floors are lowered again (D3).

        They may be horizons of sources that were not lowered, or the topology may have been
        restored without the last request, so that homes do not know it.
        """
        is_settled = self.lowering_epoch == self.lowered_in
        return not is_settled or self.floors_streamed_in > self.lowered_in

    @property
    def is_lowering(self) -> bool:
        """Whether floors and horizons are to be lowered, and are not on disk yet."""
        return self.lowering_epoch > self.lowered_in

    def withdraw(self) -> None:
        """Withdraw all promises: no horizon that they allowed can be set any more."""
        self._promises.clear()

    def lower(
        self, ceiling: Stamp, epoch: int, floors: Mapping[int, Stamp] | None = None
    ) -> Generator[Effect, None, None]:
        """Lower (as a task) the floor, horizons and promises above a stamp to it, durably.

        Args:
            ceiling: the stamp.
            epoch: the epoch of the request; each request is executed once.
            floors: by partition, the highest horizon of any replica, if registers are served.
        """
        marks = []
        if floors is not None:
            own = {number: self.horizons[number] for number in range(PARTITIONS)}
            highest = {number: max(own[number], floors.get(number, 0)) for number in own}
            above = {number: stamp for number, stamp in highest.items() if stamp > ceiling}
            marks = self.raise_register_floors(above)
        self.floor = min(self.floor, ceiling)
        if self.kept_floor is not None:
            self.kept_floor = min(self.kept_floor, ceiling)
        lowered = self.horizons[:]
        for partition, horizon in enumerate(lowered):
            if horizon > ceiling:
                lowered[partition] = ceiling
                self.digests.horizon_changed(partition)
        self.horizons, self.newest_horizon = lowered, max(lowered)
        self._promises = {
            partition: promise
            for partition, promise in self._promises.items()
            if promise[0] <= ceiling
        }
        marks += [
            (HORIZONS_MARK, self.horizons.tobytes()),
            (LOWERED_MARK, epoch.to_bytes(8, "big")),
        ]
        if self.kept_floor is not None:
            marks.append((FLOOR_MARK, self.kept_floor.to_bytes(8, "big")))
        yield Merge(marks=marks)
        self.lowered_in = epoch

    def end_lowering(
        self, epoch: int, floors: Mapping[int, Stamp]
    ) -> Generator[Effect, None, None]:
        """Raise (as a task) the floors of registers, durably, after ``lower`` without them."""
        marks = self.raise_register_floors(floors)
        yield Merge(marks=[*marks, (LOWERED_MARK, epoch.to_bytes(8, "big"))])
        self.lowered_in = epoch

    def promises(self, now: int) -> dict[int, Stamp]:
        """Return, by partition, the stamp up to which repairs are refused now.

        An expired promise is dropped permanently. A promise does not last longer when the clock is
        set back.
        """
        if not self._promises:
            return {}
        latest = now + self.promise_ms
        self._promises = {
            partition: (stamp, min(until, latest))
            for partition, (stamp, until) in self._promises.items()
            if until > now
        }
        return {partition: stamp for partition, (stamp, _) in self._promises.items()}

    @property
    def present(self) -> Stamp:
        """The newest stamp on disk: of a record, a horizon, a promised floor, or a drop."""
        newest = max(self.store.high_water, self.newest_horizon, self.kept_floor or 0)
        return max(newest, self.drops.floors.newest)

    def keep_floor(self) -> Generator[Effect, None, None]:
        """Store (as a task) the floor, unless it is on disk already."""
        stamp = self.floor
        if self.kept_floor is None or stamp > self.kept_floor:
            yield Merge(marks=[(FLOOR_MARK, stamp.to_bytes(8, "big"))])
            if stamp <= self.floor:  # else it was lowered meanwhile, on disk too
                self.kept_floor = max(stamp, self.kept_floor or 0)

    # -- walks

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Return a consistent view of the records, without those that were dropped."""
        with self.store.snapshot() as snapshot:
            yield self.drops.seen_through(snapshot)

    def walk(self, partition: int, after: bytes = b"", limit: int = 0) -> Entries:
        """Return the next (storage key, record) pairs; fewer than a slice at the partition's end.

        A slice has ``limit`` records; 0 means ``slice_records``.
        """
        begin, end = partition_range(partition)
        limit = limit or self.slice_records
        with self.store.snapshot() as snapshot:
            return list(islice(snapshot.walk(after + b"\0" if after else begin, end), limit))

    def walk_all(self, partitions: Sequence[int], after: bytes, limit: int = 0) -> Entries:
        """Like ``walk``, over several partitions (ascending)."""
        limit = limit or self.slice_records
        entries: Entries = []
        first = partition_in(after) if after else 0
        with self.store.snapshot() as snapshot:
            for partition in partitions[bisect_left(partitions, first) :]:
                begin, end = partition_range(partition)
                begin = max(begin, after + b"\0") if after else begin
                entries += islice(snapshot.walk(begin, end), limit - len(entries))
                if len(entries) >= limit:
                    break
        return entries

    def walk_registers(self, partitions: Sequence[int], after: bytes) -> Entries:
        """Like ``walk_all``, in the indexes that have registers."""
        entries: Entries = []
        first = partition_in(after) if after else 0
        with self.store.snapshot() as snapshot:
            for partition in partitions[bisect_left(partitions, first) :]:
                begin, end = partition_range(partition)
                begin = max(begin, after + b"\0") if after else begin
                found = registers_between(snapshot.walk, begin, end)
                entries += islice(found, self.slice_records - len(entries))
                if len(entries) >= self.slice_records:
                    break
        return entries

    def empty_among(self, partitions: Sequence[int]) -> Generator[Effect, None, list[int]]:
        """Return (as a task) those of the partitions (ascending) that have no records here."""
        empty: list[int] = []
        for begin in range(0, len(partitions), _MAX_PARTITIONS_PER_STEP):
            empty += self._empty_among(partitions[begin : begin + _MAX_PARTITIONS_PER_STEP])
            yield Pause()
        return empty

    def _empty_among(self, partitions: Iterable[int]) -> Iterator[int]:
        held = 0  # the first partition with records, as far as the walk went
        _, end = partition_range(PARTITIONS - 1)
        with self.store.snapshot() as snapshot:
            for partition in partitions:
                if partition > held or not partition:
                    first = next(snapshot.walk(partition_range(partition)[0], end), None)
                    held = PARTITIONS if first is None else partition_in(first[0])
                if partition < held:
                    yield partition

    def slices(self, partition: int) -> Iterator[Entries]:
        """Yield a partition in slices, each from its own snapshot."""
        return self.slices_between(*partition_range(partition))

    def slices_between(self, begin: bytes, end: bytes) -> Iterator[Entries]:
        """Yield a range of storage keys in slices, each from its own snapshot."""
        return slices(self.store, begin, end, self.slice_records)
