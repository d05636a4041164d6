"""The connections of an asyncio client: many calls at once, on one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from dstash.client.operations.base import Call, Chunk, Operation
from dstash.client.operations.short.call import ShortCall
from dstash.client.session import Send, Session
from dstash.client.sightings import Sighting
from dstash.errors import ClosedError, DStashError, ProtocolError
from dstash.wire.envelope import Envelope, decode
from dstash.wire.links import Event, Links
from dstash.wire.sockets import Context

#: How long answers are processed before other tasks of the loop may run.
_SLICE_S: Final = 0.005

#: Called when a call has ended: with an unexpected error, or None if the operation has the result.
Ended = Callable[[Exception | None], None]


class _RunningCall:
    """A pending call."""

    __slots__ = ("asked", "due", "ended", "fault", "is_fed", "operation", "over", "timer")

    def __init__(self, operation: Call, ended: Ended) -> None:
        self.operation = operation
        self.ended = ended
        self.asked: list[int] = []
        self.due = 0
        self.timer: asyncio.TimerHandle | None = None
        self.fault: Exception | None = None
        self.is_fed = False
        self.over = False


class _Bystander(Operation):
    """Processes the messages that belong to no call: greetings, pings, late answers."""

    def _chunks(self) -> Iterator[list[Chunk]]:
        yield from ()


class AsyncChannel:
    """Connections to peers, used by any number of calls on one event loop.

    ZeroMQ signals input on a file descriptor only once. So each time a socket is read until it is
    empty, and checked again after a message was sent on it.

    Args:
        context: the ZeroMQ threads to use.
        session: the state that all calls of the client share.
        loop: the event loop; everything here must be called on it.
        search: called when all members are suspect; may start a call that finds the cluster.
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
        self._running: dict[Call, _RunningCall] = {}
        self._asker: dict[int, _RunningCall] = {}
        self._heard: dict[str, int] = {}
        self._stores: dict[str, Sighting] = {}
        self._look: asyncio.Handle | None = None
        self._behind = 0  # how many reads were interrupted to let other tasks run

    # -- calls

    async def run(self, operation: Call) -> Any:
        """Drive a call to its end and return its result, or raise its error.

        Cancellation abandons the call: requests that were sent may be carried out or not.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        self.start(operation, partial(_settle, future))
        try:
            await future
        finally:
            self.abandon(operation)
        return operation.result()

    def start(self, operation: Call, ended: Ended) -> None:
        """Start a call; ``ended`` is called once, unless the call is abandoned before."""
        operation.share(self._heard)
        operation.stores = self._stores
        call = self._running[operation] = _RunningCall(operation, ended)
        self._step(call, partial(self._first, operation))

    def abandon(self, operation: Call) -> None:
        """Drop a call whose callers have all been cancelled."""
        call = self._running.get(operation)
        if call is not None:
            self._forget(call)

    def close(self) -> None:
        """Close every connection; pending calls fail."""
        for call in list(self._running.values()):
            call.fault = ClosedError("the client was closed")
            self._end(call)
        if self._look is not None:
            self._look.cancel()
        self._links.close()

    # -- called by Links to wait for input

    def watch(self, *sockets: Any) -> None:
        """Start waiting for input on sockets."""
        for socket in sockets:
            self._loop.add_reader(socket.fileno(), self._on_input, socket)

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets."""
        for socket in sockets:
            if not self._loop.is_closed():  # a closed loop has removed its readers
                self._loop.remove_reader(socket.fileno())

    # -- one step of a call

    def _first(self, operation: Call, now: int) -> list[Send]:
        sends = self._session.probes(now) + operation.more(now)
        # Most calls have a single part, and end their chunks here.
        return sends + operation.more(now) if operation.hungry else sends

    def _feed(self, call: _RunningCall) -> None:
        """Send the next chunks; ``_tend`` schedules further ones, so that other tasks can run."""
        call.is_fed = False
        if call.operation.hungry and not call.over:
            self._step(call, call.operation.more)

    def _step(self, call: _RunningCall, act: Callable[[int], list[Send]]) -> None:
        try:
            self._send(act(self._session.wall()), call)
        except DStashError as error:
            call.operation.fail(error)
        except Exception as error:  # a bug must not block the caller for ever
            call.fault = error
        self._tend(call)

    def _tend(self, call: _RunningCall) -> None:
        """End a call if it is done; otherwise schedule its next step."""
        if call.over:
            return
        if call.fault is not None or call.operation.done:
            self._end(call)
            return
        if call.operation.hungry and not call.is_fed:
            call.is_fed = True
            self._loop.call_soon(self._feed, call)
        due = call.operation.wakeup()
        if call.timer is None or due < call.due:
            self._set_timer(call, due)

    def _set_timer(self, call: _RunningCall, due: int) -> None:
        if call.timer is not None:
            call.timer.cancel()
        delay = max(0, due - self._session.wall()) / 1000
        call.due = due
        call.timer = self._loop.call_later(delay, self._on_time, call)

    def _on_time(self, call: _RunningCall) -> None:
        call.timer = None
        self._take(self._links.unnoticed())
        if call.over:
            return
        if self._behind:  # the answer may have arrived, but not been read
            call.timer = self._loop.call_later(_SLICE_S, self._on_time, call)
        elif self._session.wall() >= call.operation.wakeup():
            self._step(call, call.operation.tick)
        else:
            self._tend(call)
        if self._running and self._session.is_lost:
            self._search()

    def _end(self, call: _RunningCall) -> None:
        self._forget(call)
        call.ended(call.fault)

    def _forget(self, call: _RunningCall) -> None:
        call.over = True
        self._running.pop(call.operation, None)
        for correlation in call.asked:
            self._asker.pop(correlation, None)
        if call.timer is not None:
            call.timer.cancel()

    # -- messages

    def _send(self, sends: list[Send], call: _RunningCall) -> None:
        queue = deque(sends)
        while queue:
            send = queue.popleft()
            address = self._session.endpoint(send.peer)
            if self._links.moved(send.peer, address):
                self._lose(send.peer, "it moved")
            if not call.over:
                self._asker[send.correlation] = call
                call.asked.append(send.correlation)
            if not self._links.send(send.peer, address, send.frames):
                why = self._links.why_unsent(send.peer)
                queue.extend(call.operation.unsent(send, self._session.wall(), why))
        self._look_soon()

    def _post(self, sends: list[Send]) -> None:
        """Send messages that belong to no call and get no answer."""
        for send in sends:
            self._links.send(send.peer, self._session.endpoint(send.peer), send.frames)

    def _look_soon(self) -> None:
        if self._look is None and self._links.may_have_news:
            self._look = self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._take(self._links.unnoticed())

    def _on_input(self, socket: Any) -> None:
        self._take(self._links.events(socket))
        self._look_soon()

    def _take(self, events: Iterator[Event]) -> None:
        enough = self._loop.time() + _SLICE_S
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
        for call in list(self._running.values()):
            self._step(call, partial(_lost, call.operation, peer, reason))
        missed = self._session.outstanding.lost(peer)
        self._post(self._session.hints(missed, self._session.wall()))
        if self._running and self._session.is_lost:
            self._search()

    def _receive(self, peer: str, parts: list[bytes]) -> None:
        if len(self._running) == 1 and self._receive_short(peer, parts):
            return
        try:
            envelope = decode(parts)
        except ProtocolError:
            return  # not an answer: the call keeps waiting, then asks another peer
        call = self._asker.pop(envelope.correlation, None)
        if call is None:
            self._overhear(peer, envelope)
        else:
            self._step(call, partial(call.operation.receive, peer, envelope))

    def _receive_short(self, peer: str, parts: list[bytes]) -> bool:
        """Let the only call take a message as frames, if it is short; false if it has not."""
        [call] = self._running.values()
        operation, sends = call.operation, None
        if not isinstance(operation, ShortCall) or not operation.is_running_short:
            return False
        try:
            sends = operation.receive_frames(peer, parts, self._session.wall())
            if sends is None:
                return False
            self._send(sends, call)
        except DStashError as error:
            operation.fail(error)
        except Exception as error:  # a bug must not block the caller for ever
            call.fault = error
        self._tend(call)
        return True

    def _overhear(self, peer: str, envelope: Envelope) -> None:
        now = self._heard[peer] = self._session.wall()
        listener = _Bystander(self._session, now)
        listener.stores = self._stores
        self._post(listener.receive(peer, envelope, now))
        if listener.error is not None:  # the peer belongs to another cluster
            for call in list(self._running.values()):
                call.operation.fail(listener.error)
                self._tend(call)


def _lost(operation: Call, peer: str, reason: str, now: int) -> list[Send]:
    """Tell an operation at a time that a connection was lost."""
    return operation.lost(peer, now, reason)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
