"""The listening socket of a peer, with the limits of its connections."""

from __future__ import annotations

import math
import select
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final, NamedTuple

import zmq

from dstash import threads
from dstash.errors import UsageError
from dstash.limits import MAX_FRAME_PARTS
from dstash.logger import Logger
from dstash.wire.connections.connections import Connections, Limits
from dstash.wire.curve import listen_with
from dstash.wire.names import listening_places
from dstash.wire.sockets import MONITOR_EVENT, NOBLOCK, Context, reason_of, send_parts

_log = Logger("dstash.wire")

#: Plain numbers, because arithmetic with flags is slow.
_EVENTS: Final = int(zmq.EVENTS)
_INPUT: Final = int(zmq.POLLIN)

#: Seconds between two checks of the connections, when there are few; while no message moves; and
#: when little has moved for some time.
_CHECK_INTERVAL_S: Final = 0.05
_QUIET_INTERVAL_S: Final = 0.1
_CALM_INTERVAL_S: Final = 0.25
#: Frames of one message that are discarded in one call.
_DISCARDED_FRAMES: Final = 10_000


class Received(NamedTuple):
    """A message: the routing id of its sender, its frames, and the sender's public key.

    ``user`` is None for a message without CURVE. Only the key identifies a sender: a client may
    choose any routing id.
    """

    sender: bytes
    parts: list[bytes]
    user: str | None


