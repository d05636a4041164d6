"""ZeroMQ contexts, links to peers, and the poller.

Only this module, ``router.py`` and ``curve.py`` import ``zmq``: the classes hide its flags and
exceptions. Each socket option is set because its default is a problem: see the comments.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from enum import Enum
from typing import Any, Final

import zmq

from dstash.cpu_scheduling import BRIEF, time_slice
from dstash.errors import ClosedError, DStashError, UsageError
from dstash.limits import MAX_FRAME_BYTES
from dstash.waker import NO_DESCRIPTOR, no_descriptor
from dstash.wire.curve import KeyPair, connect_with
from dstash.wire.diagnosis import NEEDS_CURVE, NO_CURVE

#: A message of a monitor socket: event, value.
MONITOR_EVENT: Final = struct.Struct("=hi")
#: Messages that may wait in one connection; with more, it counts as stuck.
_HIGH_WATER_MESSAGES: Final = 512
_HANDSHAKE_TIMEOUT_S: Final = 1.0
#: Descriptors that must be free before ZeroMQ starts its threads: it aborts the process if it gets
#: some of them, and not all.
_FIRST_DESCRIPTORS: Final = 8
#: Sockets of a context. A connection takes three; the default is 1023.
_MAX_SOCKETS: Final = 8192
#: How long (milliseconds) ``Link.await_message`` waits.
_AWAIT_MS: Final = 20
#: Plain numbers, because arithmetic with flags is slow.
_EVENTS: Final = int(zmq.EVENTS)
_INPUT: Final = int(zmq.POLLIN)
#: The value of ``HANDSHAKE_FAILED_PROTOCOL`` when only one side uses CURVE.
_MECHANISM_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)


#: Plain numbers, because arithmetic with flags is slow.
NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE_FOLLOWS: Final = int(zmq.SNDMORE) | NOBLOCK


#: The ``send`` below that of ``zmq.Socket``, which takes as long to prepare options of no use here.
_send: Final = zmq.backend.Socket.send


def send_parts(socket: zmq.Socket[bytes], parts: list[bytes]) -> None:
    """Send a message without blocking; faster than ``send_multipart``.

    Raises:
        zmq.ZMQError: the message was not sent.
    """
    for part in parts[:-1]:
        _send(socket, part, _MORE_FOLLOWS)
    _send(socket, parts[-1], NOBLOCK)


def receive_parts(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Return the frames of the next message without blocking; faster than ``recv_multipart``.

    Raises:
        zmq.ZMQError: there is no message.
    """
    frame = socket.recv(NOBLOCK, copy=False)
    parts = [frame.bytes]
    while frame.more:
        frame = socket.recv(NOBLOCK, copy=False)
        parts.append(frame.bytes)
    return parts


def _set_common(socket: zmq.Socket[bytes]) -> None:
    socket.set(zmq.LINGER, 0)  # infinite by default: exit would hang
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)  # unlimited by default
    socket.set(zmq.SNDHWM, _HIGH_WATER_MESSAGES)
    socket.set(zmq.RCVHWM, _HIGH_WATER_MESSAGES)
    socket.set(zmq.HEARTBEAT_IVL, 1000)  # off by default: a half-open connection stays forever
    socket.set(zmq.HEARTBEAT_TIMEOUT, 5000)
    socket.set(zmq.HEARTBEAT_TTL, 10_000)
    socket.set(
        zmq.HANDSHAKE_IVL, int(_HANDSHAKE_TIMEOUT_S * 1000)
    )  # 30 s by default: idle connections eat all descriptors
    socket.set(zmq.IPV6, 1)


def _failure(action: str, error: zmq.ZMQError) -> DStashError:
    if isinstance(error, zmq.ContextTerminated) or error.errno in (errno.EFAULT, errno.ENOTSUP):
        return ClosedError("the connections were closed")
    if error.errno in NO_DESCRIPTOR:
        return no_descriptor(error.errno)
    return DStashError(f"{action}: {reason_of(error)}")


