"""The connections of a blocking call: one call at a time, in the caller's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from dstash.client.operations.base import Call
from dstash.client.operations.short.call import ShortCall
from dstash.client.session import Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import DStashError, ProtocolError
from dstash.wire.envelope import decode
from dstash.wire.links import Links
from dstash.wire.sockets import Context, Link, Poller, links_with_messages

#: Creates the operation that finds the cluster, given its deadline.
Find = Callable[[int], Call]

#: Timeout of a search for the cluster within a call, and the pause before the next search.
_SEARCH_TIMEOUT_MS: Final = 1000
_SEARCH_PAUSE_MS: Final = 500
#: The longest time for which only the sockets are read from which answers are expected.
_MAX_UNPOLLED_MS: Final = 200


class Channel:
    """Connections to peers, used by one thread at a time.

    Args:
        context: the ZeroMQ threads to use.
        session: the state that all calls of the client share.
    """

    def __init__(self, context: Context, session: Session) -> None:
        self._session = session
        self._poller = Poller()
        self._links = Links(context, self._poller, session.greeting)
        self._stores: dict[str, Sighting] = {}
        self._next_find = 0
        #: When all sockets were polled last.
        self._polled_at = 0
        #: The call, and the search for the cluster within it: both get every message.
        self._running: list[Call] = []
        #: The thread that uses it, 0 if there is none; and when it was used last, if that counts.
        self.thread = 0
        self.idle_since = 0.0

    def run(
        self,
        operation: Call,
        find: Find | None = None,
        received: Sequence[tuple[str, list[bytes]]] = (),
    ) -> Any:
        """Drive a call to its end and return its result, or raise its error.

        Args:
            operation: the call.
            find: creates the operation that finds the cluster, in case every member has moved.
            received: peer and frames of messages that were received for it already.
        """
        operation.stores = self._stores
        self._running.append(operation)
        try:
            for peer, parts in received:
                self._receive(peer, parts)
            if isinstance(operation, ShortCall):
                self._drive_short(operation)
            if not operation.done:
                self._drive(operation, find)
        finally:
            self._running.pop()
        return operation.result()

    def _drive(self, operation: Call, find: Find | None) -> None:
        wall = self._session.wall
        self._send(self._session.probes(wall()), operation)
        while not any(running.done for running in self._running):
            if find is not None and self._session.is_lost and wall() >= self._next_find:
                self._find_cluster(find)
            if operation.hungry:
                self._send(operation.more(wall()), operation)
            if operation.hungry:  # most calls have a single part, and end their chunks here
                self._send(operation.more(wall()), operation)
            if not operation.done:
                self._pump(operation, 0 if operation.hungry else None)

    def _drive_short(self, call: ShortCall) -> None:
        """Drive a short call until it is done, or until an operation has taken it over."""
        if call.hungry:
            now = self._session.wall()
            sends = call.more(now)
            links = None
            if call.is_running_short:
                links = self.quick_links([send.peer for send in sends], now)
            if links is None:
                self._send(sends, call)
            else:
                self._drive_quickly(call, sends, links)
        while call.is_running_short:
            for ready in self._ready(max(0, call.wakeup() - self._session.wall())):
                self._take_message(ready, call)
            if call.is_running_short and (now := self._session.wall()) >= call.wakeup():
                self._send(call.tick(now), call)

    def _drive_quickly(self, call: ShortCall, sends: list[Send], links: list[Link]) -> None:
        """Send requests and take plain answers, while nothing else happens."""
        peers = {}
        for send, link in zip(sends, links, strict=True):
            peers[link] = send.peer
            if not link.send(send.frames):
                self._send([send], call)  # which reports it
        while call.is_running_short:
            ready = links_with_messages(links)
            if not ready:
                return
            for link in ready:
                peer, parts = peers[link], link.receive()
                if parts is None:
                    return
                answered = call.receive_frames(peer, parts, self._session.wall())
                if answered is None:
                    if link.has_changed:
                        link.put_back(parts)  # the change precedes it
                    else:
                        self._receive(peer, parts)
                    return
                if answered:
                    self._send(answered, call)
                if call.done:
                    return  # the next call reads the rest

    def _take_message(self, ready: Any, call: ShortCall) -> None:
        if call.done:
            return  # the next call reads the rest
        event = self._links.message_from(ready)
        if event is None:
            self._pump(call, 0)  # a connection changed
        else:
            self._receive(event.peer, event.parts or [])

    def quick_links(self, peers: Sequence[str], now: int) -> list[Link] | None:
        """Return the connections to peers, if all are up.

        None too if other sockets were not polled for a while: their events must be read.
        """
        if now - self._polled_at > _MAX_UNPOLLED_MS:
            return None
        links, session = [], self._session
        for peer in peers:
            link = self._links.up(peer, session.endpoint(peer))
            if link is None:
                return None
            links.append(link)
        return links

    def close(self) -> None:
        """Close every connection."""
        self._links.close()

    def _find_cluster(self, find: Find) -> None:
        now = self._session.wall()
        with suppress(DStashError):  # the call itself reports the better error
            self.run(find(now + _SEARCH_TIMEOUT_MS))
        # Also after a success: peers that answer a greeting may reject all other requests.
        self._next_find = self._session.wall() + _SEARCH_PAUSE_MS

    def _send(self, sends: list[Send], operation: Call) -> None:
        queue = deque(sends)
        while queue:
            send = queue.popleft()
            address = self._session.endpoint(send.peer)
            if self._links.moved(send.peer, address):
                self._lost(send.peer, "it moved")
            if not self._links.send(send.peer, address, send.frames):
                why = self._links.why_unsent(send.peer)
                queue.extend(operation.unsent(send, self._session.wall(), why))

    def _pump(self, operation: Call, timeout: int | None) -> None:
        if timeout is None:
            timeout = max(0, operation.wakeup() - self._session.wall())
        for ready in self._ready(timeout):
            for peer, parts in self._links.events(ready):
                if parts is None:
                    self._lost(peer, self._links.reasons.get(peer, "connection lost"))
                else:
                    self._receive(peer, parts)
                if operation.done:
                    return  # the next call reads the rest
        now = self._session.wall()
        if not operation.done and now >= operation.wakeup():
            self._send(operation.tick(now), operation)

    def _ready(self, timeout: int) -> Iterable[Any]:
        """Return the sockets with input, after at most that time (milliseconds)."""
        ready = self._poller.wait(timeout)
        self._polled_at = self._session.wall()
        return ready

    def _lost(self, peer: str, why: str) -> None:
        self._session.forget_protocol(peer)
        self._stores.pop(peer, None)
        for operation in tuple(self._running):
            self._send(operation.lost(peer, self._session.wall(), why), operation)

    def _receive(self, peer: str, parts: list[bytes]) -> None:
        last = self._running[-1]
        if isinstance(last, ShortCall):
            sends = last.receive_frames(peer, parts, self._session.wall())
            if sends is not None:
                self._send(sends, last)
                return
        try:
            envelope = decode(parts)
        except ProtocolError:
            return  # not an answer: the call keeps waiting, then asks another peer
        for operation in tuple(self._running):
            self._send(operation.receive(peer, envelope, self._session.wall()), operation)
