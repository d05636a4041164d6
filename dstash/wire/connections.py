"""The connections of a router: how many there are, and how much memory each of them holds.

libzmq bounds queues by messages, not by bytes: 512 messages of 16 MiB may wait in each direction
of each connection, and the frames of a message that never ends are kept without any bound. So
the kernel is asked what came in and went out on each connection (``TCP_INFO``), and that is
compared with what the peer took and gave. A connection that holds too much is shut down; libzmq
then drops all it kept for it, and an honest client comes back.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog

_log = structlog.get_logger("dstash.door")

#: bytes_acked and bytes_received in ``struct tcp_info`` (linux/tcp.h).
_COUNTERS: Final = struct.Struct("=120xQQ")
#: What a frame costs on the wire beside its bytes (ZeroMQ RFC 23), and with CURVE (RFC 26).
_SHORT, _LONG, _CURVE = 2, 9, 33
#: What heartbeats bring in a second, at most; nobody takes them out.
_HEARTBEATS: Final = 128
#: A connection that holds less is not to blame when memory is short.
_BLAMELESS: Final = 256 * 1024
#: Descriptors kept free of clients: for links to other peers, the membership, files.
_SPARE: Final = 48
#: libzmq lets go of what a connection held some time after it was cut: by then (seconds).
_TRIM_AGAIN: Final = (0.5, 2.0, 5.0)
#: Cut connections are told in the log once in so many seconds: anyone can make them.
_QUIET: Final = 5.0
_PAGE: Final = resource.getpagesize()


class Limits(NamedTuple):
    """How many connections there may be, and how many bytes may wait in them.

    ``in_one`` and ``out_one`` bound one connection, ``in_all`` and ``out_all`` all together;
    ``memory`` is what the process may take before the greediest connection is shut down.
    """

    connections: int
    in_one: int
    out_one: int
    in_all: int
    out_all: int
    memory: int

    @classmethod
    def of(cls, most: int, bytes_in_hand: int) -> Limits:
        """Return limits for so many connections, as far as there are descriptors for them."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        free = hard - len(os.listdir("/proc/self/fd")) - _SPARE
        return cls(
            max(8, min(most, free)),
            in_one=bytes_in_hand,
            out_one=bytes_in_hand,
            in_all=2 * bytes_in_hand,
            out_all=2 * bytes_in_hand,
            memory=4 * bytes_in_hand + 256 * 1024 * 1024,
        )


