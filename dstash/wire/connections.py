"""The connections of a router: how many there are, and how much memory each of them holds.

libzmq bounds queues by messages, not by bytes: 512 messages of 16 MiB may wait in each direction
of each connection, and the frames of a message that never ends are kept without any bound. So
the kernel is asked what came in and went out on each connection (``TCP_INFO``), and that is
compared with what the peer took and gave. A connection that holds too much is shut down; libzmq
then drops all it kept for it, and an honest client comes back.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dstash.logger import Logger

_log = Logger("dstash.connections")

#: bytes_acked and bytes_received in ``struct tcp_info`` (linux/tcp.h).
_COUNTERS: Final = struct.Struct("=120xQQ")
#: What TIOCOUTQ tells: bytes that the kernel keeps until the other side has acknowledged them.
_WAITING: Final = struct.Struct("=i")
#: What a frame costs on the wire beside its bytes (ZeroMQ RFC 23), and with CURVE (RFC 26).
_SHORT, _LONG, _CURVE = 2, 9, 33
#: What heartbeats bring in a second, at most; nobody takes them out.
_HEARTBEATS: Final = 128
#: A connection that holds less is not to blame when memory is short.
_BLAMELESS: Final = 256 * 1024
#: A client that reads fewer bytes of its answers in so many seconds has stalled; unless it has
#: only so few left, which may be an error of counting.
_LEAST_READ, _STALLED_AFTER, _FEW = 64 * 1024, 2.0, 16 * 1024
#: A client that has been sent so many bytes reads them: no buffers of a kernel hold as many.
_SURELY_READ: Final = 16 * 1024 * 1024
#: The others may leave unread so large a part of what all may: with a large answer more they still
#: leave room for those that read.
_UNKNOWN_SHARE: Final = 3
#: A client whose answer had no room, and that is not known to read, has to wait (seconds).
_TRY_AGAIN_AFTER: Final = 2.0
#: And all of them together, so many times as long as it took to find that out.
_REST: Final = 9
#: Messages of fewer bytes are little even if they have not left as a whole.
_LARGE: Final = 16 * 1024
#: What all clients have left unread is added up so often (seconds) at most.
_ADD_UP_EVERY: Final = 0.005
#: Descriptors kept free of clients: for links to other peers, the membership, files.
_SPARE: Final = 48
#: libzmq lets go of what a connection held some time after it was cut: by then (seconds).
_TRIM_AGAIN: Final = (0.5, 2.0, 5.0)
#: Cut connections are told in the log once in so many seconds: anyone can make them.
_QUIET: Final = 5.0
_PAGE: Final = resource.getpagesize()


class Limits(NamedTuple):
    """How many connections there may be, and how many bytes may wait in them.

    ``in_one`` and ``out_one`` bound one connection, ``in_all`` and ``out_all`` all together; a
    single answer may be larger than what is left. ``memory`` is what the process may take before
    the greediest connection is shut down.
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
            out_one=bytes_in_hand // 4,
            in_all=2 * bytes_in_hand,
            out_all=3 * bytes_in_hand // 16,
            memory=4 * bytes_in_hand + 256 * 1024 * 1024,
        )


@dataclass(eq=False, slots=True)
class Connection:
    """One connection, and the bytes that came in, were taken, were given, and went out.

    What the kernel has taken (``left``, whether the other side has it or not) is no memory of this
    process; but libzmq keeps a message until the kernel has taken all of it.
    ``taken`` and ``given`` are counted by the router's thread alone: a thread that corrected them
    meanwhile would lose some. What else went by, such as the handshake and heartbeats, is known by
    what does not add up, and is counted as corrections.
    """

    fd: int
    inode: int
    since: float
    received: int = 0
    left: int = 0
    taken: int = 0
    given: int = 0
    #: To be added to what was taken, and to what was given.
    correction_in: int = 0
    correction_out: int = 0
    #: The public key that its client has proved; None without CURVE.
    user: str | None = None
    is_heard: bool = False
    is_cut: bool = False
    #: Until when it is not read for, because there was no room for an answer.
    waits_until: float = 0.0
    #: When, and at how many bytes, it was last seen to read.
    read_at: float = 0.0
    read_to: int = 0
    #: Where large messages begin and end in what was given: those that may not have left.
    large: deque[tuple[int, int]] = field(default_factory=deque)
    #: Whether the kernel takes no more bytes: libzmq frees a message that the kernel has taken as
    #: a whole only when it may write again.
    is_full: bool = False

    def sample(self) -> bool:
        """Ask the kernel; False when the connection is gone."""
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
        """Do not count so many bytes that came in, if there are as many."""
        self.correction_in += max(0, min(amount, self.backlog))

    @property
    def backlog(self) -> int:
        """Bytes that came in and have not been taken, or belong to an unfinished message."""
        return self.received - self.taken - self.correction_in

    @property
    def debt(self) -> int:
        """Bytes that were given, and wait in this process because the other side does not read."""
        left = self.left - self.correction_out
        freed = left - self.is_full
        unfinished = next((span for span in tuple(self.large) if span[1] > freed), (left, left))
        return self.given - min(left, unfinished[0])

    def give(self, weight: int) -> None:
        """Count a message that is about to be given; the router's thread alone."""
        if weight >= _LARGE:
            freed = self.left - self.correction_out - self.is_full
            while self.large and self.large[0][1] <= freed:
                self.large.popleft()
            self.large.append((self.given, self.given + weight))
        self.given += weight

    def take_back(self, weight: int) -> None:
        """Do not count the message that was counted last: it could not be given."""
        self.given -= weight
        if self.large and self.large[-1][1] > self.given:
            self.large.pop()

    def has_stalled(self, now: float) -> bool:
        """Whether the other side leaves unread what it was given. Call it at every check."""
        if self.debt <= _FEW or self.left - self.read_to >= _LEAST_READ:
            self.read_at, self.read_to = now, self.left
        return now - self.read_at >= _STALLED_AFTER

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


