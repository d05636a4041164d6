"""The connections of one process to peers, by peer id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from dstash.errors import UsageError
from dstash.wire.sockets import Context, Link, LinkState


class Event(NamedTuple):
    """What happened on a connection: a message came in, or (``parts`` is None) it broke."""

    peer: str
    parts: list[bytes] | None


class Watcher(Protocol):
    """Who waits for input: a ``Poller``, or an event loop."""

    def watch(self, *sockets: Any) -> None:
        """Wait for input on sockets too. Each has a ``fileno``."""

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets; they are closed next."""


class Links:
    """Opens connections when they are needed, and tells what happens on them.

    Args:
        context: the ZeroMQ threads to use.
        watcher: told of every socket to wait for.
        greeting: returns the frames that begin a new connection.
    """

    def __init__(
        self, context: Context, watcher: Watcher, greeting: Callable[[], list[bytes]]
    ) -> None:
        self._context = context
        self._watcher = watcher
        self._greeting = greeting
        self._links: dict[str, Link] = {}
        self._peer_of: dict[Any, str] = {}
        self._opened: list[str] = []
        self._written: set[str] = set()
        #: Why the connection to a peer broke last, for people.
        self.reasons: dict[str, str] = {}

    def send(self, peer: str, address: str | None, parts: list[bytes]) -> bool:
        """Send without waiting; False when that cannot be done now.

        ``address`` is of the form that ``Link`` takes: the key of a peer is a part of it.
        A peer that has moved to another address is connected anew; what it was asked at the old
        one is lost, and ``moved`` told so before.
        """
        if address is None:
            return False
        link = self._links.get(peer)
        if link is None or link.address != address:
            link = self._open(peer, address)
        self._written.add(peer)
        return link is not None and link.send(parts)

    def moved(self, peer: str, address: str | None) -> bool:
        """Drop the connection to a peer that is elsewhere now; whether there was one."""
        link = self._links.get(peer)
        if link is None or link.address == address:
            return False
        self._drop(peer)
        return True

    def events(self, ready: Any) -> Iterator[Event]:
        """Yield what happened on a socket that the poller found ready."""
        peer = self._peer_of.get(ready)
        if peer is None:
            return
        link = self._links[peer]
        if ready is not link.monitor:
            yield from _messages(peer, link)
            return
        for state in link.changes():
            self._written.add(peer)  # what waited for the connection was sent
            if state is LinkState.DOWN or state.is_final:
                self.reasons[peer] = state.value
                yield from _messages(peer, link)  # what it said before it went
                yield Event(peer, None)
        if link.state.is_final and self._links.get(peer) is link:
            self._drop(peer)  # the next message tries again

    @property
    def may_have_news(self) -> bool:
        """Whether ``unnoticed`` has anywhere to look."""
        return bool(self._written or self._opened)

    def unnoticed(self) -> Iterator[Event]:
        """Yield what happened on connections that were opened, or written to, since the last look.

        A socket's file descriptor tells of news once, never before the first look, and sending
        may be what hears it: whoever waits for descriptors must look here before.
        """
        while self._opened:
            peer = self._opened.pop()
            if peer in self._links:
                yield from self.events(self._links[peer].monitor)
        while self._written:
            peer = self._written.pop()
            if peer in self._links:
                yield from _messages(peer, self._links[peer])

    def close(self) -> None:
        """Close every connection."""
        for peer in list(self._links):
            self._drop(peer)

    def _open(self, peer: str, address: str) -> Link | None:
        if peer in self._links:
            self._drop(peer)
        try:
            link = Link(self._context, address, self._greeting())
        except UsageError:
            if peer == address:
                raise  # the user gave it
            return None
        self._links[peer] = link
        self._opened.append(peer)
        self._peer_of[link.socket] = self._peer_of[link.monitor] = peer
        self._watcher.watch(link.socket, link.monitor)
        return link

    def _drop(self, peer: str) -> None:
        link = self._links.pop(peer)
        self._watcher.forget(link.socket, link.monitor)
        del self._peer_of[link.socket], self._peer_of[link.monitor]
        link.close()


def _messages(peer: str, link: Link) -> Iterator[Event]:
    while (parts := link.receive()) is not None:
        yield Event(peer, parts)
