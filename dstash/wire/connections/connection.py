"""One connection of a router: the bytes that wait in it, by the counters of the kernel."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

#: bytes_acked and bytes_received in ``struct tcp_info`` (linux/tcp.h).
_COUNTERS: Final = struct.Struct("=120xQQ")
#: The result of TIOCOUTQ: bytes that the kernel keeps until the other side acknowledges them.
_WAITING: Final = struct.Struct("=i")
#: A client has stalled if it reads fewer than the first number of bytes in ``_STALLED_AFTER_S``,
#: unless its debt is at most the last number, which may be a counting error.
_LEAST_READ_BYTES, _STALLED_AFTER_S, _NEGLIGIBLE_BYTES = 64 * 1024, 2.0, 16 * 1024
#: The unsent part of a message below this size is negligible.
_LARGE_MESSAGE_BYTES: Final = 16 * 1024


@dataclass(eq=False, slots=True)
class Connection:
    """One connection, with the bytes that were received, taken, given, and sent.

    Bytes that the kernel has accepted (``left``) use no memory of this process, whether the other
    side has them or not. But libzmq keeps a message until the kernel has accepted all of it.
    Only the router's thread changes ``taken`` and ``given``: concurrent changes would be lost.
    Other traffic, such as the handshake and heartbeats, shows as a difference of the counters and
    is counted as a correction.
    """

    fd: int
    inode: int
    since: float
    received: int = 0
    left: int = 0
    taken: int = 0
    given: int = 0
    #: Added to ``taken`` and to ``given``.
    correction_in: int = 0
    correction_out: int = 0
    #: The public key that the client has proved; None without CURVE.
    user: str | None = None
    is_heard: bool = False
    is_cut: bool = False
    #: Time until which its reads are deferred, because an answer had no room.
    waits_until: float = 0.0
    #: The time, and the number of bytes, at which it was last seen to read.
    read_at: float = 0.0
    read_to: int = 0
    #: Begin and end of large messages, as offsets in ``given``, that may not be sent completely.
    large: deque[tuple[int, int]] = field(default_factory=deque)
    #: Whether the kernel accepts no more bytes. libzmq frees a message that was accepted completely
    #: only once it can write again.
    is_full: bool = False

    def sample(self) -> bool:
        """Read the counters of the kernel; False when the connection is closed."""
        try:
            if os.fstat(self.fd).st_ino != self.inode:
                return False
            with _borrowed(self.fd) as tcp:
                details = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size)
            waiting = fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(_WAITING.size))
            self.is_full = any(waiting) and not _takes_more(self.fd)
        except OSError:
            return False
        if len(details) == _COUNTERS.size:
            acked, self.received = _COUNTERS.unpack(details)
            self.left = acked + _WAITING.unpack(waiting)[0]
            self.correction_in = min(self.correction_in, self.received - self.taken)
            self.correction_out = max(self.correction_out, self.left - self.given)
        return True

    def forgive(self, amount: int) -> None:
        """Exclude up to that many received bytes from the backlog."""
        self.correction_in += max(0, min(amount, self.backlog))

    @property
    def backlog(self) -> int:
        """Bytes that were received and not taken, or belong to an unfinished message."""
        return self.received - self.taken - self.correction_in

    @property
    def debt(self) -> int:
        """Bytes that wait in this process because the other side does not read them."""
        left = self.left - self.correction_out
        freed = left - self.is_full
        unfinished = next((span for span in tuple(self.large) if span[1] > freed), (left, left))
        return self.given - min(left, unfinished[0])

    def give(self, weight: int) -> None:
        """Count a message before it is sent. Only for the router's thread."""
        if weight >= _LARGE_MESSAGE_BYTES:
            freed = self.left - self.correction_out - self.is_full
            while self.large and self.large[0][1] <= freed:
                self.large.popleft()
            self.large.append((self.given, self.given + weight))
        self.given += weight

    def take_back(self, weight: int) -> None:
        """Undo the last ``give``: the message could not be sent."""
        self.given -= weight
        if self.large and self.large[-1][1] > self.given:
            self.large.pop()

    @property
    def is_settled(self) -> bool:
        """Whether next to nothing waits in it, in both directions."""
        return max(self.backlog, self.debt) <= _NEGLIGIBLE_BYTES and not self.is_cut

    def has_stalled(self, now: float) -> bool:
        """Whether the other side does not read its answers. Call it at every check."""
        if self.debt <= _NEGLIGIBLE_BYTES or self.left - self.read_to >= _LEAST_READ_BYTES:
            self.read_at, self.read_to = now, self.left
        return now - self.read_at >= _STALLED_AFTER_S

    def address(self) -> str:
        """Return the address of the other side, as host:port; empty when it is closed."""
        try:
            if os.fstat(self.fd).st_ino != self.inode:
                return ""
            tcp = socket.socket(fileno=self.fd)  # of the family that libzmq has chosen
            try:
                host, port, *_ = tcp.getpeername()
            finally:
                tcp.detach()
        except OSError:
            return ""
        host = host.removeprefix("::ffff:")  # an IPv4 client of an IPv6 socket
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def cut(self) -> None:
        """Shut the connection down."""
        self.is_cut = True
        try:
            if os.fstat(self.fd).st_ino == self.inode:
                with _borrowed(self.fd) as tcp:
                    tcp.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # closed already


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Use a descriptor that belongs to libzmq as a socket, without closing it."""
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _takes_more(fd: int) -> bool:
    """Return whether the kernel accepts more bytes, or the connection is closed."""
    poller = select.poll()  # select() accepts no descriptor above 1,023
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
