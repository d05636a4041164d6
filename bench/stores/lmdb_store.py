"""Raw LMDB in the client's process, without network, copies and checksums: a limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb

from bench.stores.store import Pairs, Store

_MAP = 16 << 30  # of address space, not of memory


class Lmdb(Store):
    """An environment; a put is one transaction with a sync, like the commit of a peer."""

    name = "lmdb"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._env: Any = lmdb.open(str(folder), map_size=_MAP, readahead=False)

    def put(self, pairs: Pairs) -> None:
        """Store all pairs in one transaction."""
        with self._env.begin(write=True) as transaction:
            put = transaction.put
            for key, value in pairs.items():
                put(key.encode(), value)

    def get(self, keys: Sequence[str]) -> Any:
        """Look up all keys in one snapshot."""
        with self._env.begin() as transaction:
            get = transaction.get
            return [get(key.encode()) for key in keys]

    def get_one(self, key: str) -> bytes | None:
        """Look up a key."""
        with self._env.begin() as transaction:
            value: bytes | None = transaction.get(key.encode())
            return value

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
