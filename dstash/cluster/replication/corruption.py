"""What is known of the damaged records in one store."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import structlog

from dstash.store.record import partition_in, split_storage_key

_log = structlog.get_logger("dstash.damage")

#: Records kept in mind at once. Of the others only the partitions are known.
_KEPT: Final = 10_000
#: Records named in the log one by one; of a disk that rots as a whole the count is enough.
_NAMED: Final = 100


class Corruption:
    """Damaged records: which ones wait to be mended, and how many there were.

    ``len`` counts the records that are known, ``in`` tells whether a partition has damaged records,
    known or not. ``found`` and ``repaired`` only grow.
    """

    def __init__(self) -> None:
        self.found = 0
        self.repaired = 0
        self._waiting: dict[int, set[bytes]] = {}
        self._count = 0
        #: Partitions with damaged records that are not known, because too many were.
        self._overflowed: set[int] = set()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, partition: int) -> bool:
        return partition in self._waiting or partition in self._overflowed

    def report(self, storage_keys: Iterable[bytes]) -> None:
        """Take note that records fail their checksum; those known already do not count again."""
        for storage_key in storage_keys:
            partition = partition_in(storage_key)
            if storage_key in self._waiting.get(partition, ()):
                continue
            if self._count >= _KEPT:
                self._overflowed.add(partition)
                continue
            self._waiting.setdefault(partition, set()).add(storage_key)
            self._count += 1
            self.found += 1
            if self.found <= _NAMED:
                _log.warning("a record is damaged on disk", **_named(storage_key))

    def known(self, partition: int) -> frozenset[bytes]:
        """Return the storage keys of a partition that wait to be mended."""
        return frozenset(self._waiting.get(partition, ()))

    def checked(self, partition: int, known: frozenset[bytes], corrupt: Collection[bytes]) -> None:
        """Take note that every record of a partition was read.

        Args:
            known: what ``known`` returned before.
            damaged: the storage keys of those that fail their checksum.
        """
        self._overflowed.discard(partition)
        self.forget(known.difference(corrupt))  # written anew, or dropped
        self.report(corrupt)

    def to_check(self) -> list[int]:
        """Return partitions to be read again for damaged records that are not known.

        Empty while there is no room to know more of them.
        """
        return [] if self._count > _KEPT // 2 else sorted(self._overflowed)

    def forget(self, storage_keys: Iterable[bytes]) -> None:
        """Take note that records are sound again: mended, or written anew."""
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
            if self.repaired <= _NAMED:
                _log.info("a damaged record is whole again", **_named(storage_key))

    def by_partition(self) -> dict[int, list[bytes]]:
        """Return the storage keys that wait to be mended."""
        return {partition: sorted(keys) for partition, keys in sorted(self._waiting.items())}


def _named(storage_key: bytes) -> dict[str, object]:
    try:
        partition, index, key = split_storage_key(storage_key)
    except IndexError:  # the key itself is damaged
        return {"storage_key": storage_key.hex()}
    shown = key.decode(errors="backslashreplace")
    return {"partition": partition, "index": index.decode(errors="replace"), "key": shown}
