"""What indexes call on their client, and the options that they hand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final, Protocol, TypedDict

from dstash.client.results import BatchResult, ChangeResult, Entry
from dstash.config import ClientSettings
from dstash.limits import Ttl
from dstash.types import AnyLevel, AnyOnError, Level
from dstash.wire.keys import Entries, Key

#: A default that was not given, or a value that does not exist.
MISSING: Final = object()
#: The default of a ``pop`` for a key that may be gone.
GONE: Final = object()


class ReadOptions(TypedDict, total=False):
    """Options of a read, as in ``Client.lookup``."""

    timeout: float | None
    read: AnyLevel | None


class ValuesOptions(ReadOptions, total=False):
    """Options of a read of many values, as in ``Client.items``."""

    on_error: AnyOnError


class WriteOptions(TypedDict, total=False):
    """Options of a write, as in ``Client.put``."""

    timeout: float | None
    write: AnyLevel | None


class PutOptions(WriteOptions, total=False):
    """Options of a put, as in ``Client.put``."""

    fence: int | None


class ChangeOptions(PutOptions, total=False):
    """Options of a delete or touch, as in ``Client.delete``."""

    version: int | None


class RegisterOptions(TypedDict, total=False):
    """Options of a change of a register, as in ``Client.add``."""

    timeout: float | None
    fence: int | None


class CounterOptions(RegisterOptions, total=False):
    """Options of an increment, as in ``Client.increment``."""

    initial: int
    at_least: int | None
    at_most: int | None
    ttl: Ttl | None


class ChangesOptions(TypedDict, total=False):
    """Options of a batch of changes of registers, as in ``Client.batch_add``."""

    timeout: float | None
    on_error: AnyOnError


class CountersOptions(ChangesOptions, total=False):
    """Options of a batch of increments, as in ``Client.batch_increment``."""

    initial: int
    at_least: int | None
    at_most: int | None
    ttl: Ttl | None


class BatchOptions(WriteOptions, total=False):
    """Options of a batch of writes, as in ``Client.batch_put``."""

    on_error: AnyOnError


class IndexCalls(Protocol):
    """The methods of a blocking client that its indexes call."""

    settings: ClientSettings

    def put(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> None: ...
    def lookup(self, index: str, key: Key, *args: Any, **options: Any) -> Any: ...
    def delete(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    def exists(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    def ttl(self, index: str, key: Key, *args: Any, **options: Any) -> float | None: ...
    def touch(self, index: str, key: Key, ttl: Ttl | None, *args: Any, **options: Any) -> bool: ...
    def batch_put(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> BatchResult: ...
    def batch_lookup(
        self, index: str, keys: Iterable[Key], *args: Any, **options: Any
    ) -> dict[Key, Any]: ...
    def batch_delete(
        self, index: str, keys: Iterable[Key], *args: Any, **options: Any
    ) -> BatchResult: ...
    def items(self, index: str, *args: Any, **options: Any) -> Iterator[tuple[Key, Any]]: ...
    def keys(self, index: str, *args: Any, **options: Any) -> Iterator[Key]: ...
    def count(self, index: str, *args: Any, **options: Any) -> int: ...
    def add(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> bool: ...
    def compare_and_set(
        self, index: str, key: Key, value: Any, version: int, *args: Any, **options: Any
    ) -> int: ...
    def get_and_set(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> Any: ...
    def pop(self, index: str, key: Key, *args: Any, **options: Any) -> Any: ...
    def increment(self, index: str, key: Key, *args: Any, **options: Any) -> int: ...
    def decrement(self, index: str, key: Key, *args: Any, **options: Any) -> int: ...
    def lookup_entry(
        self, index: str, key: Key, *, timeout: float | None = None
    ) -> Entry | None: ...
    def batch_add(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> ChangeResult: ...
    def batch_compare_and_set(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> ChangeResult: ...
    def batch_increment(
        self, index: str, amounts: Entries, *args: Any, **options: Any
    ) -> ChangeResult: ...
    def drop(self, index: str, *args: Any, **options: Any) -> None: ...


class AsyncIndexCalls(Protocol):
    """The methods of an asyncio client that its indexes call."""

    settings: ClientSettings

    async def put(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> None: ...
    async def lookup(self, index: str, key: Key, *args: Any, **options: Any) -> Any: ...
    async def delete(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    async def exists(self, index: str, key: Key, *args: Any, **options: Any) -> bool: ...
    async def ttl(self, index: str, key: Key, *args: Any, **options: Any) -> float | None: ...
    async def touch(
        self, index: str, key: Key, ttl: Ttl | None, *args: Any, **options: Any
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
    async def add(self, index: str, key: Key, value: Any, *args: Any, **options: Any) -> bool: ...
    async def compare_and_set(
        self, index: str, key: Key, value: Any, version: int, *args: Any, **options: Any
    ) -> int: ...
    async def get_and_set(
        self, index: str, key: Key, value: Any, *args: Any, **options: Any
    ) -> Any: ...
    async def pop(self, index: str, key: Key, *args: Any, **options: Any) -> Any: ...
    async def increment(self, index: str, key: Key, *args: Any, **options: Any) -> int: ...
    async def decrement(self, index: str, key: Key, *args: Any, **options: Any) -> int: ...
    async def lookup_entry(
        self, index: str, key: Key, *, timeout: float | None = None
    ) -> Entry | None: ...
    async def batch_add(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> ChangeResult: ...
    async def batch_compare_and_set(
        self, index: str, entries: Entries, *args: Any, **options: Any
    ) -> ChangeResult: ...
    async def batch_increment(
        self, index: str, amounts: Entries, *args: Any, **options: Any
    ) -> ChangeResult: ...
    async def drop(self, index: str, *args: Any, **options: Any) -> None: ...


def pairs_of(other: Any, entries: Mapping[str, Any]) -> Iterable[tuple[Key, Any]]:
    """Return the (key, value) pairs of the arguments of ``update``.

    Args:
        other: a mapping, an object with ``keys()``, or an iterable of pairs.
        entries: more pairs, from keyword arguments.
    """
    if isinstance(other, Mapping):
        pairs: Iterable[tuple[Key, Any]] = other.items()
    elif hasattr(other, "keys"):
        pairs = ((key, other[key]) for key in other.keys())  # noqa: SIM118  # it may lack __iter__
    else:
        pairs = other
    return chain(pairs, entries.items())


def clearing_level(settings: ClientSettings) -> Level:
    """Return the level at which ``clear`` finds the keys: that of the client, at least quorum."""
    return max(Level.QUORUM, Level.parse(settings.read), key=list(Level).index)
