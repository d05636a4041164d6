"""The only file that opens ZeroMQ sockets, and the options that keep them honest.

Each option is there because its default once hurt somebody: see the comments. The classes here
hide ZeroMQ's flags and exceptions; nothing above imports ``zmq``.
"""

from __future__ import annotations

import _thread
import errno
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
import zmq

from dstash import threads
from dstash.cpu_scheduling import BRIEF, time_slice
from dstash.errors import ClosedError, DStashError, UsageError
from dstash.limits import MAX_FRAME_BYTES, MAX_FRAME_PARTS
from dstash.wire.connections import Connections, Limits
from dstash.wire.names import listening_places

if TYPE_CHECKING:
    from dstash.wire.security import KeyPair

_log = structlog.get_logger("dstash.wire")

#: The one domain that connections are authenticated for; see ``security.py``.
ZAP_DOMAIN: Final = b"dstash"

_EVENT: Final = struct.Struct("=hi")

#: How often (seconds) connections are checked when there are few.
_CHECK_EVERY: Final = 0.05
#: Frames of one message that are dropped in one go.
_DISCARD: Final = 10_000
#: Messages that may wait in one connection before it counts as stuck.
_HIGH_WATER: Final = 512


def _set_common(socket: zmq.Socket[bytes]) -> None:
    socket.set(zmq.LINGER, 0)  # infinite by default: exit would hang
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)  # unlimited by default
    socket.set(zmq.SNDHWM, _HIGH_WATER)
    socket.set(zmq.RCVHWM, _HIGH_WATER)
    socket.set(zmq.HEARTBEAT_IVL, 1000)  # off by default: a half-open connection stays for ever
    socket.set(zmq.HEARTBEAT_TIMEOUT, 5000)
    socket.set(zmq.HEARTBEAT_TTL, 10_000)
    socket.set(zmq.HANDSHAKE_IVL, 1000)  # 30 s by default: idle connections eat all descriptors
    socket.set(zmq.IPV6, 1)


def _failure(what: str, error: zmq.ZMQError) -> DStashError:
    if isinstance(error, zmq.ContextTerminated) or error.errno in (errno.EFAULT, errno.ENOTSUP):
        return ClosedError("the connections were closed")
    return DStashError(f"{what}: {_reason(error)}")


def _reason(error: zmq.ZMQError) -> str:
    return os.strerror(error.errno or 0) if (error.errno or 0) < 1000 else str(error.strerror)


class _ZmqContext(zmq.Context[zmq.Socket[bytes]]):
    def __del__(self) -> None:
        """Leave it to its owner: pyzmq's would wait for sockets that are open, perhaps for ever."""


class Context:
    """The ZeroMQ threads of one owner. Not usable after a fork: make a new one there.

    Args:
        io_threads: how many.
        keys: who this process is; None for an open cluster. With keys, every connection uses
            CURVE, but for those that are asked for as plain ones by name.
    """

    def __init__(self, io_threads: int = 1, keys: KeyPair | None = None) -> None:
        self.pid = os.getpid()
        self.keys = keys
        self._context = _ZmqContext(io_threads)

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """Open a socket with the common options.

        Raises:
            ClosedError: another thread has closed this context.
        """
        socket = None
        try:
            with time_slice(BRIEF):  # the first socket begins ZeroMQ's threads
                socket = self._context.socket(kind)
            _set_common(socket)
        except BaseException as error:
            if socket is not None:
                socket.close(linger=0)
            if isinstance(error, zmq.ZMQError):
                raise _failure("cannot open a socket", error) from None
            raise  # an interrupt
        return socket

    def close(self, patience: float | None = None) -> None:
        """Stop the threads; waits for sockets that were closed with a time to leave.

        Does nothing in a forked child, to which the threads did not come along.

        Args:
            patience: how long (seconds) to wait for sockets that are still open; None for ever.
                After it the threads end by themselves once the last socket is closed. Calls that
                use one fail at once in any case.
        """
        if os.getpid() != self.pid:
            return
        if patience is None:
            self._context.term()
            return
        ended = _thread.allocate_lock()
        ended.acquire()
        # Without ``threading``, whose locks a signal handler may find held by its own thread.
        _thread.start_new_thread(self._end, (ended,))
        ended.acquire(timeout=patience)

    def _end(self, ended: _thread.LockType) -> None:
        try:
            self._context.term()
        finally:
            ended.release()


