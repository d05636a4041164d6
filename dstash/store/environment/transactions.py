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

    It uses one cursor for each database, which finds neighbouring keys without a search from the
    root of the tree.

    Args:
        transaction: the transaction.
        cursor: of the records.
        promises: the database of promises.
    """

    def __init__(self, transaction: Any, cursor: Any, promises: Any) -> None:
        self.get: Callable[[bytes], bytes | None] = cursor.get
        self.put: Callable[[bytes, bytes], object] = cursor.put
        self.put_all: Callable[[Sequence[tuple[bytes, bytes]]], object] = cursor.putmulti
        self.delete: Callable[[bytes], object] = transaction.delete
        self._cursor = cursor
        self._transaction = transaction
        self._promises = promises
        self._promise_cursor: Any = None

    def _cursor_of_promises(self) -> Any:
        """Return the cursor of promises, which most transactions do not need."""
        if self._promise_cursor is None:
            self._promise_cursor = self._transaction.cursor(self._promises)
        return self._promise_cursor

    def promise(self, storage_key: bytes) -> bytes | None:
        """Return a promise as of this transaction, as stored."""
        cursor = self._promise_cursor or self._cursor_of_promises()
        stored: bytes | None = cursor.get(storage_key)
        return stored

    def put_promise(self, storage_key: bytes, promise: bytes) -> None:
        """Store a promise."""
        self._cursor_of_promises().put(storage_key, promise)

    def put_promises(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Store promises."""
        if entries:
            self._cursor_of_promises().putmulti(entries)

    def drop_promise(self, storage_key: bytes) -> None:
        """Remove a promise, if there is one."""
        cursor = self._cursor_of_promises()
        if cursor.set_key(storage_key):
            cursor.delete()

    def promises_between(self, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Return the promises of a range of storage keys, as stored."""
        return list(Walkable(self._transaction, self._promises).walk(begin, end))

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        """Store the (storage key, record) pairs whose keys do not exist; returns how many."""
        _, added = self._cursor.putmulti(entries, overwrite=False)
        return int(added)


class Recording(Mergeable):
    """A write transaction that notes which keys it may change, for a compaction that runs.

    Args:
        noted_records: gets the storage keys of records.
        noted_promises: gets the storage keys of promises.
    """

    def __init__(
        self,
        transaction: Any,
        cursor: Any,
        promises: Any,
        noted_records: list[bytes],
        noted_promises: list[bytes],
    ) -> None:
        super().__init__(transaction, cursor, promises)
        self._noted_records, self._noted_promises = noted_records, noted_promises
        self._put, self._put_all, self._delete = self.put, self.put_all, self.delete
        self.put, self.put_all, self.delete = self._put_one, self._put_many, self._delete_one

    def _put_one(self, storage_key: bytes, record: bytes) -> object:
        self._noted_records.append(storage_key)
        return self._put(storage_key, record)

    def _put_many(self, entries: Sequence[tuple[bytes, bytes]]) -> object:
        self._noted_records += [storage_key for storage_key, _ in entries]
        return self._put_all(entries)

    def _delete_one(self, storage_key: bytes) -> object:
        self._noted_records.append(storage_key)
        return self._delete(storage_key)

    def insert_all(self, entries: Sequence[tuple[bytes, bytes]]) -> int:
        """Store the pairs whose keys do not exist; returns how many."""
        self._noted_records += [storage_key for storage_key, _ in entries]
        return super().insert_all(entries)

    def put_promise(self, storage_key: bytes, promise: bytes) -> None:
        """Store a promise."""
        self._noted_promises.append(storage_key)
        super().put_promise(storage_key, promise)

    def put_promises(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        """Store promises."""
        self._noted_promises += [storage_key for storage_key, _ in entries]
        super().put_promises(entries)

    def drop_promise(self, storage_key: bytes) -> None:
        """Remove a promise, if there is one."""
        self._noted_promises.append(storage_key)
        super().drop_promise(storage_key)
