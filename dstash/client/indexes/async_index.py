"""One index of an asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Unpack

from dstash.client.indexes.async_registers import AsyncRegisterIndex
from dstash.client.indexes.calls import (
    GONE,
    MISSING,
    AsyncIndexCalls,
    BatchOptions,
    ChangeOptions,
    PutOptions,
    ReadOptions,
    ValuesOptions,
    clearing_level,
    pairs_of,
)
from dstash.client.operations.registers.names import has_registers
from dstash.client.results import BatchResult
from dstash.limits import Ttl
from dstash.wire.keys import Entries, Key

#: Keys that ``clear`` deletes together.
_CLEARED_TOGETHER: Final = 25_000


class AsyncIndex(AsyncRegisterIndex):
    """The methods of ``Index``, with ``await`` and ``async for``; itself, it yields its keys.

    It is not a ``MutableMapping``, because ``users[key]`` and ``len(users)`` cannot be awaited: use
    ``get``, ``put``, ``delete``, ``exists`` and ``count``.
    """

    def __init__(self, client: AsyncIndexCalls, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<dstash index {self.name!r}>"

    def __aiter__(self) -> AsyncIterator[Key]:
        return self._client.keys(self.name)

    # -- the methods of a mapping

    async def get(self, key: Key, default: Any = None, **options: Unpack[ReadOptions]) -> Any:
        """Return a value, or ``default``: the same as ``lookup``."""
        return await self._client.lookup(self.name, key, default, **options)

    async def setdefault(self, key: Key, default: Any = None) -> Any:
        """Return a value; if the key does not exist, put ``default`` and return it."""
        while has_registers(self.name):
            if await self._client.add(self.name, key, default):
                return default
            entry = await self._client.lookup_entry(self.name, key)
            if entry is not None:  # it may have been deleted after ``add``
                return entry.value
        value = await self._client.lookup(self.name, key, MISSING)
        if value is not MISSING:
            return value
        await self._client.put(self.name, key, default)
        return default

    async def pop(self, key: Key, default: Any = MISSING) -> Any:
        """Delete a key and return the value that it had; see ``Index.pop``.

        Raises:
            KeyError: the key does not exist, and there is no ``default``.
        """
        if has_registers(self.name):
            rest = () if default is MISSING else (default,)
            return await self._client.pop(self.name, key, *rest)
        value = await self._client.lookup(self.name, key, MISSING)
        if value is not MISSING and await self._client.delete(self.name, key):
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    async def popitem(self) -> tuple[Key, Any]:
        """Delete some key; return it and the value that it had. It reads a page of keys.

        Raises:
            KeyError: the index is empty.
        """
        async for key in self:
            value = await self.pop(key, GONE)
            if value is not GONE:  # it may have expired since the page was read
                return key, value
        raise KeyError(f"popitem: index {self.name!r} is empty")

    async def update(self, other: Any = (), /, **entries: Any) -> None:
        """Put the entries of a mapping or of an iterable of pairs, as ``batch_put`` does.

        Raises:
            BatchError: some keys were not stored.
        """
        await self._client.batch_put(self.name, pairs_of(other, entries))

    async def clear(self) -> None:
        """Delete every key of the index, in batches; see ``Index.clear``.

        Raises:
            BatchError: some keys were not deleted.
        """
        total = BatchResult()
        waiting: list[Key] = []
        async for key in self._client.keys(self.name, read=clearing_level(self._client.settings)):
            waiting.append(key)
            if len(waiting) == _CLEARED_TOGETHER:
                total.add(await self.batch_delete(waiting, on_error="return"))
                waiting = []
        total.add(await self.batch_delete(waiting, on_error="return"))
        total.raise_for_failures()

    async def drop(self, prefix: str | bytes = "", *, timeout: float | None = None) -> None:
        """Drop all keys, or those with a prefix, by one request; see ``Client.drop``."""
        await self._client.drop(self.name, prefix, timeout=timeout)

    def keys(self, prefix: str | bytes = "", **options: Unpack[ReadOptions]) -> AsyncIterator[Key]:
        """Yield the keys."""
        return self._client.keys(self.name, prefix, **options)

    async def values(
        self, prefix: str | bytes = "", **options: Unpack[ValuesOptions]
    ) -> AsyncIterator[Any]:
        """Yield the values; see ``AsyncClient.items``."""
        async for _, value in self._client.items(self.name, prefix, **options):
            yield value

    def items(
        self, prefix: str | bytes = "", **options: Unpack[ValuesOptions]
    ) -> AsyncIterator[tuple[Key, Any]]:
        """Yield (key, value); see ``AsyncClient.items``."""
        return self._client.items(self.name, prefix, **options)

    # -- the methods of the client

    async def put(
        self, key: Key, value: Any, ttl: Ttl | None = None, **options: Unpack[PutOptions]
    ) -> None:
        """Store a value; options as in ``AsyncClient.put``."""
        await self._client.put(self.name, key, value, ttl, **options)

    async def lookup(self, key: Key, default: Any = None, **options: Unpack[ReadOptions]) -> Any:
        """Return a value, or ``default``."""
        return await self._client.lookup(self.name, key, default, **options)

    async def delete(self, key: Key, **options: Unpack[ChangeOptions]) -> bool:
        """Delete a key; return whether it existed."""
        return await self._client.delete(self.name, key, **options)

    async def exists(self, key: Key, **options: Unpack[ReadOptions]) -> bool:
        """Return whether a key exists."""
        return await self._client.exists(self.name, key, **options)

    async def ttl(self, key: Key, **options: Unpack[ReadOptions]) -> float | None:
        """Return the seconds until a key expires; see ``AsyncClient.ttl``."""
        return await self._client.ttl(self.name, key, **options)

    async def touch(self, key: Key, ttl: Ttl | None, **options: Unpack[ChangeOptions]) -> bool:
        """Set the time to live of a key; return whether the key exists."""
        return await self._client.touch(self.name, key, ttl, **options)

    async def batch_put(
        self, entries: Entries, ttl: Ttl | None = None, **options: Unpack[BatchOptions]
    ) -> BatchResult:
        """Store many values."""
        return await self._client.batch_put(self.name, entries, ttl, **options)

    async def batch_lookup(
        self, keys: Iterable[Key], **options: Unpack[ValuesOptions]
    ) -> dict[Key, Any]:
        """Return the values of the keys that exist."""
        return await self._client.batch_lookup(self.name, keys, **options)

    async def batch_delete(
        self, keys: Iterable[Key], **options: Unpack[BatchOptions]
    ) -> BatchResult:
        """Delete many keys."""
        return await self._client.batch_delete(self.name, keys, **options)

    async def count(self, prefix: str | bytes = "", **options: Unpack[ReadOptions]) -> int:
        """Count keys."""
        return await self._client.count(self.name, prefix, **options)