class Received(NamedTuple):
    """A message: the routing id of its sender, its frames, and the sender's public key.

    ``user`` is None for a message that came without CURVE. The key, not the routing id, says who
    someone is: anybody may choose any routing id.
    """

    sender: bytes
    parts: list[bytes]
    user: str | None


class Router:
    """The socket of a peer: many clients, each under a routing id.

    Args:
        context: with keys, only CURVE connections are taken.
        address: where to listen.
        plain: a second address, for connections without CURVE, while a cluster is being closed.
        limits: of the connections; None for none.

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
        # Without it a message to a client that is gone, or too slow, is dropped without a word.
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        # A listener takes the options as they are when it is bound.
        self.plain_address = self._bind(plain) if plain else ""
        if context.keys is not None:
            self._close_to_strangers(context.keys)
        self.address = self._bind(address)

    def _close_to_strangers(self, keys: KeyPair) -> None:
        self.socket.set(zmq.CURVE_SERVER, 1)
        self.socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self.socket.set(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self.socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else without a handler any key gets in

    def _bind(self, address: str) -> str:
        try:
            self._bind_first_of(listening_places(address))
        except UsageError:
            self.close_after(0)
            raise
        except zmq.ZMQError as error:
            self.close_after(0)
            raise UsageError(f"cannot listen on {address}: {_reason(error)}") from None
        endpoint = self.socket.get(zmq.LAST_ENDPOINT)
        return endpoint.decode().rstrip("\0") if isinstance(endpoint, bytes) else address

    def _bind_first_of(self, places: list[str]) -> None:
        """Bind the first of several places that can be bound."""
        for place in places[:-1]:
            with suppress(zmq.ZMQError):
                self.socket.bind(place)
                return
        self.socket.bind(places[-1])

    def receive(self) -> Received | None:
        """Return one message, None when none waits.

        Of a message with too many frames the first are returned, and the connection is cut. Of
        one whose connection cannot be known, and so cannot be bounded, none are.
        """
        if self._is_discarding:
            self._discard()
            return None
        try:
            first = frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        parts: list[bytes] = []
        while frame.more and len(parts) <= MAX_FRAME_PARTS:
            frame = self.socket.recv(zmq.NOBLOCK, copy=False)
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
        """Drop frames of a message of which enough was seen: there may be millions."""
        for _ in range(_DISCARD):
            if not self.socket.recv(zmq.NOBLOCK, copy=False).more:
                self._is_discarding = False
                return

    def _user(self, frame: zmq.Frame) -> str | None:
        try:
            return str(frame.get("User-Id"))
        except zmq.ZMQError:
            return None  # it came through the plain address

    def send(self, to: bytes, parts: list[bytes]) -> bool:
        """Send without waiting; False when that client is gone or does not take its answers."""
        weight = self.connections.gives(to, parts) if self.connections is not None else 0
        try:
            self.socket.send_multipart([to, *parts], zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError):
            if self.connections is not None:
                self.connections.gave_nothing(to, weight)
            return False
        return True

    def is_slow(self, sender: bytes) -> bool:
        """Whether a client leaves too many answers unread to be given more."""
        return self.connections is not None and self.connections.is_slow(sender)

    def defers(self, sender: bytes) -> bool:
        """Whether a read of a client should wait until others have read their answers."""
        return self.connections is not None and self.connections.defers(sender)

    def lacks_room(self, sender: bytes) -> bool:
        """Whether so many answers wait to be read that a client should be given no large one."""
        return self.connections is not None and self.connections.lacks_room(sender)

    def shut_out(self, users: Collection[str]) -> None:
        """End the connections of public keys that may connect no more."""
        if self.connections is not None:
            self.connections.shut_out(users)

    def close_after(self, seconds: float) -> None:
        """Close; answers already given have that long to leave."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self.socket.close(linger=int(seconds * 1000))


