"""One index of an asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from dstash.client.results import BatchResult
from dstash.wire.keys import Entries, Key


class IndexCalls(Protocol):
    """The methods of a client that its indexes call."""

    async def put(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> None: ...
    async def lookup(self, index: str, key: Key, *args: Any, **options: Any) -> Any: ...
    async def delete(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    async def exists(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    async def ttl(self, index: str, key: Key, *args: Any, **options: Any) -> float | None: ...
    async def touch(
        self, index: str, key: Key, ttl: float | None, *args: Any, **options: Any
    ) -> bool: ...
    async def batch_put(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> BatchResult: ...
    async def batch_lookup(
        self, index: str, keys: Iterable[Key], *args: Any, **options: Any
    ) -> dict[Key, Any]: ...
    async def batch_delete(
        self, index: str, keys: Iterable[Key], *args: Any, **options: Any
    ) -> BatchResult: ...
    def items(self, index: str, *args: Any, **options: Any) -> AsyncIterator[tuple[Key, Any]]: ...
    def keys(self, index: str, *args: Any, **options: Any) -> AsyncIterator[Key]: ...
    async def count(self, index: str, *args: Any, **options: Any) -> int: ...


class AsyncIndex:
    """The methods of ``AsyncClient`` over one index; ``async for`` yields its keys.

    It is not a ``MutableMapping``, because ``users[key]`` cannot be awaited.
    """

    def __init__(self, client: IndexCalls, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<dstash index {self.name!r}>"

    def __aiter__(self) -> AsyncIterator[Key]:
        return self._client.keys(self.name)

    async def put(self, key: Key, value: Any, ttl: float | None = None, **options: Any) -> None:
        """Store a value; options as in ``AsyncClient.put``."""
        await self._client.put(self.name, key, value, ttl, **options)

    async def lookup(self, key: Key, default: Any = None, **options: Any) -> Any:
        """Return a value, or ``default``."""
        return await self._client.lookup(self.name, key, default, **options)

    async def delete(self, key: Key, **options: Any) -> bool:
        """Delete a key; return whether it existed."""
        return await self._client.delete(self.name, key, **options)

    async def exists(self, key: Key, **options: Any) -> bool:
        """Return whether a key exists."""
        return await self._client.exists(self.name, key, **options)

    async def ttl(self, key: Key, **options: Any) -> float | None:
        """Return the seconds until a key expires; see ``AsyncClient.ttl``."""
        return await self._client.ttl(self.name, key, **options)

    async def touch(self, key: Key, ttl: float | None, **options: Any) -> bool:
        """Set the time to live of a key; return whether the key exists."""
        return await self._client.touch(self.name, key, ttl, **options)

    async def batch_put(
        self, entries: Entries, ttl: float | None = None, **options: Any
    ) -> BatchResult:
        """Store many values."""
        return await self._client.batch_put(self.name, entries, ttl, **options)

    async def batch_lookup(self, keys: Iterable[Key], **options: Any) -> dict[Key, Any]:
        """Return the values of the keys that exist."""
        return await self._client.batch_lookup(self.name, keys, **options)

    async def batch_delete(self, keys: Iterable[Key], **options: Any) -> BatchResult:
        """Delete many keys."""
        return await self._client.batch_delete(self.name, keys, **options)

    def items(self, prefix: str | bytes = "", **options: Any) -> AsyncIterator[tuple[Key, Any]]:
        """Yield (key, value); see ``AsyncClient.items``."""
        return self._client.items(self.name, prefix, **options)

    def keys(self, prefix: str | bytes = "", **options: Any) -> AsyncIterator[Key]:
        """Yield the keys."""
        return self._client.keys(self.name, prefix, **options)

    async def count(self, prefix: str | bytes = "", **options: Any) -> int:
        """Count keys."""
        return await self._client.count(self.name, prefix, **options)
