"""The connections of one process to peers, by peer id."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from dstash.errors import Unavailable, UsageError
from dstash.logger import Logger
from dstash.waker import Waker
from dstash.wire.diagnosis import Diagnoses, Shortage
from dstash.wire.names import RESOLVER, Resolver, Search, named_place
from dstash.wire.sockets import Context, Link, LinkState

_log = Logger("dstash.connections")

NOT_CONNECTED: Final = "not connected"
#: ZeroMQ's threads give back the descriptors of closed sockets within this time (seconds), and how
#: often that is checked.
_ROOM_TIMEOUT_S: Final = 0.2
_ROOM_INTERVAL_S: Final = 0.005


class Event(NamedTuple):
    """An event on a connection: a message was received, or it broke (``parts`` is None)."""

    peer: str
    parts: list[bytes] | None


class Watcher(Protocol):
    """Waits for input: a ``Poller`` or an event loop."""

    def watch(self, *sockets: Any) -> None:
        """Add sockets to wait for. Each has a ``fileno``."""

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets, which are closed next."""


class Links:
    """Opens connections on demand and yields their events.

    Args:
        context: the ZeroMQ threads to use.
        watcher: waits for the sockets.
        greeting: returns the first frames of a connection; called for each new connection.
        resolver: resolves host names; None for the resolver of the process.
    """

    def __init__(
        self,
        context: Context,
        watcher: Watcher,
        greeting: Callable[[], list[bytes]],
        resolver: Resolver | None = None,
    ) -> None:
        self._context = context
        self._watcher = watcher
        self._greeting = greeting
        self._resolver = resolver or RESOLVER
        self._links: dict[str, Link] = {}
        self._searches: dict[str, Search] = {}
        #: Woken when a name is resolved; created with the first search.
        self._answered: Waker | None = None
        #: Created when the first connection to an address fails.
        self._diagnoses: Diagnoses | None = None
        #: Peers whose connection failed: reported when it was examined, or when it came up again.
        self._unreported: set[str] = set()
        self._peer_of: dict[Any, str] = {}
        self._opened: list[str] = []
        self._written: set[str] = set()
        #: Why the connection to a peer broke last, for messages to users.
        self.reasons: dict[str, str] = {}

    def send(self, peer: str, address: str | None, parts: list[bytes]) -> bool:
        """Send without blocking; False when that is not possible now.

        ``address`` has the form that ``Link`` takes, with the key of the peer. If the address of a
        peer has changed, a new connection is opened; requests on the old connection are lost, and
        ``moved`` has reported that.
        """
        if address is None:
            return False
        link = self._links.get(peer)
        if link is None or link.address != address:
            link = self._open(peer, address)
        self._written.add(peer)
        search = self._searches.get(peer)
        if search is not None and not search.is_first_round:
            return link is not None and link.state is LinkState.UP and link.send(parts)
        if search is not None and link is None:
            search.waiting.append(parts)
            return True
        return link is not None and link.send(parts)

    def up(self, peer: str, address: str | None) -> Link | None:
        """Return the connection to a peer at that address, if it is up."""
        link = self._links.get(peer)
        if link is None or link.state is not LinkState.UP or link.address != address:
            return None
        return link

    def moved(self, peer: str, address: str | None) -> bool:
        """Drop the connection to a peer whose address changed; return whether it existed."""
        known = self._links.get(peer) or self._searches.get(peer)
        if known is None or known.address == address:
            return False
        self._drop(peer)
        self._searches.pop(peer, None)
        self._unreported.discard(peer)
        return True

    def message_from(self, ready: Any) -> Event | None:
        """Return the next message of a socket that is ready; None if it has another event."""
        peer = self._peer_of.get(ready)
        link = self._links[peer] if peer is not None else None
        if peer is None or link is None or ready is not link.socket:
            return None
        parts = link.receive()
        if parts is not None and link.has_changed:
            link.put_back(parts)  # ``events`` yields the change first
            return None
        return None if parts is None else Event(peer, parts)

    def events(self, ready: Any) -> Iterator[Event]:
        """Yield the events on a socket that is ready."""
        if self._answered is not None and ready in (self._answered, self._answered.handle):
            self._answered.clear()
            yield from self._take_answers()
            return
        diagnoses = self._diagnoses
        if diagnoses is not None and ready in (diagnoses.waker, diagnoses.waker.handle):
            yield from self._take_findings(diagnoses)
            return
        peer = self._peer_of.get(ready)
        if peer is None:
            return
        link = self._links[peer]
        if ready is not link.monitor:
            yield from self._messages(peer, link)
            return
        yield from self._changes(peer, link)
        if link.has_put_back:
            yield from self._messages(peer, link)

    def _changes(self, peer: str, link: Link) -> Iterator[Event]:
        """Yield the events of changes of a connection."""
        states = link.changes()
        for place, state in enumerate(states, 1):
            self._written.add(peer)  # waiting messages were sent
            if state is LinkState.UP:
                yield from self._came_up(peer, link)
            if state is LinkState.DOWN or state.is_final:
                if self._tries_next(peer, link):
                    return
                yield from self._failed(peer, link, is_up_again=LinkState.UP in states[place:])
        if self._links.get(peer) is link and self._is_over(peer, link):
            self._drop(peer)  # the next message tries again

    @property
    def may_have_news(self) -> bool:
        """Whether ``unnoticed`` has connections to check."""
        return bool(self._written or self._opened)

    def unnoticed(self) -> Iterator[Event]:
        """Yield the events on connections that were opened or written to since the last call.

        The descriptor of a ZeroMQ socket is edge-triggered, and a send may consume the edge. A
        caller that waits for descriptors must call this first.
        """
        while self._opened:
            peer = self._opened.pop()
            if peer in self._links:
                yield from self.events(self._links[peer].monitor)
        while self._written:
            peer = self._written.pop()
            link = self._links.get(peer)
            if link is not None and link.has_message:
                yield from self._messages(peer, link)

    def close(self) -> None:
        """Close every connection."""
        for peer in list(self._links):
            self._drop(peer)
        self._searches.clear()
        answered, self._answered = self._answered, None
        diagnoses, self._diagnoses = self._diagnoses, None
        for waker in (answered, diagnoses.waker if diagnoses else None):
            if waker is not None:
                self._watcher.forget(waker)
                waker.close()

    def why_unsent(self, peer: str) -> str:
        """Return why ``send`` returned False."""
        reason = self.reasons.get(peer, NOT_CONNECTED)
        return reason if _is_address(peer) or isinstance(reason, Shortage) else NOT_CONNECTED

    def _messages(self, peer: str, link: Link) -> Iterator[Event]:
        """Yield the messages that have arrived.

        libzmq reconnects by itself, and then delivers messages of the new connection on the same
        socket. The other side may be another process by then, so the loss is yielded first.
        """
        while (parts := link.receive()) is not None:
            if self._links.get(peer) is link and link.has_changed:
                link.put_back(parts)  # a caller that is done may not ask for the rest
                yield from self._changes(peer, link)
                continue
            yield Event(peer, parts)

    # -- the end of a connection attempt

    def _came_up(self, peer: str, link: Link) -> Iterator[Event]:
        """Record a connection; report an earlier failed attempt that is still being examined."""
        _log.debug("connected", peer=_shown(peer), address=link.place)
        self.reasons.pop(peer, None)
        if peer in self._searches:
            self._searches[peer].succeeded()
        if self._diagnoses is not None:
            self._diagnoses.succeeded(peer)
        if peer in self._unreported:  # its messages were dropped: do not wait for a reason
            self._unreported.discard(peer)
            yield Event(peer, None)

    def _failed(self, peer: str, link: Link, *, is_up_again: bool) -> Iterator[Event]:
        """Report a connection that broke, or find out first why it never came up.

        Messages that arrived before are yielded first, unless they may be of the next connection.
        """
        self.reasons[peer] = link.reason
        _log.debug(link.reason, peer=_shown(peer), address=link.place)
        diagnoses = None
        if _is_address(peer) and not (link.is_explained or link.was_up):
            diagnoses = self._started_diagnoses(peer)
        if diagnoses is not None:
            self._unreported.add(peer)
            diagnoses.begin(
                peer, link.place, has_key=link.has_key, was_closed=link.was_closed_in_handshake
            )
            return
        while not is_up_again and (parts := link.receive()) is not None:
            if link.has_changed:
                link.put_back(parts)
                break
            yield Event(peer, parts)
        yield Event(peer, None)

    def _started_diagnoses(self, peer: str) -> Diagnoses | None:
        """Return the examination of addresses; None, with the reason, if it cannot start."""
        if self._diagnoses is None:
            try:
                self._diagnoses = Diagnoses()
            except Unavailable as error:
                self.reasons[peer] = Shortage(error)
                return None
            self._watcher.watch(self._diagnoses.waker)
        return self._diagnoses

    def _take_findings(self, diagnoses: Diagnoses) -> Iterator[Event]:
        for peer, reason in diagnoses.take():
            link = self._links.get(peer)
            # While another attempt runs, its end reports the failure.
            if peer in self._unreported and (
                link is None or link.state is not LinkState.CONNECTING
            ):
                self._unreported.discard(peer)
                self.reasons[peer] = reason
                _log.debug(reason, peer=_shown(peer))
                yield Event(peer, None)

    # -- opening

    def _open(self, peer: str, address: str) -> Link | None:
        self._drop(peer)
        search = self._searches.get(peer)
        if search is None or search.address != address:
            place = named_place(address.partition(" ")[0])
            if place is None:
                self._searches.pop(peer, None)
                return self._connect(peer, address)
            try:
                self._waker()
            except Unavailable as error:
                self._searches.pop(peer, None)
                self.reasons[peer] = Shortage(error)
                return None
            search = self._searches[peer] = Search(address, place)
        return self._begin_round(peer, search)

    def _begin_round(self, peer: str, search: Search) -> Link | None:
        if not search.is_due(time.monotonic()):
            return None
        answer = self._resolver.ask(search.place.host, self._waker().wake)
        if answer is None:
            return None  # messages wait for the first answer
        search.begin_round(answer)
        link = self._connect_next(peer, search)
        if link is None:
            search.failed(time.monotonic())
            self._note_failure(peer, answer.failure)
        return link

    def _connect_next(self, peer: str, search: Search) -> Link | None:
        while (place := search.next_place()) is not None:
            link = self._connect(peer, search.address, place, search.waiting)
            if link is not None:
                search.waiting.clear()
                return link
        return None

    def _connect(
        self, peer: str, address: str, place: str = "", waiting: Iterable[list[bytes]] = ()
    ) -> Link | None:
        _log.debug("connecting", peer=_shown(peer), address=place or _shown(address))
        if isinstance(self.reasons.get(peer), Shortage):
            del self.reasons[peer]
        try:
            link = self._new_link(address, place, waiting)
        except Unavailable as error:  # no descriptor is free: the next message tries again
            self.reasons[peer] = Shortage(error)
            _log.debug(str(error), peer=_shown(peer))
            return None
        except UsageError:
            if peer == address:
                raise  # the user specified the address
            return None
        try:
            self._links[peer] = link
            self._opened.append(peer)
            self._peer_of[link.socket] = self._peer_of[link.monitor] = peer
            self._watcher.watch(link.socket, link.monitor)
        except BaseException:  # an interrupt
            self._links[peer] = link
            self._drop(peer)
            raise
        return link

    def _new_link(self, address: str, place: str, waiting: Iterable[list[bytes]]) -> Link:
        """Open a connection; if no descriptor is free, first close connections that are not used.

        Raises:
            UsageError: the address cannot be used.
            Unavailable: no descriptor is free.
        """
        latest = 0.0
        while True:
            try:
                return Link(self._context, address, self._greeting, place, waiting)
            except Unavailable:
                now = time.monotonic()
                if self._context.make_room():
                    latest = now + _ROOM_TIMEOUT_S
                if now >= latest:
                    raise
                time.sleep(_ROOM_INTERVAL_S)

    def _note_failure(self, peer: str, reason: str) -> None:
        """Record why no address of a name could be used."""
        if not isinstance(self.reasons.get(peer), Shortage):
            self.reasons[peer] = reason

    def _waker(self) -> Waker:
        if self._answered is None:
            self._answered = Waker()
            self._watcher.watch(self._answered)
        return self._answered

    # -- peers with host names

    def _tries_next(self, peer: str, link: Link) -> bool:
        """Try the next address of a peer's name if this address never answered."""
        search = self._searches.get(peer)
        if search is None or link.was_up:
            return False
        search.waiting = link.unsent
        self._drop(peer)
        return self._connect_next(peer, search) is not None or not self._fails(search)

    def _fails(self, search: Search) -> bool:
        """End a round; return whether it was the first, which is the only round to report."""
        was_first = search.is_first_round
        search.failed(time.monotonic())
        return was_first

    def _is_over(self, peer: str, link: Link) -> bool:
        # A name may have other or new addresses; libzmq would retry only this address.
        is_down = link.state is LinkState.DOWN
        return link.state.is_final or (
            is_down and (peer in self._searches or link.was_closed_in_handshake)
        )

    def _take_answers(self) -> Iterator[Event]:
        """Connect to peers whose names are resolved."""
        for peer, search in list(self._searches.items()):
            answer = self._resolver.known(search.place.host)
            link = self._links.get(peer)
            if answer is None:
                continue
            if link is not None:
                places = {search.place.at(number) for number in answer.numbers}
                if link.state is not LinkState.CONNECTING or link.place in places:
                    continue  # it is up, or still connecting
                search.waiting = link.take_waiting()
                self._drop(peer)
            search.begin_round(answer)
            if self._connect_next(peer, search) is None and self._fails(search):
                self._note_failure(peer, answer.failure)
                yield Event(peer, None)

    def _drop(self, peer: str) -> None:
        link = self._links.get(peer)
        if link is not None:
            self._watcher.forget(link.socket, link.monitor)
            self._peer_of.pop(link.socket, None)
            self._peer_of.pop(link.monitor, None)
            link.close()
            self._links.pop(peer, None)  # last: an interrupt leaves it to ``close``


def _is_address(peer: str) -> bool:
    """Whether a peer is known by its address only."""
    return "://" in peer


def _shown(peer: str) -> str:
    """Return a peer for the log: an address without the key of the peer."""
    return peer.partition(" ")[0]
