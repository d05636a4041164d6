"""Moves the messages of one call at a time over its own connections, in the caller's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from dstash.client.operations.base import Operation
from dstash.client.session import Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import DStashError, ProtocolError
from dstash.wire.envelope import decode
from dstash.wire.links import Links
from dstash.wire.sockets import Context, Poller

#: Makes the operation that finds the cluster, from its deadline.
Find = Callable[[int], Operation]

#: How long (milliseconds) to look for the cluster in the middle of a call, and when to look again.
_FIND_MS: Final = 1000
_FIND_AGAIN_MS: Final = 500


class Channel:
    """Connections to peers, used by one thread at a time.

    Args:
        context: the ZeroMQ threads to use.
        session: the shared state of the client.
    """

    def __init__(self, context: Context, session: Session) -> None:
        self._session = session
        self._poller = Poller()
        self._links = Links(context, self._poller, session.greeting)
        self._stores: dict[str, Sighting] = {}
        self._next_find = 0
        #: The call, and behind it the search for the cluster in the middle of it: both are told
        #: what comes in, whoever waits for it.
        self._running: list[Operation] = []

    def run(self, operation: Operation, find: Find | None = None) -> Any:
        """Drive a call to its end and return its result, or raise its error.

        Args:
            operation: the call.
            find: makes the operation that finds the cluster, for the case that every member has
                moved meanwhile; it is given its deadline.
        """
        operation.stores = self._stores
        self._running.append(operation)
        try:
            self._drive(operation, find)
        finally:
            self._running.pop()
        return operation.result()

    def _drive(self, operation: Operation, find: Find | None) -> None:
        wall = self._session.wall
        self._send(self._session.probes(wall()), operation)
        while not any(one.done for one in self._running):
            if find is not None and self._session.is_lost and wall() >= self._next_find:
                self._find_cluster(find)
            if operation.hungry:
                self._send(operation.more(wall()), operation)
            if operation.hungry:  # most calls have one slab, and know it only now
                self._send(operation.more(wall()), operation)
            if not operation.done:
                self._pump(operation, 0 if operation.hungry else None)

    def close(self) -> None:
        """Close every connection."""
        self._links.close()

    def _find_cluster(self, find: Find) -> None:
        now = self._session.wall()
        with suppress(DStashError):  # the call itself knows better what became of it
            self.run(find(now + _FIND_MS))
        # After a success, too: peers that answer a greeting may refuse everything else.
        self._next_find = self._session.wall() + _FIND_AGAIN_MS

    def _send(self, sends: list[Send], operation: Operation) -> None:
        queue = deque(sends)
        while queue:
            send = queue.popleft()
            address = self._session.endpoint(send.peer)
            if self._links.moved(send.peer, address):
                self._lost(send.peer, "it moved")
            if not self._links.send(send.peer, address, send.frames):
                queue.extend(operation.unsent(send, self._session.wall()))

    def _pump(self, operation: Operation, patience: int | None) -> None:
        if patience is None:
            patience = max(0, operation.wakeup() - self._session.wall())
        for ready in self._poller.wait(patience):
            for peer, parts in self._links.events(ready):
                if parts is None:
                    self._lost(peer, self._links.reasons.get(peer, "connection lost"))
                else:
                    self._receive(peer, parts)
                if operation.done:
                    return  # what else there is can be read by the next call
        now = self._session.wall()
        if not operation.done and now >= operation.wakeup():
            self._send(operation.tick(now), operation)

    def _lost(self, peer: str, why: str) -> None:
        self._session.forget_protocol(peer)
        self._stores.pop(peer, None)
        for operation in tuple(self._running):
            self._send(operation.lost(peer, self._session.wall(), why), operation)

    def _receive(self, peer: str, parts: list[bytes]) -> None:
        try:
            envelope = decode(parts)
        except ProtocolError:
            return  # not an answer to anything: the call goes on waiting, and then elsewhere
        for operation in tuple(self._running):
            self._send(operation.receive(peer, envelope, self._session.wall()), operation)
