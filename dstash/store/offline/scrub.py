"""Scrub: reads and checks every record of a store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

from dstash.limits import PARTITIONS
from dstash.store.record import is_sound, open_record, partition_of, split_storage_key

#: Records checked per snapshot, so that no snapshot is held for long.
_SLICE_RECORDS: Final = 5000
_END: Final = PARTITIONS.to_bytes(2, "big")


class Walkable(Protocol):
    """A view whose records can be read in order."""

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (storage key, record) with ``begin <= storage key < end``, in order."""
        ...


class Readable(Protocol):
    """A store that can be read."""

    def snapshot(self) -> AbstractContextManager[Walkable]:
        """Return a consistent view."""
        ...


@dataclass
class Scrubbed:
    """The result of a scrub. ``corrupt`` has a description of each corrupt record."""

    records: int = 0
    tombstones: int = 0
    bytes: int = 0
    indexes: Counter[str] = field(default_factory=Counter)
    corrupt: list[str] = field(default_factory=list)


def scrub(store: Readable) -> Iterator[Scrubbed]:
    """Check every record; yields the same, growing result after each slice."""
    found = Scrubbed()
    after = b"\0\0"
    while True:
        with store.snapshot() as snapshot:
            entries = list(islice(snapshot.walk(after, _END), _SLICE_RECORDS))
        for storage_key, record in entries:
            _check(found, storage_key, record)
        yield found
        if len(entries) < _SLICE_RECORDS:
            return
        after = entries[-1][0] + b"\0"


def _check(found: Scrubbed, storage_key: bytes, record: bytes) -> None:
    found.records += 1
    found.bytes += len(storage_key) + len(record)
    if len(storage_key) < 4 or not is_sound(storage_key, record):
        found.corrupt.append(f"{storage_key!r}: the record fails its checksum")
        return
    partition, index, key = split_storage_key(storage_key)
    if partition != partition_of(key):
        found.corrupt.append(f"{storage_key!r}: the record is in the wrong partition")
        return
    if open_record(record).is_tombstone:
        found.tombstones += 1
    else:
        found.indexes[index.decode(errors="replace")] += 1
