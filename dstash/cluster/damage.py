"""What is known of the damaged records in one store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from dstash.store.record import split_storage_key

_log = structlog.get_logger("dstash.damage")

#: Records kept in mind at once; a scrub finds the others again when these are mended.
_KEPT: Final = 10_000
#: Records named in the log one by one; of a disk that rots as a whole the count is enough.
_NAMED: Final = 100


class Damage:
    """Damaged records: which ones wait to be mended, and how many there were.

    ``found`` and ``mended`` only grow.
    """

    def __init__(self) -> None:
        self.found = 0
        self.mended = 0
        self._waiting: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __contains__(self, partition: int) -> bool:
        return partition in self._waiting

    def report(self, storage_keys: Iterable[bytes]) -> None:
        """Take note that records fail their checksum; those known already do not count again."""
        for storage_key in storage_keys:
            waiting = self._waiting.setdefault(int.from_bytes(storage_key[:2], "big"), set())
            if storage_key in waiting or len(self) >= _KEPT:
                continue
            waiting.add(storage_key)
            self.found += 1
            if self.found <= _NAMED:
                _log.warning("a record is damaged on disk", **_named(storage_key))

    def forget(self, storage_keys: Iterable[bytes]) -> None:
        """Take note that records are sound again: mended, or written anew."""
        for storage_key in storage_keys:
            partition = int.from_bytes(storage_key[:2], "big")
            waiting = self._waiting.get(partition, set())
            if storage_key not in waiting:
                continue
            waiting.discard(storage_key)
            if not waiting:
                del self._waiting[partition]
            self.mended += 1
            if self.mended <= _NAMED:
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
