"""The asyncio client: the same names as the blocking one, with ``await`` and ``async for``."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dstash.client.async_index import AsyncIndex
from dstash.client.calls import Calls, steady_wall
from dstash.client.describe import describe_cluster, describe_place
from dstash.client.discovery import security_of
from dstash.client.operations.admin import AdminOperation
from dstash.client.operations.base import Operation
from dstash.client.operations.scans import RepairOperation, StatusOperation
from dstash.client.operations.walks import Walk
from dstash.client.refusals import nothing_written
from dstash.client.results import BatchResult
from dstash.client.session import Session
from dstash.client.tracing import open_tracing, take_provider
from dstash.client.transport.dispatch import Dispatch
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.config import ClientSettings, load_client
from dstash.errors import LimitError
from dstash.limits import check_index, check_ttl
from dstash.store.record import Record
from dstash.types import NEVER, Level
from dstash.wire.keys import Entries, Key, encode_key
from dstash.wire.messages import AdminRequest, Count, Scan, ScanKeys
from dstash.wire.values import TypeRegistry

T = TypeVar("T")

#: Keys of a batch that are encoded, sorted and sent before others have their turn: few enough not
#: to hold up the loop for long.
_ROUND = 25_000


class AsyncClient:
    """A client of a dstash cluster for one event loop, on which any number of tasks may use it.

    Calls for one key (``lookup``, ``exists``, ``put``, ``delete``) that are made in the same turn
    of the loop travel together. Cancelling a call is clean: others go on, and a write that was
    cancelled may be stored or not. A client that is forgotten closes itself, with a
    ``ResourceWarning``.

    Args:
        *peers, **settings: as for ``Client``.

    Raises:
        ConfigError: a setting is wrong.
        UsageError: it is used on another event loop than the first time.
        NoPeers: on the first call, when no peer answers in time.
    """

    def __init__(self, *peers: str, **settings: Any) -> None:
        if peers:
            settings["peers"] = list(peers)
        provider = take_provider(settings)
        self._begin(load_client(None, settings, os.environ), provider)

    @classmethod
    def from_config(cls, path: str | os.PathLike[str]) -> Self:
        """Return a client with the settings of a TOML file."""
        return cls.from_settings(load_client(Path(path), {}, os.environ))

    @classmethod
    def from_settings(cls, settings: ClientSettings) -> Self:
        """Return a client with settings that were loaded before."""
        client = cls.__new__(cls)
        client._begin(settings)
        return client

    def _begin(self, settings: ClientSettings, provider: Any = None) -> None:
        self.settings = settings
        self.types = TypeRegistry()
        zone, security = settings.zone or "", security_of(settings)
        self._session = Session(steady_wall(), zone=zone, security=security, batch_keys=_ROUND)
        self._calls = Calls(settings, self._session, self.types)
        self._dispatch = Dispatch(settings, self._session, self._calls, self.types)
        self._tracing = open_tracing(self, settings, lambda: self._session, provider)

    async def __aenter__(self) -> Self:
        self._dispatch.on_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        dispatch = getattr(self, "_dispatch", None)  # missing when a setting was wrong
        if dispatch is not None and dispatch.is_open and not sys.is_finalizing():
            try:
                warnings.warn(
                    "an AsyncClient was never closed", ResourceWarning, stacklevel=2, source=self
                )
            finally:
                dispatch.drop()

    async def close(self) -> None:
        """Close every connection. Calls under way in other tasks fail."""
        await self._dispatch.close()

    # -- one key

    async def put(
        self,
        index: str,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        timeout: float | None = None,
        write: str | Level | None = None,
    ) -> None:
        """Store a value; arguments and errors as in ``Client.put``.

        Of puts of one key that are made one after the other in the same turn, the last wins.
        """
        item = (key, encode_key(key), self.types.encode(value))
        group = self._dispatch.turn().put(index, item, ttl, timeout, write)
        if self._tracing is not None:
            self._tracing.join(group)
        await self._dispatch.answer(group, key, None)

    async def lookup(
        self,
        index: str,
        key: Key,
        default: Any = None,
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> Any:
        """Return the value of a key, or ``default``."""
        group = self._dispatch.turn().lookup(index, key, timeout, read)
        if self._tracing is not None:
            self._tracing.join(group)
        future = group.join(key, default)
        try:  # what ``answer`` does, without a second coroutine: this is asked most
            return await future
        except asyncio.CancelledError:
            self._dispatch.leave(group, key, future)
            raise

    async def delete(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        write: str | Level | None = None,
    ) -> bool:
        """Delete a key; whether it was there."""
        item = (key, encode_key(key), b"")
        group = self._dispatch.turn().delete(index, item, timeout, write)
        if self._tracing is not None:
            self._tracing.join(group)
        return bool(await self._dispatch.answer(group, key, False))

    async def exists(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> bool:
        """Whether a key is there."""
        group = self._dispatch.turn().exists(index, key, timeout, read)
        if self._tracing is not None:
            self._tracing.join(group)
        return bool(await self._dispatch.answer(group, key, False))

    async def ttl(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> float | None:
        """Return the seconds a key has left: None when it never expires.

        Raises:
            KeyError: there is no such key.
        """
        record = await self._record(index, key, timeout, read)
        if record is None:
            raise KeyError(key)
        if record.expiry == NEVER:
            return None
        return max(0, record.expiry - self._session.cluster_time()) / 1000

    async def touch(
        self,
        index: str,
        key: Key,
        ttl: float | None,
        *,
        timeout: float | None = None,
        write: str | Level | None = None,
    ) -> bool:
        """Give a key a new time to live (None: for ever); whether it was there.

        Raises:
            BelowFloor, Unavailable, TimedOut: as ``Client.touch``.
        """
        check_ttl(ttl)
        with nothing_written():
            record = await self._record(index, key, timeout, None)
        if record is None:
            return False
        touched = self._calls.touch(index, key, record, ttl, timeout, write)
        result: BatchResult = await self._dispatch.run(self._traced(touched))
        result.raise_first()
        return True

    # -- many keys

    async def batch_put(
        self,
        index: str,
        entries: Entries,
        ttl: float | None = None,
        *,
        timeout: float | None = None,
        write: str | Level | None = None,
    ) -> BatchResult:
        """Store many values, any number; a key that comes twice keeps its last value.

        Returns:
            As ``Client.batch_put``. ``timeout`` is per 25,000 keys.
        """
        pairs = entries.items() if isinstance(entries, Mapping) else entries
        total = BatchResult()
        for chunk in _rounds(pairs):
            put = self._calls.put(index, chunk, ttl, timeout, write)
            total.add(await self._dispatch.run(self._traced(put)))
        return total

    async def batch_lookup(
        self,
        index: str,
        keys: Iterable[Key],
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> dict[Key, Any]:
        """Return the values of those keys that are there, in no particular order."""
        if isinstance(keys, str | bytes):
            raise LimitError("batch_lookup takes an iterable of keys, not one key")
        operation = self._calls.lookup(index, list(keys), timeout, read)
        found: dict[Key, Any] = await self._dispatch.run(self._traced(operation))
        return found

    async def batch_delete(
        self,
        index: str,
        keys: Iterable[Key],
        *,
        timeout: float | None = None,
        write: str | Level | None = None,
    ) -> BatchResult:
        """Delete many keys. ``deleted`` of the result counts those that were there."""
        if isinstance(keys, str | bytes):
            raise LimitError("batch_delete takes an iterable of keys, not one key")
        total = BatchResult()
        for chunk in _rounds(dict.fromkeys(keys)):
            deletion = self._calls.delete(index, chunk, timeout, write)
            total.add(await self._dispatch.run(self._traced(deletion)))
        return total

    # -- walking

    async def items(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> AsyncIterator[tuple[Key, Any]]:
        """Yield (key, value) of an index; see ``Client.items``."""
        async for part in self._parts(self._calls.walk(index, prefix, Scan, read), timeout):
            for pair in part:
                yield pair

    async def keys(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> AsyncIterator[Key]:
        """Yield the keys of an index; see ``items``."""
        async for part in self._parts(self._calls.walk(index, prefix, ScanKeys, read), timeout):
            for key in part:
                yield key

    async def count(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: str | Level | None = None,
    ) -> int:
        """Count the keys of an index; see ``items``."""
        walk = self._calls.walk(index, prefix, Count, read)
        return sum([sum(part) async for part in self._parts(walk, timeout)])

    def index(self, name: str) -> AsyncIndex:
        """Return one index, with the methods above but without the index name."""
        check_index(name)
        return AsyncIndex(self, name)

    # -- the cluster

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the cluster, its members, who is alive, and what each says of itself."""
        view = await self._view(timeout)
        deadline = self._calls.deadline(timeout)
        operation = StatusOperation(self._session, deadline, list(view.members))
        return describe_cluster(view, await self._dispatch.run(self._traced(operation)))

    async def where(self, index: str, key: Key, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the partition of a key and the replicas that hold it, in rank order."""
        check_index(index)
        encoded = encode_key(key)
        return describe_place(await self._view(timeout), encoded)

    async def topology(self, *, timeout: float | None = None) -> Topology:
        """Return the topology as a peer knows it now."""
        return (await self._view(timeout)).topology

    async def repair(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Have every peer check and compare all it holds, now; as ``Client.repair``."""
        view = await self._view(timeout)
        deadline = self._calls.deadline(timeout)
        operation = RepairOperation(self._session, deadline, list(view.members))
        return describe_cluster(view, await self._dispatch.run(self._traced(operation)))

    async def order(
        self,
        action: str,
        peers: Sequence[str] = (),
        *,
        rate: int = 0,
        dry: bool = False,
        timeout: float | None = None,
    ) -> Topology:
        """Change where data is, or steer the change under way; as ``Client.order``."""
        order = AdminRequest(action, list(peers), rate, dry)
        await self._view(timeout)
        operation = AdminOperation(self._session, self._calls.deadline(timeout), order)
        topology: Topology = await self._dispatch.run(self._traced(operation))
        return topology

    # -- inside

    def _traced(self, operation: Operation) -> Operation:
        if self._tracing is not None:
            operation.trace = self._tracing.trace()
        return operation

    async def _record(
        self, index: str, key: Key, timeout: float | None, read: str | Level | None
    ) -> Record | None:
        operation = self._calls.records(index, [key], timeout, read)
        found = await self._dispatch.run(self._traced(operation))
        record: Record | None = found.get(key)
        return record

    async def _parts(self, walk: Walk[T], timeout: float | None) -> AsyncIterator[list[T]]:
        while not walk.done:
            yield await self._page(walk, timeout)

    async def _page(self, walk: Walk[T], timeout: float | None) -> list[T]:
        deadline = self._calls.deadline(timeout)
        part: list[T] | None = None
        while part is None:
            operation = self._traced(walk.operation(self._session, deadline))
            part = walk.take(await self._dispatch.run(operation))
        return part

    async def _view(self, timeout: float | None) -> View:
        await self._dispatch.discover(self._calls.deadline(timeout))
        return self._session.known_view()


def _rounds(entries: Iterable[T]) -> Iterator[list[T]]:
    """Cut any iterable into lists of a bounded size."""
    source = iter(entries)
    while chunk := list(itertools.islice(source, _ROUND)):
        yield chunk