class Router:
    """The socket of a peer: many clients, each with a routing id.

    Args:
        context: with keys, the router accepts only CURVE connections.
        address: the address to listen on.
        plain: a second address, without CURVE, for the transition from an open cluster.
        limits: the limits of the connections; None sets none.

    Raises:
        UsageError: an address cannot be bound (in use, not of this machine, malformed).
    """

    def __init__(
        self,
        context: Context,
        address: str,
        plain: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self._has_keys = context.keys is not None
        self._is_discarding = False
        self.connections: Connections | None = None
        self._watch: _Watch | None = None
        if limits is not None:
            self.connections = Connections(limits, curve=self._has_keys)
            self._watch = _Watch(self.socket, self.connections)
        # By default a message to a client that is gone, or too slow, is dropped silently.
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        # A listener uses the options that are set when it is bound.
        self.plain_address = self._bind(plain) if plain else ""
        if context.keys is not None:
            listen_with(self.socket, context.keys)
        self.address = self._bind(address)

    def _bind(self, address: str) -> str:
        try:
            self._bind_first_of(listening_places(address))
        except UsageError:
            self.close_after(0)
            raise
        except zmq.ZMQError as error:
            self.close_after(0)
            raise UsageError(f"cannot listen on {address}: {reason_of(error)}") from None
        endpoint = self.socket.get(zmq.LAST_ENDPOINT)
        return endpoint.decode().rstrip("\0") if isinstance(endpoint, bytes) else address

    def _bind_first_of(self, places: list[str]) -> None:
        """Bind the first endpoint that can be bound."""
        for place in places[:-1]:
            with suppress(zmq.ZMQError):
                self.socket.bind(place)
                return
        self.socket.bind(places[-1])

    @property
    def has_message(self) -> bool:
        """Whether ``receive`` would return a message; faster than to find none."""
        return bool(self.socket.getsockopt(_EVENTS) & _INPUT)  # type: ignore[operator]  # it is an int

    def receive(self) -> Received | None:
        """Return the next message, None if there is none.

        If a message has too many frames, its first frames are returned and the connection is cut.
        If its connection is unknown, and therefore cannot be limited, no frames are returned.
        """
        if self._is_discarding:
            self._discard()
            return None
        try:
            first = frame = self.socket.recv(NOBLOCK, copy=False)
        except zmq.Again:
            return None
        parts: list[bytes] = []
        while frame.more and len(parts) <= MAX_FRAME_PARTS:
            frame = self.socket.recv(NOBLOCK, copy=False)
            parts.append(frame.bytes)
        self._is_discarding = frame.more
        sender, user = first.bytes, self._user(first) if self._has_keys else None
        if self.connections is not None:
            if not self.connections.knows(sender):
                fd = _descriptor(first)
                if fd is None:
                    return Received(sender, [], user)
                self.connections.introduce(sender, fd, user)
            self.connections.took(sender, parts)
            if self._is_discarding:
                self.connections.send_away(sender, "its message has too many frames")
        return Received(sender, parts, user)

    def _discard(self) -> None:
        """Discard some frames of an oversized message: it may have millions."""
        for _ in range(_DISCARDED_FRAMES):
            if not self.socket.recv(NOBLOCK, copy=False).more:
                self._is_discarding = False
                return

    def _user(self, frame: zmq.Frame) -> str | None:
        try:
            return str(frame.get("User-Id"))
        except zmq.ZMQError:
            return None  # received on the plain address

    def send(self, to: bytes, parts: list[bytes]) -> bool:
        """Send without blocking; False when the client is gone or does not read its answers."""
        weight = self.connections.gives(to, parts) if self.connections is not None else 0
        try:
            send_parts(self.socket, [to, *parts])
        except (zmq.Again, zmq.ZMQError):
            if self.connections is not None:
                self.connections.gave_nothing(to, weight)
            return False
        return True

    def address_of(self, sender: bytes) -> str:
        """Return the address of a client, as host:port; empty if it is not known."""
        return "" if self.connections is None else self.connections.address_of(sender)

    def is_slow(self, sender: bytes) -> bool:
        """Whether a client has too many unread answers to be sent more."""
        return self.connections is not None and self.connections.is_slow(sender)

    def defers(self, sender: bytes) -> bool:
        """Whether a read of a client should wait until other clients have read their answers."""
        return self.connections is not None and self.connections.defers(sender)

    def lacks_room(self, sender: bytes) -> bool:
        """Whether too many answers are unread to send this client a large one."""
        return self.connections is not None and self.connections.lacks_room(sender)

    def shut_out(self, users: Collection[str]) -> None:
        """Cut the connections of public keys that are no longer authorised."""
        if self.connections is not None:
            self.connections.shut_out(users)

    def close_after(self, seconds: float) -> None:
        """Close; unsent answers are still sent for that many seconds."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self.socket.close(linger=int(seconds * 1000))


def _descriptor(frame: zmq.Frame) -> int | None:
    """Return the descriptor that a frame came from; None for clients older than ZMTP 3.0 (2013)."""
    try:
        return int(str(frame.get("__fd")))
    except zmq.ZMQError:
        return None


class _Watch:
    """Registers new connections of a router and checks all connections, on its own thread."""

    def __init__(self, socket: zmq.Socket[bytes], connections: Connections) -> None:
        self._router = socket
        self._connections = connections
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        # Python's poll: that of ZeroMQ takes as long as a whole check.
        self._poller = select.poll()
        self._poller.register(self._monitor.fileno(), select.POLLIN)
        self._has_more = True
        self._stop = threading.Event()
        self._thread = threads.thread(self._run, name="connections", may_end=self._stop.is_set)
        self._thread.start()

    def close(self) -> None:
        """Stop, before the router is closed."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._connections.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            due = time.monotonic() + self._pause() * (1 + len(self._connections) / 100)
            while (left := due - time.monotonic()) > 0 and not self._stop.is_set():
                # The descriptor is not ready again for events that are left.
                if self._has_more or self._poller.poll(math.ceil(left * 1000)):
                    self._has_more = self._take()
                    if self._connections.are_too_many:
                        break
            self._check()

    def _pause(self) -> float:
        if self._connections.is_calm:
            return _CALM_INTERVAL_S
        return _QUIET_INTERVAL_S if self._connections.was_quiet else _CHECK_INTERVAL_S

    def _check(self) -> None:
        try:
            self._connections.check()
        except Exception:  # this thread must not end: no limit would be enforced
            _log.exception("cannot check connections")

    def _take(self) -> bool:
        """Take an event; returns whether there was one."""
        try:
            event, _address = self._monitor.recv_multipart(NOBLOCK)
        except zmq.Again:
            return False
        number, value = MONITOR_EVENT.unpack(event[: MONITOR_EVENT.size])
        if number == zmq.EVENT_ACCEPTED:
            self._connections.opened(value)
        return True