@dataclass(eq=False, slots=True)
class Connection:
    """One connection, and the bytes that came in, were taken, were given, and went out."""

    fd: int
    inode: int
    since: float
    received: int = 0
    acked: int = 0
    taken: int = 0
    given: int = 0
    #: The public key that its client has proved; None without CURVE.
    user: str | None = None
    is_heard: bool = False
    is_cut: bool = False

    def sample(self) -> bool:
        """Ask the kernel; False when the connection is gone."""
        try:
            if os.fstat(self.fd).st_ino != self.inode:
                return False
            with _borrowed(self.fd) as tcp:
                facts = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTERS.size)
        except OSError:
            return False
        if len(facts) == _COUNTERS.size:
            self.acked, self.received = _COUNTERS.unpack(facts)
            # What the handshake and heartbeats brought is not to count for ever.
            self.taken = min(self.taken, self.received)
            self.given = max(self.given, self.acked)
        return True

    @property
    def backlog(self) -> int:
        """Bytes that came in and have not been taken, or belong to an unfinished message."""
        return self.received - self.taken

    @property
    def debt(self) -> int:
        """Bytes that were given and the other side has not acknowledged."""
        return self.given - self.acked

    def cut(self) -> None:
        """Shut the connection down."""
        self.is_cut = True
        try:
            if os.fstat(self.fd).st_ino == self.inode:
                with _borrowed(self.fd) as tcp:
                    tcp.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it went by itself


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Use a descriptor that belongs to libzmq as a socket, without closing it."""
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        yield borrowed
    finally:
        borrowed.detach()


class Connections:
    """The connections of one router.

    ``took`` and ``gave`` are called by the router's thread, the rest by the one that watches.
    """

    def __init__(self, limits: Limits, *, curve: bool) -> None:
        self.limits = limits
        self._extra = _CURVE if curve else 0
        self._lock = threading.Lock()
        self._by_fd: dict[int, Connection] = {}
        self._by_sender: dict[bytes, Connection] = {}
        self._memory = Memory()
        self._used = self._memory.private()
        self._sampled = time.monotonic()
        self.cuts = 0
        self._next_word = 0.0
        self._trims: list[float] = []  # when to return freed memory to the system

    def __len__(self) -> int:
        return len(self._by_fd)

    def close(self) -> None:
        """Release what is held."""
        self._memory.close()

    @property
    def are_too_many(self) -> bool:
        """Whether ``check`` has somebody to send away."""
        return len(self._by_fd) > self.limits.connections

    # -- the router's thread

    def knows(self, sender: bytes) -> bool:
        """Whether a routing id surely belongs to a known connection: libzmq chose it itself."""
        return sender[:1] == b"\0" and sender in self._by_sender

    def introduce(self, sender: bytes, fd: int, user: str | None) -> None:
        """Take note of which connection, and which key, a routing id belongs to."""
        connection = self._by_fd.get(fd)
        if connection is None:
            connection = self.opened(fd)
        if connection is not None:
            connection.is_heard, connection.user = True, user
            self._by_sender[sender] = connection

    def took(self, sender: bytes, parts: Sequence[bytes]) -> None:
        """Count a message that came from a connection."""
        connection = self._by_sender.get(sender)
        if connection is not None:
            connection.taken += sum(map(len, parts)) + len(parts) * (_LONG + self._extra)

    def gave(self, sender: bytes, parts: Sequence[bytes]) -> None:
        """Count a message that was given to a connection."""
        connection = self._by_sender.get(sender)
        if connection is not None:
            for part in parts:
                size = len(part) + self._extra
                connection.given += size + (_SHORT if size < 256 else _LONG)

    def is_slow(self, sender: bytes) -> bool:
        """Whether a client has left so many answers unread that it must read before it asks."""
        connection = self._by_sender.get(sender)
        if connection is None or connection.debt < self.limits.out_one // 2:
            return False
        return connection.sample() and connection.debt >= self.limits.out_one // 2

    def send_away(self, sender: bytes, why: str) -> None:
        """Cut the connection of a client that does what no honest one does."""
        connection = self._by_sender.get(sender)
        if connection is not None and not connection.is_cut:
            self._cut(connection, why)

    def shut_out(self, users: Collection[str]) -> None:
        """Cut the connections of keys that are welcome no more, and those that may be theirs."""
        for one in list(self._by_fd.values()) if users else ():
            if not one.is_cut and (one.user in users or not one.is_heard):
                self._cut(one, "its key was taken off the list")

    # -- the watching thread

    def opened(self, fd: int) -> Connection | None:
        """Take note of a new connection; None when it is gone already."""
        try:
            connection = Connection(fd, os.fstat(fd).st_ino, time.monotonic())
        except OSError:
            return None
        with self._lock:
            known = self._by_fd.get(fd)
            if known is not None and known.inode == connection.inode:
                return known
            self._by_fd[fd] = connection
        return connection

    def check(self) -> None:
        """Forget connections that are gone, and cut those that hold too much."""
        now = time.monotonic()
        forgiven = int((now - self._sampled) * _HEARTBEATS) + 1
        self._sampled = now
        gone = {one for one in list(self._by_fd.values()) if not one.sample()}
        if gone:
            self._forget(gone)
        if any(one.is_cut for one in gone):
            self._trims = [now, *(now + later for later in _TRIM_AGAIN)]
        if self._trims and now >= self._trims[0]:
            del self._trims[0]
            give_back_memory()
        open_ones = [one for one in list(self._by_fd.values()) if not one.is_cut]
        for one in open_ones:
            one.taken = min(one.received, one.taken + forgiven)
        self._cut_crowd(open_ones)
        self._cut_greedy(open_ones)
        self._cut_when_memory_is_short(open_ones)

    def _forget(self, gone: set[Connection]) -> None:
        with self._lock:
            for one in gone:
                if self._by_fd.get(one.fd) is one:
                    del self._by_fd[one.fd]
        for sender, one in list(self._by_sender.items()):
            if one in gone:
                del self._by_sender[sender]

    def _cut(self, connection: Connection, why: str) -> None:
        self.cuts += 1
        connection.cut()
        now = time.monotonic()
        if now >= self._next_word:
            self._next_word = now + _QUIET
            backlog, debt = connection.backlog, connection.debt
            _log.warning("connection cut", why=why, backlog=backlog, debt=debt, cuts=self.cuts)

    def _cut_crowd(self, open_ones: list[Connection]) -> None:
        surplus = len(open_ones) - self.limits.connections
        if surplus <= 0:
            return
        # First those that have said nothing, then the newest: who works goes on working.
        order = sorted(open_ones, key=lambda one: (one.is_heard, -one.since))
        for one in order[:surplus]:
            self._cut(one, "too many connections")

    def _cut_greedy(self, open_ones: list[Connection]) -> None:
        limits = self.limits
        for one in open_ones:
            if one.backlog > limits.in_one:
                self._cut(one, "it sends more than can be taken, or a message without end")
            elif one.debt > limits.out_one:
                self._cut(one, "it does not read its answers")
        if sum(one.backlog for one in open_ones) > limits.in_all:
            self._cut(max(open_ones, key=lambda one: one.backlog), "all send more than is taken")
        if sum(one.debt for one in open_ones) > limits.out_all:
            self._cut(max(open_ones, key=lambda one: one.debt), "nobody reads its answers")

    def _cut_when_memory_is_short(self, open_ones: list[Connection]) -> None:
        before, self._used = self._used, self._memory.private()
        grown = self._used - before
        # Tiny frames take memory quickly: what the next check would find counts as found.
        if grown <= 0 or self._used + grown <= self.limits.memory or not open_ones:
            return
        greediest = max(open_ones, key=lambda one: max(one.backlog, one.debt))
        if max(greediest.backlog, greediest.debt) > _BLAMELESS:
            self._cut(greediest, "memory is short, and it holds the most")


def give_back_memory() -> None:
    """Return freed memory to the system: by itself glibc keeps what lies between other blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # another C library
        trim(0)


class Memory:
    """Tells what this process has for itself, even when it cannot open files any more."""

    def __init__(self) -> None:
        self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115  # kept open

    def private(self) -> int:
        """Return the bytes of memory that are of no mapped file."""
        _, resident, shared, *_ = map(int, os.pread(self._file.fileno(), 200, 0).split())
        return (resident - shared) * _PAGE

    def close(self) -> None:
        """Release the descriptor."""
        self._file.close()
