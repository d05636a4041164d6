"""What the layers above ask of a store. LMDB fulfils it; so does the dictionary twin of tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, Protocol

from dstash.version import MAX_STAMP, Stamp, Version, highest_version


class Identity(NamedTuple):
    """Who a store belongs to. ``store_id`` is made with the store and never given twice."""

    cluster: str
    peer: str
    store_id: str


class DiskState(Enum):
    """How full the disk of a store is, in words; each is worse than the one before."""

    AMPLE = ""
    SCARCE = "the disk is nearly full"
    FULL = "the disk is full; puts are refused"
    EXHAUSTED = "the disk is full to the last byte; puts and deletes are refused"


class Snapshot(Protocol):
    """A consistent view of the records. Short-lived: it pins pages on disk."""

    def get(self, storage_key: bytes) -> bytes | None:
        """Return a record."""
        ...

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (storage key, record) with ``begin <= storage key < end``, in order."""
        ...


class Transaction(Protocol):
    """A write transaction: all of it is on disk, or none of it."""

    def get(self, storage_key: bytes) -> bytes | None:
        """Return a record, as this transaction sees it."""
        ...

    def put(self, storage_key: bytes, record: bytes) -> object:
        """Store a record."""
        ...

    def put_all(self, entries: Sequence[tuple[bytes, bytes]]) -> object:
        """Store (storage key, record) pairs."""
        ...

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        """Store the (storage key, record) pairs under whose keys there is none; how many."""
        ...

    def delete(self, storage_key: bytes) -> object:
        """Remove a record."""
        ...


@dataclass(slots=True)
class Write:
    """Records to be merged: the one that ``outranks`` the other wins, key by key.

    ``entries`` are (storage key, record) pairs. ``now`` is the peer's clock, which decides what
    counts as existing. ``drops`` are (storage key, identity) pairs: such a record leaves the disk,
    if it is still the same (see ``identity_of``). ``horizons`` (by partition) guards against the
    past: where all replicas agreed on everything up to a stamp, nothing older comes in any more.
    ``promises`` (by partition) keeps the same out while they are agreeing on a stamp.
    ``marks`` are (name, content) pairs that belong to the store itself and commit together with the
    records.

    A corrupt record may have had any version up to ``upper_bound``, so only a later record replaces
    it. ``replacements`` are (storage key, record or None) pairs, known to be correct: each replaces
    the stored record if that is still corrupt.

    What is stored with a stamp above ``latest`` is from the future, and gives way whatever it is;
    so does what is stored with one of the versions that this write ``replaces``.

    ``version`` is what all entries carry, when they share one: a client's write does, and one that
    is above all that is stored needs no look at what it replaces. ``tells_existed``: whether
    somebody wants to know what was there all the same. None of the entries is stamped before
    ``oldest``: if that is above the horizons, none is of the past.

    ``may_spend_reserve``: it frees or heals, so it may use the last room on the disk.
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
    tells_existed: bool = False
    oldest: Stamp = 0
    promises: Mapping[int, Stamp] = field(default_factory=dict)
    may_spend_reserve: bool = False
    latest: Stamp = MAX_STAMP
    replaces: frozenset[Version] = frozenset()

    def bound(self) -> Version:
        """Return a version that none of this write's records is above."""
        return self.version or highest_version(self.newest)


@dataclass(slots=True)
class Merged:
    """What became of one ``Write``: by position what was superseded, and what was kept out.

    ``corrupt`` met a damaged record; ``past`` was new here, but not above the horizon; ``promised``
    was new, but not above what this peer has promised to keep as it is for the moment.

    ``existed`` has a byte for each entry: whether the key was live before, if the write
    ``tells_existed``.
    """

    superseded: list[tuple[int, Version]] = field(default_factory=list)
    corrupt: list[int] = field(default_factory=list)
    past: list[int] = field(default_factory=list)
    promised: list[int] = field(default_factory=list)
    existed: bytearray = field(default_factory=bytearray)


class StoreStats(NamedTuple):
    """Sizes of a store, in records and bytes."""

    records: int
    used_bytes: int
    map_bytes: int
    free_bytes: int
    #: Pages of the tree of records, by what they are: branch, leaf, overflow; and all the others.
    pages: Mapping[str, int] = MappingProxyType({})
    #: Bytes of the disk that are allocated for deletes when it is full.
    reserved_bytes: int = 0


class Store(Protocol):
    """Durable records of one peer."""

    store_id: str
    #: How long (seconds) it took until the disk had the last commit.
    synced_in: float

    @property
    def identity(self) -> Identity | None:
        """Who the store belongs to; None until it has joined a cluster."""
        ...

    @property
    def high_water(self) -> Stamp:
        """The newest stamp ever committed."""
        ...

    def adopt(self, identity: Identity) -> None:
        """Write down who the store belongs to; ``ForeignStore`` if it belongs to another."""
        ...

    def mark(self, name: bytes, content: bytes) -> None:
        """Keep something about the store itself under a name, durably."""
        ...

    def marked(self, name: bytes) -> bytes | None:
        """Return what is kept under a name."""
        ...

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """Return a consistent view for reading."""
        ...

    def commit(self, writes: Sequence[Write]) -> list[Merged]:
        """Merge writes in one transaction and return when they are as durable as configured.

        The reserve of the disk is given up only if all of them may spend it.

        Raises:
            DiskFull: nothing was stored, reading goes on.
            StoreFailed: the disk failed; the store is closed to writes for good.
        """
        ...

    def has_room(self, reserve: int) -> bool:
        """Whether more than ``reserve`` bytes are free, on the disk or in the store's own file."""
        ...

    def disk_state(self) -> DiskState:
        """Return how full the disk is."""
        ...

    def check_writable(self) -> str | None:
        """Return None when the store takes writes, else the reason why not."""
        ...

    def stats(self) -> StoreStats:
        """Return sizes."""
        ...

    def close(self) -> None:
        """Release the directory."""
        ...