def _takes_more(fd: int) -> bool:
    """Return whether the kernel takes more bytes for a connection, or the connection is gone."""
    poller = select.poll()  # select() takes no descriptor above 1,023
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))


class Connections:
    """The connections of one router.

    What is under its heading is called by the router's thread, the rest by the one that watches.
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
        self._unread = 0  # by all, when it was added up last; and what was given since
        self._add_up_at = 0.0
        self._trial_began = self._next_trial = 0.0

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

    def gives(self, sender: bytes, parts: Sequence[bytes]) -> int:
        """Count a message that is about to be given to a connection; returns its size.

        Before, for some of it may have gone out when the call that gives it returns.
        """
        connection = self._by_sender.get(sender)
        if connection is None:
            return 0
        weight = 0
        for part in parts:
            size = len(part) + self._extra
            weight += size + (_SHORT if size < 256 else _LONG)
        connection.give(weight)
        self._unread += weight
        return weight

    def gave_nothing(self, sender: bytes, weight: int) -> None:
        """Take back what was counted for a message that could not be given."""
        connection = self._by_sender.get(sender)
        if connection is not None:
            connection.take_back(weight)
            self._unread -= weight

    def is_slow(self, sender: bytes) -> bool:
        """Whether a client has left so many answers unread that it must read before it asks.

        How many that are depends on what all clients together have left unread.
        """
        connection = self._by_sender.get(sender)
        if connection is None or connection.debt <= _BLAMELESS:
            return False
        allowed = self.limits.out_one // 2
        if self._all_unread(self.limits.out_all // _UNKNOWN_SHARE):
            allowed = _BLAMELESS
        return connection.debt > allowed and connection.sample() and connection.debt > allowed

    def defers(self, sender: bytes) -> bool:
        """Whether a read of a client should wait, for its answer might have no room.

        How large an answer is shows when it has been read. While there is no room for a large one,
        clients that are not known to read share a small part of the time.
        """
        connection, now = self._by_sender.get(sender), time.monotonic()
        if _reads(connection) or not self._all_unread(self.limits.out_all // _UNKNOWN_SHARE):
            return False
        if now < self._next_trial or (connection and now < connection.waits_until):
            return True
        self._trial_began = now
        return False

    def lacks_room(self, sender: bytes) -> bool:
        """Whether clients have left so many answers unread that there is no room for a large one.

        Most of the room is for clients that are known to read.
        """
        connection, now = self._by_sender.get(sender), time.monotonic()
        if _reads(connection):
            return self._all_unread(self.limits.out_all)
        if not self._all_unread(self.limits.out_all // _UNKNOWN_SHARE):
            return False
        self._next_trial = now + _REST * (now - self._trial_began)
        if connection is not None:
            connection.waits_until = now + _TRY_AGAIN_AFTER
        return True

    def _all_unread(self, bound: int) -> bool:
        """Whether all clients together have left so many bytes unread."""
        now = time.monotonic()
        if self._unread >= bound and now >= self._add_up_at:
            self._add_up_at = now + _ADD_UP_EVERY
            connections = list(self._by_sender.values())  # the other thread may forget some
            self._add_up([one for one in connections if one.debt and one.sample()])
        return self._unread >= bound

    def _add_up(self, indebted: Collection[Connection]) -> None:
        # Of one that was cut, too: libzmq keeps the messages until it has closed the connection.
        self._unread = sum(one.debt for one in indebted)

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
            one.forgive(forgiven)
        self._add_up(list(self._by_fd.values()))
        self._cut_crowd(open_ones)
        self._cut_greedy(open_ones)
        self._cut_stalled(open_ones, now)
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

    def _cut_stalled(self, open_ones: list[Connection], now: float) -> None:
        """Cut clients that do not read, the most indebted first, where others go short for them."""
        stalled = [one for one in open_ones if one.has_stalled(now) and not one.is_cut]
        unread = sum(one.debt for one in open_ones if not one.is_cut)
        for one in sorted(stalled, key=lambda one: -one.debt):
            if unread <= self.limits.out_all // _UNKNOWN_SHARE:
                return
            if one.debt <= _BLAMELESS and unread <= self.limits.out_all:
                return
            unread -= one.debt
            self._cut(one, "it does not read its answers, and others wait for the memory")

    def _cut_when_memory_is_short(self, open_ones: list[Connection]) -> None:
        before, self._used = self._used, self._memory.private()
        grown = self._used - before
        # Tiny frames take memory quickly: what the next check would find counts as found.
        if grown <= 0 or self._used + grown <= self.limits.memory or not open_ones:
            return
        greediest = max(open_ones, key=lambda one: max(one.backlog, one.debt))
        if max(greediest.backlog, greediest.debt) > _BLAMELESS:
            self._cut(greediest, "memory is short, and it holds the most")


def _reads(connection: Connection | None) -> bool:
    """Whether a client is known to read its answers."""
    return connection is not None and connection.left >= _SURELY_READ


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
