"""One index as a Python mapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Unpack

from dstash.client.indexes.calls import (
    GONE,
    MISSING,
    BatchOptions,
    ChangeOptions,
    IndexCalls,
    PutOptions,
    ReadOptions,
    ValuesOptions,
    clearing_level,
    pairs_of,
)
from dstash.client.indexes.registers import RegisterIndex
from dstash.client.indexes.views import IndexItems, IndexKeys, IndexValues, is_key
from dstash.client.operations.registers.names import has_registers
from dstash.client.results import BatchResult
from dstash.limits import Ttl
from dstash.wire.keys import Entries, Key


class Index(RegisterIndex, MutableMapping[Key, Any]):
    """One index as a ``MutableMapping``, plus the client's methods without the index name.

    What is iterated is read page by page with its values, and what is written together is sent as a
    batch, so ``items``, ``values``, ``update`` and ``clear`` take any number of keys. Nothing is
    atomic: another client may change a key between the two steps of ``pop`` or ``setdefault``,
    unless the name of the index begins with ``@``. ``len`` counts the keys on the peers; ``if
    index`` reads one page. At the default levels, they and every iteration include what this client
    has written before. (``dict(index)`` makes a call for each key, because Python asks for one
    value at a time: use ``dict(index.items())``.)
    """

    def __init__(self, client: IndexCalls, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<dstash index {self.name!r}>"

    # -- as a mapping

    def __getitem__(self, key: Key) -> Any:
        value = self._client.lookup(self.name, key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Key, value: Any) -> None:
        self._client.put(self.name, key, value)

    def __delitem__(self, key: Key) -> None:
        if not self._client.delete(self.name, key):
            raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        return is_key(key) and self._client.exists(self.name, key)

    def __iter__(self) -> Iterator[Key]:
        return self._client.keys(self.name)

    def __len__(self) -> int:
        return self._client.count(self.name)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        if isinstance(other, Index) and (other._client, other.name) == (self._client, self.name):
            return True
        return dict(self.items()) == dict(other.items())

    def get(self, key: Key, default: Any = None, **options: Unpack[ReadOptions]) -> Any:
        """Return a value, or ``default``: the same as ``lookup``."""
        return self._client.lookup(self.name, key, default, **options)

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """Return a value; if the key does not exist, put ``default`` and return it."""
        while has_registers(self.name):
            if self._client.add(self.name, key, default):
                return default
            entry = self._client.lookup_entry(self.name, key)
            if entry is not None:  # it may have been deleted after ``add``
                return entry.value
        value = self._client.lookup(self.name, key, MISSING)
        if value is not MISSING:
            return value
        self._client.put(self.name, key, default)
        return default

    def pop(self, key: Key, default: Any = MISSING) -> Any:
        """Delete a key and return the value that it had.

        If two clients pop a key at the same time, usually one of them gets it; in an index that
        begins with ``@``, always one.

        Args:
            key: to delete.
            default: returned if the key does not exist.

        Raises:
            KeyError: the key does not exist, and there is no ``default``.
        """
        if has_registers(self.name):
            rest = () if default is MISSING else (default,)
            return self._client.pop(self.name, key, *rest)
        value = self._client.lookup(self.name, key, MISSING)
        if value is not MISSING and self._client.delete(self.name, key):
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Key, Any]:
        """Delete some key; return it and the value that it had. It reads a page of keys.

        Raises:
            KeyError: the index is empty.
        """
        for key in self:
            value = self.pop(key, GONE)
            if value is not GONE:  # it may have expired since the page was read
                return key, value
        raise KeyError(f"popitem: index {self.name!r} is empty")

    def update(self, other: Any = (), /, **entries: Any) -> None:
        """Put the entries of a mapping or of an iterable of pairs, as ``batch_put`` does.

        Raises:
            BatchError: some keys were not stored.
        """
        self._client.batch_put(self.name, pairs_of(other, entries))

    def clear(self) -> None:
        """Delete every key of the index, in batches; ``drop`` is faster for a large index.

        Keys that are put meanwhile may stay. The keys are read at the level of the client, and at
        ``quorum`` at least.

        Raises:
            BatchError: some keys were not deleted.
        """
        keys = self._client.keys(self.name, read=clearing_level(self._client.settings))
        self._client.batch_delete(self.name, keys)

    def drop(self, prefix: str | bytes = "", *, timeout: float | None = None) -> None:
        """Drop all keys, or those with a prefix, by one request; see ``Client.drop``.

        It needs the membership service. ``clear`` does not.
        """
        self._client.drop(self.name, prefix, timeout=timeout)

    def keys(self, prefix: str | bytes = "", **options: Unpack[ReadOptions]) -> IndexKeys:
        """Return the keys, as a view that reads them when it is used; see ``Client.keys``."""
        return IndexKeys(self, self._client, self.name, prefix, options)

    def values(self, prefix: str | bytes = "", **options: Unpack[ValuesOptions]) -> IndexValues:
        """Return the values, as a view that reads them when it is used; see ``Client.items``."""
        return IndexValues(self, self.items(prefix, **options))

    def items(self, prefix: str | bytes = "", **options: Unpack[ValuesOptions]) -> IndexItems:
        """Return (key, value) pairs, as a view that reads when it is used; see ``Client.items``."""
        return IndexItems(self, self._client, self.name, prefix, options)

    # -- the methods of the client

    def put(
        self, key: Key, value: Any, ttl: Ttl | None = None, **options: Unpack[PutOptions]
    ) -> None:
        """Store a value; options as in ``Client.put``."""
        self._client.put(self.name, key, value, ttl, **options)

    def lookup(self, key: Key, default: Any = None, **options: Unpack[ReadOptions]) -> Any:
        """Return a value, or ``default``."""
        return self._client.lookup(self.name, key, default, **options)

    def delete(self, key: Key, **options: Unpack[ChangeOptions]) -> bool:
        """Delete a key; return whether it existed."""
        return self._client.delete(self.name, key, **options)

    def batch_put(
        self, entries: Entries, ttl: Ttl | None = None, **options: Unpack[BatchOptions]
    ) -> BatchResult:
        """Store many values."""
        return self._client.batch_put(self.name, entries, ttl, **options)

    def batch_lookup(self, keys: Iterable[Key], **options: Unpack[ValuesOptions]) -> dict[Key, Any]:
        """Return the values of the keys that exist."""
        return self._client.batch_lookup(self.name, keys, **options)

    def batch_delete(self, keys: Iterable[Key], **options: Unpack[BatchOptions]) -> BatchResult:
        """Delete many keys."""
        return self._client.batch_delete(self.name, keys, **options)

    def exists(self, key: Key, **options: Unpack[ReadOptions]) -> bool:
        """Return whether a key exists."""
        return self._client.exists(self.name, key, **options)

    def ttl(self, key: Key, **options: Unpack[ReadOptions]) -> float | None:
        """Return the seconds until a key expires; see ``Client.ttl``."""
        return self._client.ttl(self.name, key, **options)

    def touch(self, key: Key, ttl: Ttl | None, **options: Unpack[ChangeOptions]) -> bool:
        """Set the time to live of a key; return whether the key exists."""
        return self._client.touch(self.name, key, ttl, **options)

    def count(self, prefix: str | bytes = "", **options: Unpack[ReadOptions]) -> int:
        """Count keys."""
        return self._client.count(self.name, prefix, **options)
