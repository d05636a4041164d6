"""The corrupt records of one store that await repair."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import structlog

from dstash import events
from dstash.store.record import is_misplaced, partition_in, split_storage_key

_log = structlog.get_logger("dstash.corruption")

#: Corrupt records tracked by key. Past this number only their partitions are tracked.
_MAX_TRACKED: Final = 10_000
#: Records logged one by one. On a disk that fails as a whole, the count is enough.
_MAX_LOGGED: Final = 100


class Corruption:
    """Corrupt records: those that await repair, and the numbers found and repaired.

    ``len`` counts the tracked records. ``in`` tests whether a partition has corrupt records,
    tracked or not. ``found`` and ``repaired`` only increase.
    """

    def __init__(self) -> None:
        self.found = 0
        self.repaired = 0
        #: A storage key that was found with a corrupt record, and was itself corrupt: so a record
        #: is missing under another key, and which one is not known. Empty if none was found.
        self.misplaced = b""
        self._waiting: dict[int, set[bytes]] = {}
        self._count = 0
        #: Partitions with corrupt records that are not tracked, because there are too many.
        self._overflowed: set[int] = set()

    def __len__(self) -> int:
        return self._count

    @property
    def is_any(self) -> bool:
        """Whether any partition has corrupt records, tracked or not."""
        return bool(self._waiting or self._overflowed)

    def __contains__(self, partition: int) -> bool:
        return partition in self._waiting or partition in self._overflowed

    def among(self, partitions: Iterable[int]) -> set[int]:
        """Return the partitions that have corrupt records."""
        return (self._waiting.keys() | self._overflowed).intersection(partitions)

    def report(self, storage_keys: Iterable[bytes]) -> None:
        """Record that records fail their checksum; tracked records are not counted twice."""
        for storage_key in storage_keys:
            partition = partition_in(storage_key)
            if storage_key in self._waiting.get(partition, ()):
                continue
            if is_misplaced(storage_key):
                self.misplaced = storage_key
            if self._count >= _MAX_TRACKED:
                self._overflowed.add(partition)
                continue
            self._waiting.setdefault(partition, set()).add(storage_key)
            self._count += 1
            self.found += 1
            if self.found <= _MAX_LOGGED:
                _log.warning(events.RECORD_CORRUPT, **_describe(storage_key))

    def known(self, partition: int) -> frozenset[bytes]:
        """Return the storage keys in a partition that await repair."""
        return frozenset(self._waiting.get(partition, ()))

    def checked(self, partition: int, known: frozenset[bytes], corrupt: Collection[bytes]) -> None:
        """Record the result of reading every record of a partition.

        Args:
            known: what ``known`` returned before the read.
            corrupt: the storage keys of the records that fail their checksum.
        """
        self._overflowed.discard(partition)
        self.forget(known.difference(corrupt))  # rewritten or dropped
        self.report(corrupt)

    def to_check(self) -> list[int]:
        """Return the partitions to read again for corrupt records that are not tracked.

        The list is empty while there is no room to track more.
        """
        return [] if self._count > _MAX_TRACKED // 2 else sorted(self._overflowed)

    def forget(self, storage_keys: Iterable[bytes]) -> None:
        """Record that records are sound again: repaired, or rewritten."""
        for storage_key in storage_keys:
            partition = partition_in(storage_key)
            waiting = self._waiting.get(partition, set())
            if storage_key not in waiting:
                continue
            waiting.discard(storage_key)
            self._count -= 1
            if not waiting:
                del self._waiting[partition]
            self.repaired += 1
            if self.repaired <= _MAX_LOGGED:
                _log.info(events.RECORD_REPAIRED, **_describe(storage_key))

    def by_partition(self) -> dict[int, list[bytes]]:
        """Return the storage keys that await repair, by partition."""
        return {partition: sorted(keys) for partition, keys in sorted(self._waiting.items())}


def _describe(storage_key: bytes) -> dict[str, object]:
    try:
        partition, index, key = split_storage_key(storage_key)
    except IndexError:  # the key itself is corrupt
        return {"storage_key": storage_key.hex()}
    text = key.decode(errors="backslashreplace")
    return {"partition": partition, "index": index.decode(errors="replace"), "key": text}
