"""The methods of an index for registers: conditional changes and counters of its keys."""

from __future__ import annotations

from typing import Any, Unpack

from dstash.client.indexes.calls import (
    ChangesOptions,
    CounterOptions,
    CountersOptions,
    IndexCalls,
    RegisterOptions,
)
from dstash.client.results import ChangeResult, Entry
from dstash.limits import Ttl
from dstash.wire.keys import Entries, Key


class RegisterIndex:
    """An index whose name begins with ``@``; other indexes refuse these methods.

    All of them are those of ``Client``, without the name of the index.
    """

    _client: IndexCalls
    name: str

    def add(
        self, key: Key, value: Any, ttl: Ttl | None = None, **options: Unpack[RegisterOptions]
    ) -> bool:
        """Store a value if the key does not exist; return whether this call stored it."""
        return self._client.add(self.name, key, value, ttl, **options)

    def compare_and_set(
        self,
        key: Key,
        value: Any,
        version: int,
        ttl: Ttl | None = None,
        **options: Unpack[RegisterOptions],
    ) -> int:
        """Store a value if the key still has a version; return the new version."""
        return self._client.compare_and_set(self.name, key, value, version, ttl, **options)

    def get_and_set(
        self,
        key: Key,
        value: Any,
        default: Any = None,
        ttl: Ttl | None = None,
        **options: Unpack[RegisterOptions],
    ) -> Any:
        """Store a value; return the value before, or ``default``."""
        return self._client.get_and_set(self.name, key, value, default, ttl, **options)

    def increment(self, key: Key, by: int = 1, **options: Unpack[CounterOptions]) -> int:
        """Add to an integer; return the sum."""
        return self._client.increment(self.name, key, by, **options)

    def decrement(self, key: Key, by: int = 1, **options: Unpack[CounterOptions]) -> int:
        """Subtract from an integer; return the difference."""
        return self._client.decrement(self.name, key, by, **options)

    def lookup_entry(self, key: Key, *, timeout: float | None = None) -> Entry | None:
        """Return value, version and time to live of a key; None if it does not exist."""
        return self._client.lookup_entry(self.name, key, timeout=timeout)

    def batch_add(
        self, entries: Entries, ttl: Ttl | None = None, **options: Unpack[ChangesOptions]
    ) -> ChangeResult:
        """Store the values of keys that do not exist."""
        return self._client.batch_add(self.name, entries, ttl, **options)

    def batch_compare_and_set(
        self, entries: Entries, ttl: Ttl | None = None, **options: Unpack[ChangesOptions]
    ) -> ChangeResult:
        """Store values of keys that still have their versions, given as (value, version)."""
        return self._client.batch_compare_and_set(self.name, entries, ttl, **options)

    def batch_increment(self, amounts: Entries, **options: Unpack[CountersOptions]) -> ChangeResult:
        """Add to integers, by key."""
        return self._client.batch_increment(self.name, amounts, **options)
