"""Limits on the connections of a router: their number, and the memory that each of them uses.

libzmq limits queues by messages, not by bytes: 512 messages of 16 MiB may wait in each direction
of each connection, and the frames of an endless message are kept without limit. Therefore the
bytes that the kernel counts on each connection (``TCP_INFO``) are compared with the bytes that the
peer received and sent. A connection that uses too much memory is shut down. libzmq then frees the
memory, and a well-behaved client reconnects.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from dstash import events
from dstash.logger import Logger
from dstash.wire.connections.connection import Connection
from dstash.wire.connections.memory import Memory, give_back_memory

_log = Logger("dstash.connections")

#: Bytes that a frame adds on the wire (ZeroMQ RFC 23), and that CURVE adds (RFC 26).
_SHORT_HEAD_BYTES, _LONG_HEAD_BYTES, _CURVE_BYTES = 2, 9, 33
#: Most bytes of heartbeats per second; libzmq consumes them.
_HEARTBEAT_BYTES_PER_S: Final = 128
#: A connection that holds fewer bytes is never cut when memory is short.
_ALWAYS_ALLOWED_BYTES: Final = 256 * 1024
#: A client reads its answers if it was sent that much: the buffers of the kernel hold less.
_SURELY_READ_BYTES: Final = 16 * 1024 * 1024
#: Clients that may not read get this fraction (one divided by it) of the unread bytes of all
#: clients: even after another large answer, space is left for the clients that read.
_UNKNOWN_SHARE: Final = 3
#: Seconds that a client waits if its answer had no room and it is not known to read.
_RETRY_AFTER_S: Final = 2.0
#: All such clients wait so many times as long as the failed attempt took.
_PAUSE_FACTOR: Final = 9
#: Least time between two sums over the unread bytes of all clients.
_SUM_INTERVAL_S: Final = 0.005
#: While no message moves and memory grows by less, a check of connections is skipped, but for one
#: check in this many seconds.
_QUIET_GROWTH_BYTES, _QUIET_CHECK_S = 1024 * 1024, 1.0
#: If checks find that no more bytes have moved, for this many seconds, they become rarer. Between
#: two of them an endless message may fill some hundred MB more.
_CALM_BYTES, _CALM_AFTER_S = 256 * 1024, 5.0
#: Descriptors that are reserved: for links to other peers, the membership, files.
_RESERVED_DESCRIPTORS: Final = 48
#: libzmq frees the memory of a cut connection with a delay: return it to the system then.
_TRIM_DELAYS_S: Final = (0.5, 2.0, 5.0)
#: Seconds between two log lines about cut connections: anyone can cause them.
_LOG_INTERVAL_S: Final = 5.0


class Limits(NamedTuple):
    """Limits on the number of connections and on the bytes that wait in them.

    ``in_one`` and ``out_one`` limit one connection, ``in_all`` and ``out_all`` the sum over all; a
    single answer may exceed the remaining space. If the process uses more than ``memory``, the
    connection that holds the most is shut down.
    """

    connections: int
    in_one: int
    out_one: int
    in_all: int
    out_all: int
    memory: int

    @classmethod
    def of(cls, most: int, bytes_in_hand: int) -> Limits:
        """Return limits for at most that many connections, fewer if descriptors are scarce."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        free = hard - len(os.listdir("/proc/self/fd")) - _RESERVED_DESCRIPTORS
        return cls(
            max(8, min(most, free)),
            in_one=bytes_in_hand,
            out_one=bytes_in_hand // 4,
            in_all=2 * bytes_in_hand,
            out_all=3 * bytes_in_hand // 16,
            memory=4 * bytes_in_hand + 256 * 1024 * 1024,
        )