def _descriptor(frame: zmq.Frame) -> int | None:
    """Return the socket that a frame came from; None from a client of before ZMTP 3.0 (2013)."""
    try:
        return int(str(frame.get("__fd")))
    except zmq.ZMQError:
        return None


class _Watch:
    """Hears of new connections of a router, and has all of them checked, on a thread."""

    def __init__(self, socket: zmq.Socket[bytes], connections: Connections) -> None:
        self._router = socket
        self._connections = connections
        self._monitor = socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
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
            due = time.monotonic() + _CHECK_EVERY * (1 + len(self._connections) / 100)
            while (left := due - time.monotonic()) > 0 and not self._stop.is_set():
                if self._monitor.poll(max(1, int(left * 1000))):
                    self._take()
                    if self._connections.are_too_many:
                        break
            self._check()

    def _check(self) -> None:
        try:
            self._connections.check()
        except Exception:  # this thread must not end: there would be no limits any more
            _log.exception("could not check connections")

    def _take(self) -> None:
        event, _address = self._monitor.recv_multipart()
        number, value = _EVENT.unpack(event[: _EVENT.size])
        if number == zmq.EVENT_ACCEPTED:
            self._connections.opened(value)


#: Why a peer that was reached does not talk to this side.
KEY_UNKNOWN: Final = "it does not know the key of this side"


