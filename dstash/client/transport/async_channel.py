"""Moves the messages of many calls at once over one set of connections, on an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from dstash.client.operations.base import Chunk, Operation
from dstash.client.session import Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import ClosedError, DStashError, ProtocolError
from dstash.wire.envelope import Envelope, decode
from dstash.wire.links import Event, Links
from dstash.wire.sockets import Context

#: How long (seconds) answers may be worked on before others have their turn on the loop.
_SLICE: Final = 0.005

#: Told when a call has ended: with the error that was no answer to it, or None to ask it.
Ended = Callable[[Exception | None], None]


class _Flight:
    """A call under way."""

    __slots__ = ("asked", "due", "ended", "fault", "is_fed", "operation", "over", "timer")

    def __init__(self, operation: Operation, ended: Ended) -> None:
        self.operation = operation
        self.ended = ended
        self.asked: list[int] = []
        self.due = 0
        self.timer: asyncio.TimerHandle | None = None
        self.fault: Exception | None = None
        self.is_fed = False
        self.over = False


class _Bystander(Operation):
    """Listens to what answers no call: greetings, pings, answers that came too late."""

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield from ()


class AsyncChannel:
    """Connections to peers, used by any number of calls on one event loop.

    ZeroMQ shows news on a file descriptor, once; so a socket is read until it is empty each time,
    and looked at again after something was sent on it.

    Args:
        context: the ZeroMQ threads to use.
        session: the shared state of the client.
        loop: the event loop; everything here must be called on it.
        search: called when no member is known to be where it was; may begin a call that asks.
    """

    def __init__(
        self,
        context: Context,
        session: Session,
        loop: asyncio.AbstractEventLoop,
        search: Callable[[], None],
    ) -> None:
        self._session = session
        self._search = search
        self._loop = loop
        self._links = Links(context, self, session.greeting)
        self._flights: dict[Operation, _Flight] = {}
        self._asker: dict[int, _Flight] = {}
        self._heard: dict[str, int] = {}
        self._stores: dict[str, Sighting] = {}
        self._look: asyncio.Handle | None = None
        self._behind = 0  # how many times reading was broken off to let others have their turn

    # -- calls

    async def run(self, operation: Operation) -> Any:
        """Drive a call to its end and return its result, or raise its error.

        Cancelling it abandons the call: what was sent may be done or not.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self.start(operation, partial(_settle, future))
        try:
            await future
        finally:
            self.abandon(operation)
        return operation.result()

    def start(self, operation: Operation, ended: Ended) -> None:
        """Begin a call; ``ended`` is called once, unless the call is abandoned before."""
        operation.share(self._heard)
        operation.stores = self._stores
        flight = self._flights[operation] = _Flight(operation, ended)
        self._step(flight, partial(self._first, operation))

    def abandon(self, operation: Operation) -> None:
        """Forget a call for which nobody waits any more."""
        flight = self._flights.get(operation)
        if flight is not None:
            self._forget(flight)

    def close(self) -> None:
        """Close every connection; calls under way fail."""
        for flight in list(self._flights.values()):
            flight.fault = ClosedError("the client was closed")
            self._end(flight)
        if self._look is not None:
            self._look.cancel()
        self._links.close()

    # -- what Links needs to wait for input

    def watch(self, *sockets: Any) -> None:
        """Wait for input on sockets too."""
        for socket in sockets:
            self._loop.add_reader(socket.fileno(), self._on_news, socket)

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets."""
        for socket in sockets:
            if not self._loop.is_closed():  # which has let go of all of them
                self._loop.remove_reader(socket.fileno())

    # -- one step of a call

    def _first(self, operation: Operation, now: int) -> list[Send]:
        sends = self._session.probes(now) + operation.more(now)
        # Most calls have one slab, and know it when the next one is asked for.
        return sends + operation.more(now) if operation.hungry else sends

    def _feed(self, flight: _Flight) -> None:
        """Send a slab; ``_tend`` sees to the next one, when others had their turn."""
        flight.is_fed = False
        if flight.operation.hungry and not flight.over:
            self._step(flight, flight.operation.more)

    def _step(self, flight: _Flight, act: Callable[[int], list[Send]]) -> None:
        try:
            self._send(act(self._session.wall()), flight)
        except DStashError as error:
            flight.operation.fail(error)
        except Exception as error:  # a bug must not leave a caller waiting for ever
            flight.fault = error
        self._tend(flight)

    def _tend(self, flight: _Flight) -> None:
        """End a call that is done; see to it that others are woken in time."""
        if flight.over:
            return
        if flight.fault is not None or flight.operation.done:
            self._end(flight)
            return
        if flight.operation.hungry and not flight.is_fed:
            flight.is_fed = True
            self._loop.call_soon(self._feed, flight)
        due = flight.operation.wakeup()
        if flight.timer is None or due < flight.due:
            self._set_timer(flight, due)

    def _set_timer(self, flight: _Flight, due: int) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
        delay = max(0, due - self._session.wall()) / 1000
        flight.due = due
        flight.timer = self._loop.call_later(delay, self._on_time, flight)

    def _on_time(self, flight: _Flight) -> None:
        flight.timer = None
        self._take(self._links.unnoticed())
        if flight.over:
            return
        if self._behind:  # the answer may be here, and only wait to be read
            flight.timer = self._loop.call_later(_SLICE, self._on_time, flight)
        elif self._session.wall() >= flight.operation.wakeup():
            self._step(flight, flight.operation.tick)
        else:
            self._tend(flight)
        if self._flights and self._session.is_lost:
            self._search()

    def _end(self, flight: _Flight) -> None:
        self._forget(flight)
        flight.ended(flight.fault)

    def _forget(self, flight: _Flight) -> None:
        flight.over = True
        self._flights.pop(flight.operation, None)
        for correlation in flight.asked:
            self._asker.pop(correlation, None)
        if flight.timer is not None:
            flight.timer.cancel()

    # -- messages

    def _send(self, sends: list[Send], flight: _Flight) -> None:
        queue = deque(sends)
        while queue:
            send = queue.popleft()
            address = self._session.endpoint(send.peer)
            if self._links.moved(send.peer, address):
                self._lose(send.peer, "it moved")
            if not flight.over:
                self._asker[send.correlation] = flight
                flight.asked.append(send.correlation)
            if not self._links.send(send.peer, address, send.frames):
                queue.extend(flight.operation.unsent(send, self._session.wall()))
        self._look_soon()

    def _post(self, sends: list[Send]) -> None:
        """Send what belongs to no call, and has no answer."""
        for send in sends:
            self._links.send(send.peer, self._session.endpoint(send.peer), send.frames)

    def _look_soon(self) -> None:
        if self._look is None and self._links.may_have_news:
            self._look = self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._take(self._links.unnoticed())

    def _on_news(self, socket: Any) -> None:
        self._take(self._links.events(socket))
        self._look_soon()

    def _take(self, events: Iterator[Event]) -> None:
        enough = self._loop.time() + _SLICE
        for peer, parts in events:
            if parts is None:
                self._lose(peer, self._links.reasons.get(peer, "connection lost"))
            else:
                self._receive(peer, parts)
            if self._loop.time() > enough:
                self._behind += 1
                self._loop.call_soon(self._take_rest, events)
                return

    def _take_rest(self, events: Iterator[Event]) -> None:
        self._behind -= 1
        self._take(events)

    def _lose(self, peer: str, reason: str) -> None:
        self._session.forget_protocol(peer)
        self._stores.pop(peer, None)
        for flight in list(self._flights.values()):
            lost = flight.operation.lost
            self._step(flight, lambda now, lost=lost: lost(peer, now, reason))  # type: ignore[misc]
        missed = self._session.outstanding.lost(peer)
        self._post(self._session.hints(missed, self._session.wall()))
        if self._flights and self._session.is_lost:
            self._search()

    def _receive(self, peer: str, parts: list[bytes]) -> None:
        try:
            envelope = decode(parts)
        except ProtocolError:
            return  # not an answer to anything: the call goes on waiting, and then elsewhere
        flight = self._asker.pop(envelope.correlation, None)
        if flight is None:
            self._overhear(peer, envelope)
        else:
            self._step(flight, partial(flight.operation.receive, peer, envelope))

    def _overhear(self, peer: str, envelope: Envelope) -> None:
        now = self._heard[peer] = self._session.wall()
        listener = _Bystander(self._session, now)
        listener.stores = self._stores
        self._post(listener.receive(peer, envelope, now))
        if listener.error is not None:  # the peer is of another cluster
            for flight in list(self._flights.values()):
                flight.operation.fail(listener.error)
                self._tend(flight)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