def reason_of(error: zmq.ZMQError) -> str:
    """Return the text of a ZeroMQ error."""
    return os.strerror(error.errno or 0) if (error.errno or 0) < 1000 else str(error.strerror)


def _check_free_descriptors(count: int) -> None:
    """Raise ``Unavailable`` unless that many descriptors are free."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise no_descriptor(error.errno) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


class _ZmqContext(zmq.Context[zmq.Socket[bytes]]):
    def __del__(self) -> None:
        """Do nothing: pyzmq's destructor waits for open sockets, perhaps forever."""


class Context:
    """The ZeroMQ threads of one owner. Not usable after a fork: the child creates its own.

    Args:
        io_threads: their number.
        keys: the keys of this process; None for an open cluster. With keys, every connection uses
            CURVE, except those that are opened as plain sockets.
        brief_time_slices: give ZeroMQ's threads brief CPU time slices. Only for the daemon of a
            peer: a client must not change the scheduling of the process that uses it.
        make_room: called when no descriptor is free, from any thread that opens a connection.
            Closes unused connections of this context; returns whether there were any.
    """

    def __init__(
        self,
        io_threads: int = 1,
        keys: KeyPair | None = None,
        *,
        brief_time_slices: bool = False,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pid = os.getpid()
        self.keys = keys
        self.make_room = make_room
        self._is_started = False
        self._brief_time_slices = brief_time_slices
        self._context = _ZmqContext(io_threads)
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """Open a socket with the common options.

        Raises:
            ClosedError: another thread has closed this context.
            Unavailable: no descriptor is free.
        """
        if not self._is_started:
            _check_free_descriptors(_FIRST_DESCRIPTORS)
        socket = None
        try:
            # The first socket starts ZeroMQ's threads, which inherit the time slice.
            with time_slice(BRIEF) if self._brief_time_slices else nullcontext():
                socket = self._context.socket(kind)
            self._is_started = True
            _set_common(socket)
        except BaseException as error:
            if socket is not None:
                socket.close(linger=0)
            if isinstance(error, zmq.ZMQError):
                raise _failure("cannot open a socket", error) from None
            raise  # an interrupt
        return socket

    def close(self, patience: float | None = None) -> None:
        """Stop the threads, after closed sockets have sent what their linger time allows.

        Does nothing in a forked child, which has none of the threads.

        Args:
            patience: seconds to wait for sockets that are still open; None waits without limit.
                After it the threads end once the last socket is closed. Calls that use an open
                socket fail at once in either case.
        """
        if os.getpid() != self.pid:
            return
        if patience is None:
            self._context.term()
            return
        ended = _thread.allocate_lock()
        ended.acquire()
        # Not ``threading``: a signal handler may interrupt a thread that holds one of its locks.
        _thread.start_new_thread(self._end, (ended,))
        ended.acquire(timeout=patience)

    def _end(self, ended: _thread.LockType) -> None:
        try:
            self._context.term()
        finally:
            ended.release()


#: Why a peer refuses the connection of this side.
KEY_UNKNOWN: Final = "it does not know the key of this side"


class LinkState(Enum):
    """The state of a connection to a peer. After the last two ZeroMQ does not reconnect."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "connection lost"
    REFUSED = KEY_UNKNOWN
    FOREIGN = "one side asks for CURVE and the other does not, or it does not speak ZeroMQ"

    @property
    def is_final(self) -> bool:
        """Whether a new link is needed to try again."""
        return self in (LinkState.REFUSED, LinkState.FOREIGN)


#: The state of a link after each event of libzmq's monitor.
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
    """One connection to one peer, with its state.

    Messages sent while it connects wait; messages sent while it is down are refused. ZeroMQ
    reconnects in the background. The frames that ``greeting`` returns are sent first on every
    connection.

    Args:
        context: its keys identify this process.
        address: ``tcp://host:port``, optionally with a space and the public key that the peer must
            prove. Without a key the connection does not use CURVE.
        place: the numeric endpoint to connect to, if the address has a host name.
        waiting: messages to send first once the connection is up.

    Raises:
        UsageError: the address cannot be used.
        Unavailable: no descriptor is free.
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
        self.has_key = bool(key)
        self._began = time.monotonic()
        #: What libzmq reported of a failure, if it was more than the state.
        self._reported = ""
        #: Whether the peer closed a connection with CURVE before it was up.
        self.was_closed_in_handshake = False
        self._waiting = deque(waiting)
        self._put_back: deque[list[bytes]] = deque()
        #: Messages that waited for a connection that failed.
        self.unsent: list[list[bytes]] = []
        self.monitor: zmq.Socket[bytes]  # set once the socket is set up
        self.socket = context.socket(zmq.DEALER)
        self._waiting_for = [(self.socket, _INPUT)]
        try:
            self._connect(context.keys, key)
        except BaseException as error:
            self.close()
            if isinstance(error, zmq.ZMQError):
                if error.errno in NO_DESCRIPTOR:
                    raise no_descriptor(error.errno) from None
                text = f"cannot connect to {self.place!r}: {reason_of(error)}"
                raise UsageError(text) from None
            raise  # an interrupt, or missing keys

    def _connect(self, keys: KeyPair | None, key: str) -> None:
        self.socket.set(zmq.IMMEDIATE, 1)  # by default messages queue for a peer that is down
        self.socket.set(zmq.RECONNECT_IVL, 50)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        self.socket.set(zmq.CONNECT_TIMEOUT, 1000)
        self.monitor = self.socket.get_monitor_socket(sum(_TRANSITIONS))
        if key:
            if keys is None:
                raise UsageError(
                    f"{self.address} requires CURVE: set curve, cert_file and key_file"
                )
            connect_with(self.socket, keys, key)
        # ZeroMQ opens the connection on its own thread, where this would look like a refusal.
        _check_free_descriptors(1)
        self.socket.connect(self.place)

    @property
    def reason(self) -> str:
        """Why the connection is not up."""
        return self._reported or self.state.value

    @property
    def is_explained(self) -> bool:
        """Whether ``reason`` is the cause itself."""
        return bool(self._reported) or self.state is LinkState.REFUSED

    def send(self, parts: list[bytes]) -> bool:
        """Send without blocking; False when the peer is not connected or its queue is full."""
        if self.state is LinkState.CONNECTING:
            self._waiting.append(parts)
            return True
        return self.state is LinkState.UP and self._send_now(parts)

    def _send_now(self, parts: list[bytes]) -> bool:
        try:
            send_parts(self.socket, parts)
        except zmq.ZMQError:
            return False
        return True

    def take_waiting(self) -> list[list[bytes]]:
        """Remove and return the messages that wait for the connection."""
        waiting, self._waiting = self._waiting, deque()
        return list(waiting)

    def receive(self) -> list[bytes] | None:
        """Return the frames of the next message, None if there is none."""
        if self._put_back:
            return self._put_back.popleft()
        try:
            return receive_parts(self.socket)
        except zmq.ZMQError:
            return None

    @property
    def has_message(self) -> bool:
        """Whether ``receive`` may return a message; faster than to find none."""
        return bool(self._put_back) or self._has_input(self.socket)

    def put_back(self, parts: list[bytes]) -> None:
        """Return a message, to be received again."""
        self._put_back.appendleft(parts)

    @property
    def has_put_back(self) -> bool:
        """Whether a message was returned."""
        return bool(self._put_back)

    @property
    def has_changed(self) -> bool:
        """Whether ``changes`` has something to return.

        A message that was received before is of the connection before the change, or of a later
        one: libzmq reports a change before it delivers messages of a new connection.
        """
        return self._has_input(self.monitor)

    def _has_input(self, socket: zmq.Socket[bytes]) -> bool:
        try:
            events: Any = socket.getsockopt(_EVENTS)
        except zmq.ZMQError:  # the context was closed
            return False
        return bool(events & _INPUT)

    def await_message(self) -> list[bytes] | None:
        """Return the frames of the next message; None if there is none within 20 ms."""
        if not self._put_back:
            try:
                zmq.zmq_poll(self._waiting_for, _AWAIT_MS)  # a receive starts again at each signal
            except zmq.ZMQError:
                return None
        return self.receive()

    def changes(self) -> list[LinkState]:
        """Return the states that the link went through since the last call, oldest first."""
        seen = []
        while (state := self._next_state()) is not None:
            if state is not self.state and not self.state.is_final:
                is_early = time.monotonic() - self._began < _HANDSHAKE_TIMEOUT_S / 2
                self.was_closed_in_handshake = (
                    self.has_key and state is LinkState.DOWN and not self.was_up and is_early
                )
                self.state = state
                self._flush(state)
                seen.append(state)
        return seen

    def _next_state(self) -> LinkState | None:
        try:
            event, _address = receive_parts(self.monitor)
        except zmq.ZMQError:
            return None
        kind, value = MONITOR_EVENT.unpack(event[: MONITOR_EVENT.size])
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM_MISMATCH:
            self._reported = NO_CURVE if self.has_key else NEEDS_CURVE
        return _TRANSITIONS[kind]

    def _flush(self, state: LinkState) -> None:
        waiting, self._waiting = self._waiting, deque()
        if state is not LinkState.UP:
            self.unsent = list(waiting)
            return
        self.was_up = True
        for parts in (self._greeting(), *waiting):
            self._send_now(parts)

    def close(self) -> None:
        """Close at once; unsent messages are dropped."""
        if not self.socket.closed:  # by the garbage collector
            with suppress(zmq.ContextTerminated):  # by a thread that waits for these sockets
                self.socket.disable_monitor()
        monitor = getattr(self, "monitor", None)
        if monitor is not None:
            monitor.close(linger=0)
        self.socket.close(linger=0)


def links_with_messages(links: Sequence[Link]) -> list[Link]:
    """Return those of some links whose next message has arrived; none if none does within 20 ms."""
    wait = 0 if any(link.has_put_back for link in links) else _AWAIT_MS
    try:
        ready = zmq.zmq_poll([(link.socket, _INPUT) for link in links], wait)
    except zmq.ZMQError:
        return []
    arrived = {socket for socket, _ in ready}
    return [link for link in links if link.socket in arrived or link.has_put_back]


class Poller:
    """Waits for any of several sockets and wakers."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def watch(self, *sockets: Any) -> None:
        """Add sockets or file descriptors to wait for."""
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets; ignore unknown ones, which an interrupt kept from ``watch``."""
        for socket in sockets:
            with suppress(KeyError):
                self._poller.unregister(socket)

    def wait(self, milliseconds: int) -> Iterable[Any]:
        """Return the sockets with input, after at most that time; a negative time has no limit."""
        try:
            return [ready for ready, _ in self._poller.poll(milliseconds)]
        except zmq.ZMQError as error:
            raise _failure("waiting for sockets failed", error) from None


class DescriptorPoller:
    """Waits for any of several sockets and wakers by their descriptors, in one system call.

    A ``Poller`` asks every socket before and after it waits, which takes several calls for each.
    In exchange, the owner of this one has a duty: the descriptor of a ZeroMQ socket is
    edge-triggered, and any use of the socket may consume the edge. So each socket that was used
    must be looked at before the next wait (``Router.has_message``, ``Links.unnoticed``).
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._descriptors: dict[Any, int] = {}
        self._sockets: dict[int, Any] = {}

    def watch(self, *sockets: Any) -> None:
        """Add sockets or file descriptors to wait for."""
        for socket in sockets:
            descriptor = socket if isinstance(socket, int) else socket.fileno()
            self._descriptors[socket] = descriptor
            self._sockets[descriptor] = socket
            self._poll.register(descriptor, select.POLLIN)

    def forget(self, *sockets: Any) -> None:
        """Stop waiting for sockets; ignore unknown ones, which an interrupt kept from ``watch``."""
        for socket in sockets:
            descriptor = self._descriptors.pop(socket, None)
            if descriptor is not None and self._sockets.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)

    def wait(self, milliseconds: int) -> list[Any]:
        """Return the sockets that may have input, after at most that time."""
        return [self._sockets[descriptor] for descriptor, _ in self._poll.poll(milliseconds)]