class LinkState(Enum):
    """Where a connection to a peer stands. From the last two ZeroMQ does not try again."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "connection lost"
    REFUSED = KEY_UNKNOWN
    FOREIGN = "one side asks for CURVE and the other does not, or it does not speak ZeroMQ"

    @property
    def is_final(self) -> bool:
        """Whether a new link is needed to try again."""
        return self in (LinkState.REFUSED, LinkState.FOREIGN)


#: What libzmq's monitor says, and what it means for the link.
_TRANSITIONS: Final = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: LinkState.UP,
    zmq.EVENT_DISCONNECTED: LinkState.DOWN,
    zmq.EVENT_CLOSED: LinkState.DOWN,
    zmq.EVENT_CONNECT_RETRIED: LinkState.DOWN,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: LinkState.DOWN,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: LinkState.FOREIGN,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: LinkState.REFUSED,
}


class Link:
    """One connection to one peer that knows whether it stands.

    Messages sent while it is still connecting wait; messages sent while it is down are refused;
    ZeroMQ goes on trying in the background. What ``greeting`` returns is sent first on every
    connection.

    Args:
        context: with keys, they say who this process is.
        address: ``tcp://host:port``; and behind a space the public key that the peer must prove
            to be its own. Without one the connection goes without CURVE.
        place: where to connect in fact, when the address has a name for a host.
        waiting: messages to be sent first, when it stands.
    """

    def __init__(
        self,
        context: Context,
        address: str,
        greeting: Callable[[], list[bytes]],
        place: str = "",
        waiting: Iterable[list[bytes]] = (),
    ) -> None:
        self.address = address
        given, _, key = address.partition(" ")
        self.place = place or given
        self._greeting = greeting
        self.state = LinkState.CONNECTING
        self.was_up = False
        self._waiting = deque(waiting)
        #: What waited for a connection that failed.
        self.unsent: list[list[bytes]] = []
        self.monitor: zmq.Socket[bytes]  # there once the socket is set up
        self.socket = context.socket(zmq.DEALER)
        try:
            self._connect(context.keys, key)
        except BaseException as error:
            self.close()
            if isinstance(error, zmq.ZMQError):
                text = f"cannot connect to {self.place!r}: {_reason(error)}"
                raise UsageError(text) from None
            raise  # an interrupt, or keys that are missing

    def _connect(self, keys: KeyPair | None, key: str) -> None:
        self.socket.set(zmq.IMMEDIATE, 1)  # else messages queue for a dead peer, delivered later
        self.socket.set(zmq.RECONNECT_IVL, 50)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket.set(zmq.CONNECT_TIMEOUT, 1000)
        self.monitor = self.socket.get_monitor_socket(sum(_TRANSITIONS))
        if key:
            self._prove(keys, key)
        self.socket.connect(self.place)

    def _prove(self, keys: KeyPair | None, key: str) -> None:
        if keys is None:
            raise UsageError(f"{self.address} asks for CURVE: set curve, cert_file and key_file")
        self.socket.set(zmq.CURVE_SERVERKEY, key.encode())
        self.socket.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
        self.socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())

    def send(self, parts: list[bytes]) -> bool:
        """Send without waiting; False when the peer is not connected or takes no more."""
        if self.state is LinkState.CONNECTING:
            self._waiting.append(parts)
            return True
        return self.state is LinkState.UP and self._send_now(parts)

    def _send_now(self, parts: list[bytes]) -> bool:
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def take_waiting(self) -> list[list[bytes]]:
        """Return the messages that wait for the connection, and forget them."""
        waiting, self._waiting = self._waiting, deque()
        return list(waiting)

    def receive(self) -> list[bytes] | None:
        """Return the frames of one message, None when none waits."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.ZMQError:
            return None

    def changes(self) -> list[LinkState]:
        """Return the states this link went through since the last call, oldest first."""
        seen = []
        while (state := self._next_state()) is not None:
            if state is not self.state and not self.state.is_final:
                self.state = state
                self._flush(state)
                seen.append(state)
        return seen

    def _next_state(self) -> LinkState | None:
        try:
            event, _address = self.monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.ZMQError:
            return None
        return _TRANSITIONS[_EVENT.unpack(event[: _EVENT.size])[0]]

    def _flush(self, state: LinkState) -> None:
        waiting, self._waiting = self._waiting, deque()
        if state is not LinkState.UP:
            self.unsent = list(waiting)
            return
        self.was_up = True
        for parts in (self._greeting(), *waiting):
            self._send_now(parts)

    def close(self) -> None:
        """Close at once; what was not sent is dropped."""
        if not self.socket.closed:  # by the collector of garbage
            with suppress(zmq.ContextTerminated):  # by another thread; it waits for these sockets
                self.socket.disable_monitor()
        monitor = getattr(self, "monitor", None)
        if monitor is not None:
            monitor.close(linger=0)
        self.socket.close(linger=0)


class Waker:
    """Wakes a thread that waits in a ``Poller``.

    ``wake`` may be called from any thread, and from a signal handler.
    """

    def __init__(self) -> None:
        self.handle = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Reentrant: the handler may interrupt its own thread in the middle of a wake.
        self._lock = threading.RLock()

    def fileno(self) -> int:
        """Return the descriptor, which has input after a wake."""
        return self.handle

    def wake(self) -> None:
        """Make the poller return now, or at once when it waits next."""
        with self._lock:
            if self.handle >= 0:
                os.eventfd_write(self.handle, 1)

    def clear(self) -> None:
        """Forget the calls so far."""
        try:
            os.eventfd_read(self.handle)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Release the descriptor."""
        with self._lock:
            handle, self.handle = self.handle, -1
            if handle >= 0:
                os.close(handle)


class Poller:
    """Waits for any of several sockets and wakers."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def watch(self, *sockets: Any) -> None:
        """Wait for input on sockets (or file descriptors) too."""
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets; those that an interrupt kept from ``watch`` are not known."""
        for socket in sockets:
            with suppress(KeyError):
                self._poller.unregister(socket)

    def wait(self, milliseconds: int) -> Iterable[Any]:
        """Return those with input after at most that time; negative waits for ever."""
        try:
            return [ready for ready, _ in self._poller.poll(milliseconds)]
        except zmq.ZMQError as error:
            raise _failure("waiting for sockets failed", error) from None
