"""The asyncio client: the methods of the blocking client, with ``await`` and ``async for``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from dstash.client.admin import AsyncAdmin
from dstash.client.base import BaseClient, new_session
from dstash.client.calls import Calls
from dstash.client.describe import describe_cluster, describe_place
from dstash.client.entries import check_keys, key_rounds, put_rounds
from dstash.client.indexes.async_index import AsyncIndex
from dstash.client.local.batches import ASK, MOST_KEYS, PartlyRead
from dstash.client.operations.base import Operation
from dstash.client.operations.indexes.sizes import IndexDefaults, IndexSize, defaults_in
from dstash.client.operations.registers.names import has_registers
from dstash.client.operations.walks import Walk
from dstash.client.refusals import nothing_written
from dstash.client.registers.asyncio import AsyncRegisterMethods
from dstash.client.results import BatchResult
from dstash.client.session import Session
from dstash.client.transport.dispatch import Dispatch
from dstash.cluster.topology.topology import Topology
from dstash.cluster.topology.view import View
from dstash.limits import Ttl, check_index, check_ttl
from dstash.store.record import Record
from dstash.types import AnyLevel, AnyOnError, OnError
from dstash.wire.keys import Entries, Key, encode_key
from dstash.wire.messages import Count, Scan, ScanKeys

T = TypeVar("T")

#: Keys of a batch that are encoded, sorted and sent in one step: few enough not to block the event
#: loop for long.
_BATCH_KEYS = 25_000
#: Keys of a batch that are read without a request before other tasks run.
_LOCAL_KEYS = 2_000


class AsyncClient(AsyncRegisterMethods, BaseClient):
    """A client of a dstash cluster for the tasks of one event loop.

    Calls for one key (``lookup``, ``exists``, ``put``, ``delete``) that are made in the same
    iteration of the loop are sent as one request per peer. A cancelled call does not affect other
    calls; a cancelled write may be stored or not. A client that is garbage-collected without
    ``close`` closes its connections, with a ``ResourceWarning``.

    Args:
        *addresses, **settings: as for ``Client``.

    Raises:
        ConfigError: a setting is invalid.
        UsageError: the client is used on another event loop than before.
        NoPeers: on the first call, if no peer answers in time.
    """

    def _start(self) -> None:
        self._session = new_session(self.settings, _BATCH_KEYS)
        self._calls = Calls(self.settings, self._session, self.types)
        self._dispatch = Dispatch(self.settings, self._session, self._calls, self.types)
        self._close_with_client(self._dispatch)

    def _is_closed(self) -> bool:
        return self._dispatch.is_closed

    def _current_session(self) -> Session:
        return self._session

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

    async def close(self) -> None:
        """Close every connection. Pending calls of other tasks fail."""
        await self._dispatch.close()

    # -- one key

    async def put(
        self,
        index: str,
        key: Key,
        value: Any,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        fence: int | None = None,
    ) -> None:
        """Store a value; arguments and errors as in ``Client.put``.

        Of several puts of one key in the same iteration of the loop, the last put wins.
        """
        with self._tracing.call("put", index):
            if has_registers(index) or fence is not None:
                put = self._calls.put(index, [(key, value)], ttl, timeout, write, fence)
                stored: BatchResult = await self._run(put)
                stored.raise_first()
                return
            check_ttl(ttl)  # here, because 1 and True are equal arguments
            encoded = encode_key(key)
            item = (key, encoded, self.types.encode_entries([key], [value])[0])
            group = self._dispatch.batch().put(index, item, ttl, timeout, write)
            self._tracing.join(group)
            await self._dispatch.answer(group, key, None)

    async def lookup(
        self,
        index: str,
        key: Key,
        default: Any = None,
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> Any:
        """Return the value of a key, or ``default``."""
        with self._tracing.call("lookup", index):
            found = self._dispatch.local.lookup(index, key, default, timeout, read)
            if found is not ASK and self._dispatch.may_answer():
                if self._dispatch.is_others_turn():
                    await asyncio.sleep(0)
                return found
            group = self._dispatch.batch().lookup(index, key, timeout, read)
            self._tracing.join(group)
            future = group.join(key, default)
            try:  # the same as ``answer``, without a second coroutine: the most frequent call
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
        write: AnyLevel | None = None,
        version: int | None = None,
        fence: int | None = None,
    ) -> bool:
        """Delete a key; return whether it existed; arguments as in ``Client.delete``."""
        with self._tracing.call("delete", index):
            if has_registers(index) or version is not None or fence is not None:
                delete = self._calls.delete(index, [key], timeout, write, version, fence)
                result: BatchResult = await self._run(delete)
                result.raise_first()
                return bool(result.deleted)
            item = (key, encode_key(key), b"")
            group = self._dispatch.batch().delete(index, item, timeout, write)
            self._tracing.join(group)
            return bool(await self._dispatch.answer(group, key, False))

    async def exists(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> bool:
        """Return whether a key exists."""
        with self._tracing.call("exists", index):
            group = self._dispatch.batch().exists(index, key, timeout, read)
            self._tracing.join(group)
            return bool(await self._dispatch.answer(group, key, False))

    async def ttl(
        self,
        index: str,
        key: Key,
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> float | None:
        """Return the seconds until a key expires, None if it never does.

        Raises:
            KeyError: the key does not exist.
        """
        with self._tracing.call("ttl", index):
            record = await self._record(index, key, timeout, read)
            return self._calls.seconds_left(key, record)

    async def touch(
        self,
        index: str,
        key: Key,
        ttl: Ttl | None,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        version: int | None = None,
        fence: int | None = None,
    ) -> bool:
        """Set the time to live of a key (None: for ever); return whether the key exists.

        Raises:
            BelowFloor, Unavailable, TimedOut: as ``Client.touch``.
        """
        with self._tracing.call("touch", index):
            if has_registers(index) or version is not None or fence is not None:
                return await self._touch_register(index, key, ttl, version, fence, timeout)
            check_ttl(ttl)
            with nothing_written():
                record = await self._record(index, key, timeout, None)
            if record is None:
                return False
            touch = self._calls.touch(index, key, record, ttl, timeout, write)
            result: BatchResult = await self._run(touch)
            result.raise_first()
            return True

    # -- many keys

    async def batch_put(
        self,
        index: str,
        entries: Entries,
        ttl: Ttl | None = None,
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> BatchResult:
        """Store any number of values; see ``Client.batch_put``.

        ``timeout`` applies to each 25,000 keys (20,000 in an index that begins with ``@``).
        """
        with self._tracing.call("batch_put", index, entries) as span:
            mode, total = OnError.parse(on_error), BatchResult()
            with total.kept_in_errors():
                size = self._calls.keys_per_round(index, _BATCH_KEYS)
                for chunk in put_rounds(entries, size):
                    total.add(await self._run(self._calls.put(index, chunk, ttl, timeout, write)))
            span.note_outcome(total)
            return total.conclude(mode)

    async def batch_lookup(
        self,
        index: str,
        keys: Iterable[Key],
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> dict[Key, Any]:
        """Return the values of the keys that exist; see ``Client.batch_lookup``."""
        with self._tracing.call("batch_lookup", index, keys) as span:
            many = list(check_keys(keys, "batch_lookup"))
            mode = OnError.parse(on_error)
            values = await self._read_local(index, many, timeout, read)
            found: dict[Key, Any]
            if values is None:
                found = await self._run(self._calls.lookup(index, many, timeout, read, mode))
            else:
                partly, answers = PartlyRead(many, values), dict[Key, Any]()
                if partly.rest:
                    with partly.kept_in_errors():
                        lookup = self._calls.lookup(index, partly.rest, timeout, read, mode)
                        answers = await self._run(lookup)
                found = partly.with_answers(answers)
            span.note_found(len(found))
            return found

    async def batch_delete(
        self,
        index: str,
        keys: Iterable[Key],
        *,
        timeout: float | None = None,
        write: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> BatchResult:
        """Delete many keys; see ``Client.batch_delete``.

        ``timeout`` applies to each 25,000 keys (20,000 in an index that begins with ``@``).
        """
        with self._tracing.call("batch_delete", index, keys) as span:
            mode, total = OnError.parse(on_error), BatchResult()
            with total.kept_in_errors():
                size = self._calls.keys_per_round(index, _BATCH_KEYS)
                for chunk in key_rounds(keys, size, "batch_delete"):
                    total.add(await self._run(self._calls.delete(index, chunk, timeout, write)))
            span.note_outcome(total)
            return total.conclude(mode)

    # -- scans

    async def items(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
        on_error: AnyOnError = "raise",
    ) -> AsyncIterator[tuple[Key, Any]]:
        """Yield (key, value) of an index; see ``Client.items``."""
        walk = self._calls.walk(index, prefix, Scan, read, on_error)
        async for page in self._pages("items", index, walk, timeout):
            for pair in page:
                yield pair

    async def keys(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> AsyncIterator[Key]:
        """Yield the keys of an index; see ``items``."""
        walk = self._calls.walk(index, prefix, ScanKeys, read)
        async for page in self._pages("keys", index, walk, timeout):
            for key in page:
                yield key

    async def count(
        self,
        index: str,
        prefix: str | bytes = "",
        *,
        timeout: float | None = None,
        read: AnyLevel | None = None,
    ) -> int:
        """Count the keys of an index; see ``items``."""
        with self._tracing.call("count", index):
            walk = self._calls.walk(index, prefix, Count, read)
            total = 0
            while not walk.done:
                total += sum(await self._page(walk, timeout))
            return total

    def index(self, name: str) -> AsyncIndex:
        """Return one index: the methods above without their first argument."""
        check_index(name)
        return AsyncIndex(self, name)

    async def drop(
        self, index: str, prefix: str | bytes = "", *, timeout: float | None = None
    ) -> None:
        """Drop an index, or the keys of it that begin with ``prefix``; see ``Client.drop``."""
        with self._tracing.call("drop", index):
            deadline = self._calls.deadline(timeout)
            await self._view(deadline)
            await self._run(self._calls.drop(index, prefix, deadline))

    # -- the cluster

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the cluster, its members, their liveness, and the status that each reports."""
        with self._tracing.call("status"):
            deadline = self._calls.deadline(timeout)
            view = await self._view(deadline)
            return describe_cluster(view, await self._run(self._calls.status(view, deadline)))

    async def indexes(self, *, timeout: float | None = None) -> list[IndexSize]:
        """Return the indexes that have live records, with their approximate sizes, by name."""
        with self._tracing.call("indexes"):
            deadline = self._calls.deadline(timeout)
            await self._view(deadline)
            found: list[IndexSize] = await self._run(self._calls.indexes(deadline))
            return found

    async def index_settings(self, *, timeout: float | None = None) -> list[IndexDefaults]:
        """Return the indexes that have settings, by name; ``admin.set_index`` changes them.

        They are those of the topology that this client knows: it learns of changes by others with
        its next request.

        Raises:
            ChangeConflict: a member runs an earlier version, which does not apply settings.
        """
        with self._tracing.call("index_settings"):
            view = await self._view(self._calls.deadline(timeout))
            return defaults_in(view.topology)

    async def where(self, index: str, key: Key, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the partition of a key and its replicas, in rank order."""
        with self._tracing.call("where", index):
            check_index(index)
            encoded = encode_key(key)
            return describe_place(await self._view(self._calls.deadline(timeout)), encoded)

    async def topology(self, *, timeout: float | None = None) -> Topology:
        """Return the current topology, as the first peer that answers has it."""
        with self._tracing.call("topology"):
            return (await self._view(self._calls.deadline(timeout))).topology

    @property
    def admin(self) -> AsyncAdmin:
        """The admin requests of this client: ``await client.admin.remove(["a"])``."""
        return AsyncAdmin(self._view, self._run, lambda: self._calls, self._tracing)

    # -- inside

    async def _read_local(
        self, index: str, keys: list[Key], timeout: float | None, read: AnyLevel | None
    ) -> list[Any] | None:
        """Return what ``lookup_all`` of the local reads returns; other tasks run in between."""
        values: list[Any] = []
        if len(keys) > MOST_KEYS:
            return None
        for begin in range(0, len(keys), _LOCAL_KEYS):
            part = keys[begin : begin + _LOCAL_KEYS]
            some = self._dispatch.local.lookup_all(index, part, timeout, read)
            if not self._dispatch.may_answer() or (some is None and not begin):
                return None
            values += [ASK] * len(part) if some is None else some
            if len(values) < len(keys):
                await asyncio.sleep(0)
        return values or None

    async def _run(self, operation: Operation) -> Any:
        operation.trace = self._tracing.trace()
        return await self._dispatch.run(operation)

    async def _record(
        self, index: str, key: Key, timeout: float | None, read: AnyLevel | None
    ) -> Record | None:
        found = await self._run(self._calls.records(index, [key], timeout, read))
        record: Record | None = found.get(key)
        return record

    async def _pages(
        self, name: str, index: str, walk: Walk[T], timeout: float | None
    ) -> AsyncIterator[list[T]]:
        """Yield the pages of a scan, each with a span: the caller decides how long a scan takes."""
        while not walk.done:
            with self._tracing.call(name, index):
                page = await self._page(walk, timeout)
            yield page

    async def _page(self, walk: Walk[T], timeout: float | None) -> list[T]:
        deadline = self._calls.deadline(timeout)
        page: list[T] | None = None
        while page is None:
            page = walk.take(await self._run(walk.operation(self._session, deadline)))
        return page

    async def _view(self, deadline: int) -> View:
        await self._dispatch.discover(deadline)
        return self._session.known_view()
