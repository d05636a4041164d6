"""The interface of a store, implemented by LMDB and by the dictionary twin for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from dstash import events
from dstash.store.register.voter import Bounds
from dstash.store.register.votes import Accepts, Prepares, Vote, VoteTransaction
from dstash.version import MAX_STAMP, Stamp, Version, highest_version

#: Not empty while a store may lack writes; see ``Store.may_lack_writes``.
LACKING_MARK: Final = b"lacking"


class Identity(NamedTuple):
    """The owner of a store. ``store_id`` is created with the store and is unique."""

    cluster: str
    peer: str
    store_id: str


class DiskState(Enum):
    """How full the disk of a store is, as text, from best to worst."""

    AMPLE = ""
    SCARCE = events.DISK_SCARCE
    FULL = events.DISK_FULL
    EXHAUSTED = events.DISK_EXHAUSTED


class Snapshot(Protocol):
    """A consistent view of the records. Short-lived: it pins pages on disk."""

    def get(self, storage_key: bytes) -> bytes | None:
        """Return a record."""
        ...

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (storage key, record) with ``begin <= storage key < end``, in order."""
        ...


class Transaction(VoteTransaction, Protocol):
    """A write transaction: either all of it is on disk, or nothing."""

    def put_all(self, entries: Sequence[tuple[bytes, bytes]]) -> object:
        """Store (storage key, record) pairs."""
        ...

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        """Store the (storage key, record) pairs whose keys do not exist; returns how many."""
        ...

    def delete(self, storage_key: bytes) -> object:
        """Remove a record."""
        ...


@dataclass(slots=True)
class Write:
    """Records to merge: for each key, the record that ``outranks`` the other record wins.

    ``entries`` are (storage key, record) pairs. ``now`` is the time of the peer's clock, by which
    records count as expired. ``drops`` are (storage key, identity) pairs: the record is removed if
    it is still the same (see ``identity_of``). ``horizons`` (by partition) rejects old records:
    where all replicas have agreed up to a stamp, no record up to that stamp is accepted any more.
    ``promises`` (by partition) rejects the same records during the agreement on a stamp. ``marks``
    are (name, content) pairs about the store itself, which commit together with the records.

    A corrupt record may have had any version up to ``upper_bound``, so only a later record replaces
    it. ``replacements`` are (storage key, record or None) pairs, known to be correct: each replaces
    the stored record if that is still corrupt.

    A stored record with a stamp above ``latest`` is a future record, and so is one with a version
    in ``replaces``. It may have replaced an acked record itself, and an older one must not win: so
    a record takes its place only if it is above the stamp that ``acked`` has for the version of the
    future record, and if ``acked`` has none, the version is contested. ``acked`` is None if the
    writer knows what all replicas hold.

    ``version`` is the version of all entries if they share one, as in the write of a client. If it
    is above every stored version, the stored records are not read. ``report_existed``: whether to
    read them anyway, to report which keys existed. ``oldest`` is a lower bound of the entries'
    stamps: if it is above the horizons, no entry is too old.

    ``is_dropped`` returns whether a (storage key, stored record) was dropped with its index:
    then it does not count as live in ``existed``. None if no record was.

    ``may_spend_reserve``: the write frees space or repairs, so it may use the reserve of the disk.

    ``votes`` is a request to vote on registers. ``bounds`` are the limits of votes, and of
    registers among the entries; None: without limits. ``resting`` lists partitions that are
    streamed, and ``earlier`` (storage key, round) pairs that other voters have promised: see
    ``take_earlier``. ``latest``, ``acked``, ``replaces`` and ``upper_bound``
    have no effect on registers: the rules are those of ``store/register/voter.py``.
    """

    entries: Sequence[tuple[bytes, bytes]]
    now: int
    newest: Stamp = 0
    drops: Sequence[tuple[bytes, bytes]] = ()
    horizons: Sequence[Stamp] | None = None
    marks: Sequence[tuple[bytes, bytes]] = ()
    replacements: Sequence[tuple[bytes, bytes | None]] = ()
    upper_bound: Stamp = MAX_STAMP
    version: Version | None = None
    report_existed: bool = False
    oldest: Stamp = 0
    promises: Mapping[int, Stamp] = field(default_factory=dict)
    may_spend_reserve: bool = False
    latest: Stamp = MAX_STAMP
    acked: Mapping[Version, Stamp] | None = None
    replaces: frozenset[Version] = frozenset()
    is_dropped: Callable[[bytes, bytes], bool] | None = None
    votes: Prepares | Accepts | None = None
    bounds: Bounds | None = None
    resting: Sequence[int] = ()
    earlier: Sequence[tuple[bytes, int]] = ()

    def bound(self) -> Version:
        """Return an upper bound of the versions of this write's records."""
        return self.version or highest_version(self.newest)


#: The values of ``Merged.existed``, besides 0.
LIVE: Final = 1
UNSURE: Final = 2


