"""The journal of a compaction: the keys that commits have changed since they were copied."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

#: The most keys that wait; a key takes about 150 bytes.
MAX_KEYS: Final = 500_000


class Journal:
    """The keys to be copied again. Commits add keys, and the compaction takes them.

    Args:
        most: keys that may wait.
    """

    def __init__(self, most: int = MAX_KEYS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._records: set[bytes] = set()
        self._promises: set[bytes] = set()
        #: Why the compaction cannot continue; empty while it can.
        self.ended = ""

    def __len__(self) -> int:
        return len(self._records) + len(self._promises)

    def add(self, records: Iterable[bytes], promises: Iterable[bytes]) -> None:
        """Note keys of records and of promises that a commit has changed."""
        if self.ended:
            return
        with self._lock:
            self._records.update(records)
            self._promises.update(promises)
            if len(self) > self._most:
                self._records, self._promises = set(), set()
                self.ended = "records are written faster than they can be copied"

    def end(self, reason: str) -> None:
        """End the compaction."""
        self.ended = self.ended or reason

    def take(self) -> dict[bytes, list[bytes]]:
        """Return the keys that wait, in order, by the name of their database, and forget them."""
        with self._lock:
            records, promises = self._records, self._promises
            self._records, self._promises = set(), set()
        return {b"records": sorted(records), b"promises": sorted(promises)}
