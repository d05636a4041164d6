"""The dispatch of an asyncio client: event loop, coalescing, close."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from functools import partial
from socket import socketpair
from threading import get_ident
from typing import Any, Final, TypeVar

from dstash.client.calls import Calls
from dstash.client.discovery import identity
from dstash.client.local.reads import LocalLookup, NoLocalReads, open_local_reads
from dstash.client.operations.base import Call, Operation
from dstash.client.operations.clock_reading import ClockReadingOperation
from dstash.client.operations.short.write import ShortWrite
from dstash.client.operations.writes import WriteOperation
from dstash.client.session import Session
from dstash.client.transport.async_channel import AsyncChannel
from dstash.client.transport.coalesced import Group, WriteGroup
from dstash.client.transport.coalescing import Batch
from dstash.config.client import ClientSettings
from dstash.errors import ClosedError, DStashError, NoPeers, UsageError
from dstash.waker import NO_DESCRIPTOR, no_descriptor
from dstash.wire.keys import Key
from dstash.wire.sockets import Context
from dstash.wire.values import TypeRegistry

#: How long to wait for sockets that an interrupt left open.
_CLOSE_TIMEOUT_S: Final = 2.0
#: Timeout of a search for the cluster during calls, and the pause before the next search.
_SEARCH_TIMEOUT_MS: Final = 1000
_SEARCH_PAUSE_MS: Final = 500
#: After so many answers in a row that took no request, and so let no other task run, one waits.
_MAX_UNYIELDED: Final = 100


AnyCall = TypeVar("AnyCall", bound=Call)


class Dispatch:
    """Runs the calls of one client on the event loop that first uses it."""

    def __init__(
        self, settings: ClientSettings, session: Session, calls: Calls, types: TypeRegistry
    ) -> None:
        self._settings = settings
        self._session = session
        self._calls = calls
        self._types = types
        #: Look-ups without a request, once a loop of this process uses the client.
        self.local: LocalLookup = NoLocalReads()
        self._batch = Batch(session, calls, types)
        self._flush: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_search = 0
        self._held = 0  # calls that wait until they may start
        self._readings = 0  # how often clocks were read
        self._unyielded = 0  # answers in a row that let no other task run
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # that the loop runs on
        self._process = 0  # that the loop runs in
        self._context: Context
        self._channel: AsyncChannel
        self._finding: asyncio.Lock

    def on_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of this client, which must be the running loop.

        Raises:
            ClosedError: the client was closed.
            UsageError: the client belongs to another loop, or to the parent process.
        """
        self._check_process()  # in a forked child asyncio denies that the loop runs
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClosedError("the client was closed")
        if loop is not self._loop:
            self._settle_on(loop)
        self._thread = get_ident()
        return loop

    def batch(self) -> Batch:
        """Return the batch for calls of this iteration of the loop."""
        if self._flush is None:
            self._flush = self.on_loop().call_soon(self.flush)
        elif get_ident() != self._thread or not self._runs():
            self.on_loop()  # not every time: this check takes ten times as long
        return self._batch

    def _runs(self) -> bool:
        """Whether the loop of this client runs; it may have stopped before a flush."""
        return self._loop is not None and self._loop.is_running()

    def may_answer(self) -> bool:
        """Whether a call may be answered here without a request: on the loop of this client."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # in a forked child
            return False

    def is_others_turn(self) -> bool:
        """Count an answer without a request; return whether other tasks have waited for long."""
        self._unyielded += 1
        if self._unyielded < _MAX_UNYIELDED:
            return False
        self._unyielded = 0
        return True

    async def answer(self, group: Group, key: Key, default: Any) -> Any:
        """Wait for the answer to one key of a group."""
        future = group.join(key, default)
        try:
            return await future
        except asyncio.CancelledError:
            self.leave(group, key, future)
            raise

    def leave(self, group: Group, key: Key, future: asyncio.Future[Any]) -> None:
        """Record that a caller that waited for one key of a group was cancelled."""
        if group.drop(key, future) and group.operation is not None:
            self._channel.abandon(group.operation)

    async def run(self, operation: Operation) -> Any:
        """Drive one call to its end and return its result, or raise its error."""
        self.on_loop()
        is_write = isinstance(operation, WriteOperation)
        if is_write:
            self.flush()  # earlier calls must be stamped first
        if self._must_wait(is_write):
            self._held += 1
            try:
                await asyncio.sleep(0)  # flushed calls come first
                await self._prepare(operation.deadline, is_write)
            finally:
                self._held -= 1
        return await self._channel.run(_without_reading(operation))

    async def discover(self, deadline: int) -> None:
        """Refresh the view from the peers.

        Raises:
            NoPeers: no peer answered before the deadline.
        """
        self.on_loop()
        await self._channel.run(await self._discovery(deadline))

    @property
    def is_open(self) -> bool:
        """Whether there are connections to close; those of a parent process do not count."""
        return self._loop is not None and not self._closed and self._process == os.getpid()

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed."""
        return self._closed

    def drop(self) -> None:
        """Close every connection without waiting, from any thread."""
        loop = self._loop if self.is_open else None
        self._closed = True
        self.local.close()
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._shut)
        except RuntimeError:  # the loop is closed
            self._shut()

    async def close(self) -> None:
        """Fail pending calls, and close every connection."""
        self.local.close()
        if not self.is_open:
            self._closed = True
            return
        self.on_loop()
        self._closed = True
        for group in self._batch.take():
            self._ended(group, ClosedError("the client was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._shut()

    def flush(self) -> None:
        """Start the calls of the batch."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        groups = self._batch.take()
        try:
            self._check_process()
        except UsageError as error:  # the process was forked after the calls were made
            for group in groups:
                self._ended(group, error)
            return
        for group in groups:
            if self._must_wait(isinstance(group, WriteGroup)):
                self._begin_later(group)
            else:
                self._begin([group])

    # -- inside

    def _shut(self) -> None:
        self._channel.close()
        self._context.close(_CLOSE_TIMEOUT_S)

    def _settle_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise UsageError("this AsyncClient belongs to another event loop; make one for each")
        _check_readers(loop)
        self._context = Context(keys=identity(self._settings))
        self._channel = AsyncChannel(self._context, self._session, loop, self._search)
        self._finding = asyncio.Lock()
        self.local = open_local_reads(self._settings, self._session, self._types)
        self._loop, self._process = loop, os.getpid()

    def _check_process(self) -> None:
        if self._loop is not None and self._process != os.getpid():
            raise UsageError(
                "this AsyncClient was used in the parent process; make one in each process"
            )

    def _begin(self, groups: Iterable[Group]) -> None:
        for group in groups:
            if group.is_wanted():
                operation = _without_reading(group.begin())
                operation.trace = group.trace
                self._channel.start(operation, partial(self._ended, group))

    def _ended(self, group: Group, error: Exception | None) -> None:
        self._begin(group.ended(error))

    def _must_wait(self, is_write: bool) -> bool:
        """Whether a call must wait until the cluster is found, and for a write also its clocks.

        A write also waits behind earlier writes that wait, because stamps must have the order of
        the calls.
        """
        if self._session.is_lost:
            return True
        return is_write and (self._held > 0 or bool(self._session.unread_clocks()))

    def _begin_later(self, group: Group) -> None:
        self._held += 1
        task = self._spawn(self._prepare_and_begin(group))
        task.add_done_callback(partial(self._waited, group))

    def _waited(self, group: Group, task: asyncio.Task[None]) -> None:
        self._held -= 1
        if task.cancelled():  # here, because it may have been cancelled before its first step
            self._ended(group, ClosedError("the client was closed"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _search(self) -> None:
        """Search for the cluster during pending calls: every member may have moved."""
        now = self._session.wall()
        if now >= self._next_search and not self._closed:
            self._next_search = now + _SEARCH_TIMEOUT_MS + _SEARCH_PAUSE_MS
            self._spawn(self._search_once(now + _SEARCH_TIMEOUT_MS))

    async def _search_once(self, deadline: int) -> None:
        with suppress(DStashError):  # the calls themselves report the better error
            await self.discover(deadline)
        # Also after a success: peers that answer a greeting may reject all other requests.
        self._next_search = self._session.wall() + _SEARCH_PAUSE_MS

    async def _prepare_and_begin(self, group: Group) -> None:
        try:
            await self._prepare(group.deadline, isinstance(group, WriteGroup))
        except Exception as error:
            self._ended(group, error)
        else:
            self._begin([group])

    async def _prepare(self, deadline: int, is_write: bool) -> None:
        """Find the cluster and, for a write, read its clocks; calls continue in their order.

        What another call has done in the meantime is not repeated. If each write read the clocks
        itself, the one whose answers come first would be stamped first.
        """
        readings = self._readings
        try:
            async with asyncio.timeout((deadline - self._session.wall()) / 1000):
                await self._finding.acquire()
        except TimeoutError:
            raise NoPeers("no peer answered in time") from None
        try:
            if self._session.is_lost:
                await self.discover(deadline)
            if is_write and self._readings == readings and self._session.unread_clocks():
                await self._channel.run(ClockReadingOperation(self._session, deadline))
                self._readings += 1
        finally:
            self._finding.release()

    async def _discovery(self, deadline: int) -> Operation:
        if self._settings.peers:
            return self._calls.discovery(deadline)
        # Reading Consul or a directory blocks.
        return await asyncio.to_thread(self._calls.discovery, deadline)


def _without_reading(operation: AnyCall) -> AnyCall:
    """Let an operation rely on the clocks that ``Dispatch`` has read."""
    if isinstance(operation, WriteOperation | ShortWrite):
        operation.reads_clocks = False
    return operation


def _check_readers(loop: asyncio.AbstractEventLoop) -> None:
    """Raise ``UsageError`` if a loop cannot wait for descriptors, as the default one of Windows."""
    try:
        ours, others = socketpair()
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise no_descriptor(error.errno) from None
        raise
    with ours, others:
        try:
            loop.add_reader(ours, ours.close)
        except NotImplementedError:
            raise UsageError(
                f"{type(loop).__name__} cannot wait for sockets; run the program with "
                "asyncio.SelectorEventLoop"
            ) from None
        loop.remove_reader(ours)
