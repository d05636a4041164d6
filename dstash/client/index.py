"""One index as a Python mapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Protocol

from dstash.client.results import BatchResult
from dstash.wire.keys import Entries, Key

_MISSING = object()


class IndexCalls(Protocol):
    """The methods of a client that its indexes call."""

    def put(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> None: ...
    def lookup(self, index: str, key: Key, *args: Any, **options: Any) -> Any: ...
    def delete(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    def exists(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    def ttl(self, index: str, key: Key, *args: Any, **options: Any) -> float | None: ...
    def touch(
        self, index: str, key: Key, ttl: float | None, *args: Any, **options: Any
    ) -> bool: ...
    def batch_put(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> BatchResult: ...
    def batch_lookup(
        self, index: str, keys: Iterable[Key], *args: Any, **options: Any
    ) -> dict[Key, Any]: ...
    def batch_delete(
        self, index: str, keys: Iterable[Key], *args: Any, **options: Any
    ) -> BatchResult: ...
    def keys(self, index: str, *args: Any, **options: Any) -> Iterator[Key]: ...
    def count(self, index: str, *args: Any, **options: Any) -> int: ...


class Index(MutableMapping[Key, Any]):
    """A ``MutableMapping`` over one index, plus the client's methods without the index name."""

    def __init__(self, client: IndexCalls, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<dstash index {self.name!r}>"

    def __getitem__(self, key: Key) -> Any:
        value = self._client.lookup(self.name, key, default=_MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Key, value: Any) -> None:
        self._client.put(self.name, key, value)

    def __delitem__(self, key: Key) -> None:
        if not self._client.delete(self.name, key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes | int) and self._client.exists(self.name, key)

    def __iter__(self) -> Iterator[Key]:
        return self._client.keys(self.name)

    def __len__(self) -> int:
        return self._client.count(self.name)

    def put(self, key: Key, value: Any, ttl: float | None = None, **options: Any) -> None:
        """Store a value; options as in ``Client.put``."""
        self._client.put(self.name, key, value, ttl, **options)

    def lookup(self, key: Key, default: Any = None, **options: Any) -> Any:
        """Return a value, or ``default``."""
        return self._client.lookup(self.name, key, default, **options)

    def delete(self, key: Key, **options: Any) -> bool:
        """Delete a key; return whether it existed."""
        return self._client.delete(self.name, key, **options)

    def batch_put(self, entries: Entries, ttl: float | None = None, **options: Any) -> BatchResult:
        """Store many values."""
        return self._client.batch_put(self.name, entries, ttl, **options)

    def batch_lookup(self, keys: Iterable[Key], **options: Any) -> dict[Key, Any]:
        """Return the values of the keys that exist."""
        return self._client.batch_lookup(self.name, keys, **options)

    def batch_delete(self, keys: Iterable[Key], **options: Any) -> BatchResult:
        """Delete many keys."""
        return self._client.batch_delete(self.name, keys, **options)

    def exists(self, key: Key, **options: Any) -> bool:
        """Return whether a key exists."""
        return self._client.exists(self.name, key, **options)

    def ttl(self, key: Key, **options: Any) -> float | None:
        """Return the seconds until a key expires; see ``Client.ttl``."""
        return self._client.ttl(self.name, key, **options)

    def touch(self, key: Key, ttl: float | None, **options: Any) -> bool:
        """Set the time to live of a key; return whether the key exists."""
        return self._client.touch(self.name, key, ttl, **options)

    def count(self, prefix: str | bytes = "", **options: Any) -> int:
        """Count keys."""
        return self._client.count(self.name, prefix, **options)
