"""Puts of one key, accepted and committed in few steps; see ``reads.py``.

What the dispatch or a general commit might refuse or change is left to them. If nothing else waits
for the disk, such a put is a commit of its own, which begins at once. Otherwise it waits with the
other writes, with the record that was made on its arrival; what depends on the time of the commit
is checked there again.
"""

from __future__ import annotations

from typing import Final

from dstash.cluster.replication.cluster_clock import ClusterClock
from dstash.cluster.replication.partitions import LocalPartitions
from dstash.errors import DStashError, ProtocolError
from dstash.limits import MAX_KEY_BYTES, MAX_TTL_SECONDS
from dstash.peer.admission.backlog import Backlog
from dstash.peer.admission.requests import Ticket
from dstash.peer.admission.write_floor import WriteFloor
from dstash.peer.admission.writes import WaitingWrite
from dstash.peer.short.checks import ShortChecks
from dstash.peer.telemetry.meters import CommitStats, Meters
from dstash.store.interface import Store
from dstash.store.record import head
from dstash.store.sealing import seal
from dstash.version import VERSION_BYTES, Version, newest_stamp, stamp_milliseconds, write_stamp
from dstash.wire import codec
from dstash.wire.messages import Put, Stored
from dstash.wire.shapes import Frame

#: The fields of the header of a ``Put`` that replaces no version, without a trace.
_HEADER_FIELDS: Final = 8
_COUNTED: Final = (Put.__name__, "", "Accepted")
_ONE_KEY: Final = (1,)
_STORED: Final = ((Put.__name__, Stored.__name__),)
_MAX_TTL_MS: Final = MAX_TTL_SECONDS * 1000


class ShortPut:
    """A commit of one put whose record is stamped after all others; see ``Commit``."""

    __slots__ = ("entry", "fatal", "is_stored", "version", "write")

    def __init__(self, write: WaitingWrite, entry: tuple[bytes, bytes], version: Version) -> None:
        self.write = write
        self.entry = entry
        self.version = version
        self.is_stored = False
        #: Set when the disk failed permanently: the peer must stop.
        self.fatal: DStashError | None = None

    def run(self, store: Store) -> None:
        """Store the record, unless something is in its way; call it on any thread."""
        storage_key, record = self.entry
        try:
            self.is_stored = store.put_newest(storage_key, record, self.version)
        except DStashError:
            self.is_stored = False  # a general commit finds it again, and deals with it

    def is_light(self, most: int) -> bool:
        """Whether it has at most that many bytes."""
        return self.write.weight <= most

    def note(self, took: float, sync: float) -> None:
        """Note nothing: it is not part of a trace."""

    def stats(self, took: float, sync: float) -> CommitStats:
        """Return what the meters count; see ``Commit``."""
        if not self.is_stored:
            return CommitStats(took, sync, 0, 0, (), ())
        return CommitStats(took, sync, 1, self.write.weight, _ONE_KEY, _STORED)


class ShortWrites:
    """Accepts the puts of one peer that need no dispatch.

    Args:
        local_partitions: the records.
        checks: of requests for one key.
        floor: decides which writes are too old.
        clock: the cluster clock, as this peer knows it.
        backlog: the writes that wait for the disk.
        meters: count requests.
        max_clock_skew_ms: how far versions may be ahead of the clock.
        disk_reserve: bytes of disk that puts may not use.
    """

    def __init__(
        self,
        local_partitions: LocalPartitions,
        checks: ShortChecks,
        *,
        floor: WriteFloor,
        clock: ClusterClock,
        backlog: Backlog,
        meters: Meters,
        max_clock_skew_ms: int,
        disk_reserve: int,
    ) -> None:
        #: Whether other messages wait: then their writes share one commit.
        self.is_busy = False
        self._local_partitions = local_partitions
        self._checks = checks
        self._floor = floor
        self._clock = clock
        self._backlog = backlog
        self._meters = meters
        self._max_clock_skew_ms = max_clock_skew_ms
        self._disk_reserve = disk_reserve
        self._begun: ShortPut | None = None

    def accept(self, sender: bytes, parts: list[bytes], now: int) -> bool:
        """Begin a commit of a put, or queue it for the next one; False: it needs the dispatch.

        Args:
            sender: the routing id of the connection.
            parts: the frames of a message of any kind.
            now: this peer's own clock, in milliseconds since 1970.
        """
        if len(parts) != 3:
            return False
        key, payload = codec.only_blob(parts[1]), codec.only_blob(parts[2])
        if not key or not payload or len(key) > MAX_KEY_BYTES:
            return False
        try:
            header = codec.unpack_header(parts[0])
        except ProtocolError:
            return False
        if len(header) != _HEADER_FIELDS or header[1] != Put.KIND:
            return False
        protocol, _, correlation, epoch, moment, index, version, expiry = header
        checks = self._checks
        if (
            type(version) is not bytes
            or type(expiry) is not int
            or len(version) != VERSION_BYTES
            or expiry < 0
            or not checks.passes(protocol, correlation, epoch, moment)
        ):
            return False
        self._clock.advance(now)
        if moment and (moment < now or self._clock.is_from_before_step(moment)):
            return False
        space = checks.space(index)
        if space is None or index in checks.with_settings or codec.malformed_payloads([payload]):
            return False
        weight = len(parts[1]) + len(parts[2])
        if not self._backlog.has_room(weight):
            return False
        try:
            self._floor.check(index, version, now)
            [entry] = seal(space, [key], head(version, 0, expiry), [payload])
        except DStashError:
            return False
        message = Put(index, version, expiry, Frame(parts[1]), Frame(parts[2]))
        ticket = Ticket(sender, correlation, protocol)
        write = WaitingWrite(ticket, message, space, weight, entry=entry)
        if self.is_busy or self._backlog.has_work or not self._may_begin(message, now):
            self._backlog.add(write)
        else:
            self._backlog.begin(weight, now)
            self._begun = ShortPut(write, entry, version)
        self._backlog.served()
        self._meters.requests[_COUNTED] += 1
        return True

    def take(self) -> ShortPut | None:
        """Return the put whose commit has begun, once."""
        begun, self._begun = self._begun, None
        return begun

    def install(self) -> None:
        """Let a put wait whose commit has begun and does not run: a new view may refuse it."""
        begun = self.take()
        if begun is not None:
            self._backlog.put_back(begun.write)

    def ended(self, put: ShortPut, now: int) -> bool:
        """Take note that a commit has run; if it has stored nothing, let its put wait.

        Returns:
            whether a task waited for it.
        """
        if not put.is_stored:
            if put.fatal is None:
                self._backlog.put_back(put.write)
            return False
        self._local_partitions.changed_keys((put.entry[0],), now)
        return self._backlog.committed((put.write,), now)

    def _may_begin(self, message: Put, now: int) -> bool:
        """Whether no check of a commit can refuse a put now, and its record may be the newest."""
        local_partitions, version = self._local_partitions, message.version
        newest = newest_stamp(version)
        latest_ms = self._clock.present_ms() + self._max_clock_skew_ms
        return (
            write_stamp(version) > local_partitions.store.high_water
            and stamp_milliseconds(newest) <= latest_ms
            and newest > local_partitions.newest_horizon
            and message.expiry <= now + _MAX_TTL_MS
            and local_partitions.store.has_room(self._disk_reserve)
        )