@dataclass(slots=True)
class Merged:
    """The result of one ``Write``: the positions of superseded and of rejected entries.

    ``corrupt``: the stored record is corrupt. ``past``: the entry is new here, but not above the
    horizon. ``promised``: the entry is new here, but not above a promise of this peer.
    ``preempted``: the entry is a register, and a later round of it is promised here.
    ``contested``: the stored record, whose version is given, is a future record, and it is not
    known yet which stamps a quorum has acked.

    ``votes`` has the answer for each key of the ``votes`` of the write. ``registers`` is the number
    of registers and promises that were stored.

    ``existed`` has a byte for each entry: ``LIVE`` if the key was live before. ``UNSURE`` if this
    is unknown: the stored record was corrupt, or it is live, and a later write of the same client.
    It is only valid if the write has ``report_existed``. ``replaced`` has the replacements that
    took the place of corrupt records.
    """

    superseded: list[tuple[int, Version]] = field(default_factory=list)
    contested: list[tuple[int, Version]] = field(default_factory=list)
    corrupt: list[int] = field(default_factory=list)
    past: list[int] = field(default_factory=list)
    promised: list[int] = field(default_factory=list)
    existed: bytearray = field(default_factory=bytearray)
    preempted: list[int] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)
    registers: int = 0
    replaced: list[tuple[bytes, bytes]] = field(default_factory=list)


class StoreStats(NamedTuple):
    """Sizes of a store, in records and bytes."""

    records: int
    used_bytes: int
    map_bytes: int
    free_bytes: int
    #: Pages by kind: branch, leaf and overflow pages of the tree of records, and ``other``.
    pages: Mapping[str, int] = MappingProxyType({})
    #: Bytes allocated as a reserve for deletes on a full disk.
    reserved_bytes: int = 0
    #: Bytes of ``used_bytes`` that a compaction would give back at least.
    unused_bytes: int = 0


class Store(Protocol):
    """The durable records of one peer."""

    store_id: str
    #: How long (seconds) the last commit took to sync.
    synced_in: float
    #: Whether the machine stopped before all commits were synced. Its owner sets it to False once
    #: it has the data again, and stores an empty ``LACKING_MARK``.
    may_lack_writes: bool

    @property
    def identity(self) -> Identity | None:
        """The owner of the store; None until it has joined a cluster."""
        ...

    @property
    def high_water(self) -> Stamp:
        """A stamp that grows with every commit of records or votes: how new the store is.

        It is not below any stamp that was ever committed. If it were the newest of these, a store
        that lost older records, received from other replicas, would not be recognised.
        """
        ...

    @property
    def newest(self) -> Stamp:
        """A stamp that no stored record exceeds, except registers; at most ``high_water``."""
        ...

    @property
    def commits_at_once(self) -> bool:
        """Whether a small commit usually waits for nothing: neither for a sync nor for a lock."""
        ...

    def adopt(self, identity: Identity) -> None:
        """Set the owner of the store; ``ForeignStore`` if it has another owner."""
        ...

    def mark(self, name: bytes, content: bytes) -> None:
        """Store a mark, a named piece of data about the store itself, durably."""
        ...

    def marked(self, name: bytes) -> bytes | None:
        """Return the content of a mark; None if there is none."""
        ...

    def promises_between(self, begin: bytes, end: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``most`` promises of a range of storage keys, as stored."""
        ...

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Return a consistent view for reading."""
        ...

    def get(self, storage_key: bytes) -> bytes | None:
        """Return the record of a key, None if there is none; faster than a snapshot."""
        ...

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Merge writes in one transaction; return when they are as durable as configured.

        The reserve of the disk is released only if all of them may spend it.

        Raises:
            DiskFull: nothing was stored; reads still work.
            StoreFailed: the disk failed; the store accepts no more writes.
        """
        ...

    def put_newest(self, storage_key: bytes, record: bytes, version: Version) -> bool:
        """Store one record of a client in fewer steps than ``commit``.

        Args:
            storage_key: of the record.
            record: sealed.
            version: of the record; it is stamped after every stored record.

        Returns:
            False if it may not be, and nothing was stored.

        Raises:
            DiskFull: nothing was stored; ``commit`` may spend the reserve on it.
            StoreFailed: the disk failed; the store accepts no more writes.
        """
        ...

    def has_room(self, reserve: int) -> bool:
        """Whether more than ``reserve`` bytes are free, on the disk or in the store's own file."""
        ...

    def disk_state(self) -> DiskState:
        """Return how full the disk is."""
        ...

    def check_writable(self) -> str | None:
        """Return None if the store accepts writes, else the reason why not."""
        ...

    def condemn(self, reason: str) -> None:
        """Accept no more writes, and let no process use the data again: it cannot be trusted."""
        ...

    def stats(self) -> StoreStats:
        """Return sizes."""
        ...

    def close(self) -> None:
        """Release the directory."""
        ...
