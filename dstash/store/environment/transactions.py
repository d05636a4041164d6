"""Transactions of LMDB with the interfaces of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any


class Walkable:
    """A read transaction with the interface of ``Snapshot``."""

    def __init__(self, transaction: Any, database: Any) -> None:
        self.get: Callable[[bytes], bytes | None] = transaction.get
        self._transaction = transaction
        self._database = database

    def walk(self, begin: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (storage key, record) with ``begin <= storage key < end``, in order."""
        with self._transaction.cursor(self._database) as cursor:
            if not cursor.set_range(begin):
                return
            # A pair is below (end,) as long as its key is below end.
            yield from takewhile((end,).__gt__, cursor.iternext(keys=True, values=True))


class Mergeable:
    """A write transaction with the interface of ``Transaction``.

    It uses one cursor, which finds neighbouring keys without a search from the root of the tree.
    """

    def __init__(self, transaction: Any, cursor: Any, promises: Any) -> None:
        self.get: Callable[[bytes], bytes | None] = cursor.get
        self.put: Callable[[bytes, bytes], object] = cursor.put
        self.put_all: Callable[[Sequence[tuple[bytes, bytes]]], object] = cursor.putmulti
        self.delete: Callable[[bytes], object] = transaction.delete
        self._cursor = cursor
        self._transaction = transaction
        self._promises = promises

    def promise(self, storage_key: bytes) -> bytes | None:
        """Return a promise as of this transaction, as stored."""
        stored: bytes | None = self._transaction.get(storage_key, db=self._promises)
        return stored

    def put_promise(self, storage_key: bytes, promise: bytes) -> None:
        """Store a promise."""
        self._transaction.put(storage_key, promise, db=self._promises)

    def drop_promise(self, storage_key: bytes) -> None:
        """Remove a promise, if there is one."""
        self._transaction.delete(storage_key, db=self._promises)

    def promises_between(self, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Return the promises of a range of storage keys, as stored."""
        return list(Walkable(self._transaction, self._promises).walk(begin, end))

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        """Store the (storage key, record) pairs whose keys do not exist; returns how many."""
        _, added = self._cursor.putmulti(entries, overwrite=False)
        return int(added)
