"""The results of recent deletes, so that a repeated delete gets the same answer.

A client whose ack was lost repeats its delete with the same version. By then the tombstone is
stored, which hides whether the key was live before. The tombstone may also have arrived first from
another replica, by a repair or a hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Final

from dstash.store.record import is_tombstone, version_of
from dstash.version import Version

#: The most keys that are remembered, and for how long (milliseconds).
_MAX_KEYS: Final = 32_768
_MAX_AGE_MS: Final = 60_000


class RecentDeletes:
    """Keys that were live before recent deletes, or may have been, by the version of the delete.

    In the arguments, ``existed`` has a byte for each item: ``LIVE`` where a live record existed,
    ``UNSURE`` where that is not known, or both (added) after several attempts.

    Args:
        max_keys: how many keys are remembered; the oldest versions are forgotten first.
        max_age_ms: for how long.
    """

    def __init__(self, max_keys: int = _MAX_KEYS, max_age_ms: int = _MAX_AGE_MS) -> None:
        self._max_keys = max_keys
        self._max_age_ms = max_age_ms
        #: By version, oldest first: when it was first seen, and its keys with what existed.
        self._found: dict[Version, tuple[int, dict[bytes, int]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def answer(
        self,
        version: Version,
        storage_keys: Sequence[bytes],
        existed: bytearray,
        now: int,
        earlier: Iterable[Version] = (),
    ) -> None:
        """Complete the answer to a delete with its earlier results, and remember them.

        Args:
            version: of the delete.
            storage_keys: of its items.
            existed: is changed in place.
            now: milliseconds since 1970.
            earlier: versions of the same delete that were sent before.
        """
        for sent in (*earlier, version):
            _, found = self._found.get(sent, (now, {}))
            if found:
                for place, key in enumerate(storage_keys):
                    existed[place] |= found.get(key, 0)
        found_now = compress(zip(storage_keys, existed, strict=True), existed)
        self._add(version, found_now, now)
        self._forget(now)

    def note(
        self, entries: Sequence[tuple[bytes, bytes]], existed: Sequence[int], now: int
    ) -> None:
        """Remember what was replaced by tombstones of other replicas.

        Args:
            entries: (storage key, record) pairs that were merged, of any versions.
            existed: what each of them replaced.
            now: milliseconds since 1970.
        """
        for (storage_key, record), was in compress(zip(entries, existed, strict=True), existed):
            if is_tombstone(record):
                self._add(version_of(record), [(storage_key, was)], now)
        self._forget(now)

    def _add(self, version: Version, found: Iterable[tuple[bytes, int]], now: int) -> None:
        since, known = self._found.get(version, (now, {}))
        before = len(known)
        for storage_key, existed in found:
            known[storage_key] = known.get(storage_key, 0) | existed
        if known:
            self._found[version] = since, known
            self._count += len(known) - before

    def _forget(self, now: int) -> None:
        while self._found:
            version, (since, known) = next(iter(self._found.items()))
            if self._count <= self._max_keys and abs(now - since) <= self._max_age_ms:
                return
            self._count -= len(known)
            del self._found[version]