class Connections:
    """The connections of one router.

    The methods under "the router's thread" are called there, the others by the checking thread.
    """

    def __init__(self, limits: Limits, *, curve: bool) -> None:
        self.limits = limits
        self._extra = _CURVE_BYTES if curve else 0
        self._lock = threading.Lock()
        self._by_fd: dict[int, Connection] = {}
        self._by_sender: dict[bytes, Connection] = {}
        self._memory = Memory()
        self._used = self._memory.private()
        self._sampled = time.monotonic()
        self._checked_traffic = (0, 0)
        self._is_settled = False
        #: Whether nothing had moved at the last check.
        self.was_quiet = False
        self._busy_at = self._sampled
        self.cuts = 0
        self._next_log_line = 0.0
        self._trims: list[float] = []  # times at which to return freed memory to the system
        self._unread = 0  # of all clients at the last sum, plus the bytes given since
        self._next_sum_at = 0.0
        self._trial_began = self._next_trial = 0.0

    def __len__(self) -> int:
        return len(self._by_fd)

    def close(self) -> None:
        """Release the descriptor."""
        self._memory.close()

    @property
    def are_too_many(self) -> bool:
        """Whether ``check`` will cut connections."""
        return len(self._by_fd) > self.limits.connections

    @property
    def is_calm(self) -> bool:
        """Whether little has moved for some time, at the last checks."""
        return self._sampled - self._busy_at > _CALM_AFTER_S

    # -- the router's thread

    def knows(self, sender: bytes) -> bool:
        """Whether a routing id belongs to a known connection; only ids chosen by libzmq do."""
        return sender[:1] == b"\0" and sender in self._by_sender

    def introduce(self, sender: bytes, fd: int, user: str | None) -> None:
        """Register the connection and the key of a routing id."""
        connection = self._by_fd.get(fd)
        if connection is None:
            connection = self.opened(fd)
        if connection is not None:
            connection.is_heard, connection.user = True, user
            self._by_sender[sender] = connection

    def took(self, sender: bytes, parts: Sequence[bytes]) -> None:
        """Count a message that was received from a connection."""
        connection = self._by_sender.get(sender)
        if connection is not None:
            connection.taken += sum(map(len, parts)) + len(parts) * (_LONG_HEAD_BYTES + self._extra)

    def gives(self, sender: bytes, parts: Sequence[bytes]) -> int:
        """Count a message before it is sent, and return its size.

        Counting after the send would be too late: part of it may have left already.
        """
        connection = self._by_sender.get(sender)
        if connection is None:
            return 0
        weight = 0
        for part in parts:
            size = len(part) + self._extra
            weight += size + (_SHORT_HEAD_BYTES if size < 256 else _LONG_HEAD_BYTES)
        connection.give(weight)
        self._unread += weight
        return weight

    def gave_nothing(self, sender: bytes, weight: int) -> None:
        """Undo ``gives`` for a message that could not be sent."""
        connection = self._by_sender.get(sender)
        if connection is not None:
            connection.take_back(weight)
            self._unread -= weight

    def address_of(self, sender: bytes) -> str:
        """Return the address of the other side, as host:port; empty if it is not known."""
        connection = self._by_sender.get(sender)
        return "" if connection is None else connection.address()

    def is_slow(self, sender: bytes) -> bool:
        """Whether a client must read its answers before it may send requests.

        The limit depends on the unread bytes of all clients.
        """
        connection = self._by_sender.get(sender)
        if connection is None or connection.debt <= _ALWAYS_ALLOWED_BYTES:
            return False
        allowed = self.limits.out_one // 2
        if self._all_unread(self.limits.out_all // _UNKNOWN_SHARE):
            allowed = _ALWAYS_ALLOWED_BYTES
        return connection.debt > allowed and connection.sample() and connection.debt > allowed

    def defers(self, sender: bytes) -> bool:
        """Whether a read of a client should wait because its answer might have no room.

        The size of an answer is known only after the read. While a large answer has no room,
        clients that are not known to read get a small share of the time.
        """
        connection, now = self._by_sender.get(sender), time.monotonic()
        if _reads(connection) or not self._all_unread(self.limits.out_all // _UNKNOWN_SHARE):
            return False
        if now < self._next_trial or (connection and now < connection.waits_until):
            return True
        self._trial_began = now
        return False

    def lacks_room(self, sender: bytes) -> bool:
        """Whether the unread answers of clients leave no room for a large answer.

        Most of the room is reserved for clients that are known to read.
        """
        connection, now = self._by_sender.get(sender), time.monotonic()
        if _reads(connection):
            return self._all_unread(self.limits.out_all)
        if not self._all_unread(self.limits.out_all // _UNKNOWN_SHARE):
            return False
        self._next_trial = now + _PAUSE_FACTOR * (now - self._trial_began)
        if connection is not None:
            connection.waits_until = now + _RETRY_AFTER_S
        return True

    def _all_unread(self, bound: int) -> bool:
        """Whether all clients together have at least that many unread bytes."""
        now = time.monotonic()
        if self._unread >= bound and now >= self._next_sum_at:
            self._next_sum_at = now + _SUM_INTERVAL_S
            connections = list(self._by_sender.values())  # the checking thread may remove some
            self._sum_up([client for client in connections if client.debt and client.sample()])
        return self._unread >= bound

    def _sum_up(self, indebted: Collection[Connection]) -> None:
        # Cut connections count: libzmq keeps their messages until it has closed them.
        self._unread = sum(connection.debt for connection in indebted)

    def send_away(self, sender: bytes, why: str) -> None:
        """Cut the connection of a client that violates the protocol."""
        connection = self._by_sender.get(sender)
        if connection is not None and not connection.is_cut:
            self._cut(connection, why)

    def shut_out(self, users: Collection[str]) -> None:
        """Cut the connections of keys that are no longer authorised, and those of unknown keys."""
        for connection in list(self._by_fd.values()) if users else ():
            if not connection.is_cut and (connection.user in users or not connection.is_heard):
                self._cut(connection, "its key was removed from the list")

    # -- the checking thread

    def opened(self, fd: int) -> Connection | None:
        """Register a new connection; None when it is closed already."""
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
        """Remove closed connections, and cut those that exceed a limit."""
        now = time.monotonic()
        self.was_quiet = self._is_quiet(now)
        if self.was_quiet:
            for connection in list(self._by_fd.values()):
                connection.read_at = now  # it has nothing to read
            return
        traffic = self._traffic()
        if not self._is_settled or traffic[1] - self._checked_traffic[1] > _CALM_BYTES:
            self._busy_at = now
        self._checked_traffic, self._is_settled = traffic, True
        forgiven = int((now - self._sampled) * _HEARTBEAT_BYTES_PER_S) + 1
        self._sampled = now
        closed = {
            connection for connection in list(self._by_fd.values()) if not connection.sample()
        }
        if closed:
            self._remove(closed)
        if any(connection.is_cut for connection in closed):
            self._trims = [now, *(now + delay for delay in _TRIM_DELAYS_S)]
        if self._trims and now >= self._trims[0]:
            del self._trims[0]
            give_back_memory()
        live = [connection for connection in list(self._by_fd.values()) if not connection.is_cut]
        for connection in live:
            connection.forgive(forgiven)
        self._sum_up(list(self._by_fd.values()))
        self._cut_surplus(live)
        self._cut_oversized(live)
        self._cut_stalled(live, now)
        self._cut_when_memory_is_short(live)
        if self._trims or not all(client.is_settled for client in list(self._by_fd.values())):
            self._is_settled = False

    def _traffic(self) -> tuple[int, int]:
        """Return numbers that change with each connection and each message."""
        connections = list(self._by_fd.values())
        return len(connections), sum(client.taken + client.given for client in connections)

    def _is_quiet(self, now: float) -> bool:
        """Whether nothing has moved since the last check, so that the kernel need not be asked.

        A message without end, of which nothing is taken, shows by the memory that it uses.
        """
        return (
            self._is_settled
            and now - self._sampled < _QUIET_CHECK_S
            and self._traffic() == self._checked_traffic
            and self._memory.private() - self._used < _QUIET_GROWTH_BYTES
        )

    def _remove(self, closed: set[Connection]) -> None:
        with self._lock:
            for connection in closed:
                if self._by_fd.get(connection.fd) is connection:
                    del self._by_fd[connection.fd]
        for sender, connection in list(self._by_sender.items()):
            if connection in closed:
                del self._by_sender[sender]

    def _cut(self, connection: Connection, why: str) -> None:
        self.cuts += 1
        self._is_settled = False
        address = connection.address()
        connection.cut()
        now = time.monotonic()
        if now >= self._next_log_line:
            self._next_log_line = now + _LOG_INTERVAL_S
            backlog, debt = connection.backlog, connection.debt
            _log.warning(
                events.CONNECTION_CUT,
                why=why,
                address=address,
                key=connection.user,
                backlog=backlog,
                debt=debt,
                cuts=self.cuts,
            )

    def _cut_surplus(self, live: list[Connection]) -> None:
        surplus = len(live) - self.limits.connections
        if surplus <= 0:
            return
        # First the silent connections, then the newest: established clients keep their connections.
        order = sorted(live, key=lambda connection: (connection.is_heard, -connection.since))
        for connection in order[:surplus]:
            self._cut(connection, "too many connections")

    def _cut_oversized(self, live: list[Connection]) -> None:
        limits = self.limits
        for connection in live:
            if connection.backlog > limits.in_one:
                self._cut(connection, "it sends faster than the peer reads, or an endless message")
            elif connection.debt > limits.out_one:
                self._cut(connection, "it does not read its answers")
        if sum(connection.backlog for connection in live) > limits.in_all:
            largest = max(live, key=lambda connection: connection.backlog)
            self._cut(largest, "all clients together send faster than the peer reads")

    def _cut_stalled(self, live: list[Connection], now: float) -> None:
        """Cut clients that do not read while other clients lack memory, largest debt first."""
        stalled = [client for client in live if client.has_stalled(now) and not client.is_cut]
        unread = sum(client.debt for client in live if not client.is_cut)
        for client in sorted(stalled, key=lambda client: -client.debt):
            if unread <= self.limits.out_all // _UNKNOWN_SHARE:
                return
            if client.debt <= _ALWAYS_ALLOWED_BYTES and unread <= self.limits.out_all:
                return
            unread -= client.debt
            self._cut(client, "it does not read its answers, and other clients need the memory")

    def _cut_when_memory_is_short(self, live: list[Connection]) -> None:
        before, self._used = self._used, self._memory.private()
        grown = self._used - before
        # Tiny frames use memory quickly: the growth until the next check counts already.
        if grown >= _QUIET_GROWTH_BYTES:
            self._busy_at = self._sampled
        if grown <= 0 or self._used + grown <= self.limits.memory or not live:
            return
        largest = max(live, key=lambda connection: max(connection.backlog, connection.debt))
        if max(largest.backlog, largest.debt) > _ALWAYS_ALLOWED_BYTES:
            self._cut(largest, "memory is short, and it holds the most")


def _reads(connection: Connection | None) -> bool:
    """Whether a client is known to read its answers."""
    return connection is not None and connection.left >= _SURELY_READ_BYTES
