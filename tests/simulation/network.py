"""The network: connections that deliver messages in order and late, until they break.

It gives the guarantees of ZeroMQ over TCP: order within a connection, and no loss while the
connection is up. Everything else may fail: connections break and lose messages in flight, reorder
against each other, and stall while a direction is cut (and deliver late afterwards); messages
arrive twice, as after a retry over another connection.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from dstash.wire.sockets import LinkState
from tests.simulation.events import MS, SECOND, Events
from tests.simulation.trace import Trace

#: Heartbeats (one a second) that a connection may miss before either side drops it.
_MISSED: Final = 5
_CONNECT_TIMEOUT: Final = 1 * SECOND
_RECONNECT_FIRST: Final = 50 * MS
_RECONNECT_LAST: Final = 1 * SECOND


class Machine(Protocol):
    """A process at an end of a connection."""

    name: str

    @property
    def answers(self) -> bool:
        """Whether its process runs: heartbeats are answered, connections accepted."""
        ...

    @property
    def refuses(self) -> bool:
        """Whether the machine runs without the process: connections are refused at once."""
        ...


class Host(Machine, Protocol):
    """A machine that accepts connections."""

    @property
    def life(self) -> int:
        """The number of this process among the machine's processes."""
        ...

    def take(self, connection: Connection, parts: list[bytes]) -> None:
        """Take a message."""
        ...


class Lane:
    """One direction of a connection."""

    def __init__(self, source: str, target: str, sink: Callable[[list[bytes]], None]) -> None:
        self.source = source
        self.target = target
        self.sink = sink
        self.due = 0
        self.held: list[list[bytes]] = []


class Connection:
    """One connection, from a link to a host. Once broken it stays so."""

    def __init__(self, network: Network, link: VirtualLink, host: Host, number: int) -> None:
        self.id = b"\0" + number.to_bytes(4, "big")
        self.link = link
        self.host = host
        self.is_open = True
        self.life = host.life
        self.missed = 0
        self._network = network
        owner = link.owner.name
        self._up = Lane(owner, host.name, lambda parts: host.take(self, parts))
        self._down = Lane(host.name, owner, self._to_link)

    def to_host(self, parts: list[bytes]) -> None:
        """Send to the host."""
        if self.is_open:
            self._network.carry(self, self._up, parts)

    def to_owner(self, parts: list[bytes]) -> bool:
        """Send to the side that opened the connection; False if it is known to be gone."""
        if self.is_open:
            self._network.carry(self, self._down, parts)
        return self.is_open

    def _to_link(self, parts: list[bytes]) -> None:
        if self.link.connection is self:
            self.link.arrived(parts)

    def repaired(self) -> None:
        """Continue with the delayed messages."""
        for lane in (self._up, self._down):
            if lane.held and not self._network.is_cut(lane.source, lane.target):
                held, lane.held = lane.held, []
                for parts in held:
                    self._network.carry(self, lane, parts)

    def break_(self, notice: int) -> None:
        """Drop the connection and the messages in flight; its owner notices after ``notice``."""
        if self.is_open:
            self.is_open = False
            self._up.held, self._down.held = [], []
            self._network.forget(self)
            self._network.events.after(notice, self.link.went_down, self)


class Network:
    """Which machines can communicate, at what delay and with what faults."""

    def __init__(self, events: Events, rng: Random, trace: Trace) -> None:
        self.events = events
        self.trace = trace
        self.rng = rng
        #: Mean delay of a message in addition to the shortest delay (microseconds).
        self.jitter = 300
        #: Chances, per message: its connection breaks with it; it arrives twice; it is very late.
        self.loss = 0.0
        self.duplication = 0.0
        self.lateness = 0.0
        #: Additional delay of the messages of a machine (microseconds).
        self.slow: dict[str, int] = {}
        self._cuts: dict[tuple[str, str], int] = {}
        self._hosts: dict[str, Host] = {}
        self._open: dict[Connection, None] = {}
        self._numbers = itertools.count(1)
        events.after(SECOND, self._beat)

    # -- machines

    def listen(self, address: str, host: Host) -> None:
        """Start accepting connections for a host at an address."""
        self._hosts[address] = host

    def leave(self, address: str) -> None:
        """Stop accepting connections at an address."""
        self._hosts.pop(address, None)

    def reset(self, machine: Machine) -> None:
        """Break every connection of a machine whose process ended; the other sides notice."""
        for connection in self._of(machine.name):
            cut = self._is_cut_off(connection)
            connection.break_(6 * SECOND if cut else self.delay("", ""))

    def _of(self, name: str) -> list[Connection]:
        return [
            connection
            for connection in self._open
            if name in (connection.host.name, connection.link.owner.name)
        ]

    # -- cuts

    def cut(self, source: str, target: str) -> None:
        """Block messages from one machine to another (cuts are counted)."""
        self._cuts[source, target] = self._cuts.get((source, target), 0) + 1

    def restore(self, source: str, target: str) -> None:
        """Revert a cut."""
        left = self._cuts[source, target] - 1
        self._cuts[source, target] = left
        if left == 0:
            del self._cuts[source, target]
            for connection in list(self._open):
                connection.repaired()

    def is_cut(self, source: str, target: str) -> bool:
        """Whether this direction is blocked."""
        return (source, target) in self._cuts

    def _is_cut_off(self, connection: Connection) -> bool:
        sender, other = connection.link.owner.name, connection.host.name
        return self.is_cut(sender, other) or self.is_cut(other, sender)

    # -- connections

    def open(self, link: VirtualLink) -> None:
        """Try to connect a link, which is notified of the result."""
        host = self._hosts.get(link.address)
        if host is None:
            self.events.after(self.delay("", ""), link.connect_failed)
            return
        name = link.owner.name
        if self.is_cut(name, host.name) or self.is_cut(host.name, name):
            self.events.after(_CONNECT_TIMEOUT, link.connect_failed)
        elif host.refuses:
            self.events.after(2 * self.delay(name, host.name), link.connect_failed)
        elif not host.answers:
            self.events.after(_CONNECT_TIMEOUT, link.connect_failed)
        else:
            self.events.after(2 * self.delay(name, host.name), self._accept, link, host)

    def _accept(self, link: VirtualLink, host: Host) -> None:
        if link.is_closed or not host.answers or self._hosts.get(link.address) is not host:
            link.connect_failed()
            return
        connection = Connection(self, link, host, next(self._numbers))
        self._open[connection] = None
        link.connected(connection)

    def forget(self, connection: Connection) -> None:
        """Remove a connection."""
        self._open.pop(connection, None)

    def break_some(self) -> None:
        """Break one of the open connections."""
        if self._open:
            connection = self.rng.choice(list(self._open))
            connection.break_(self.delay("", ""))

    def break_between(self, owner: str, host: str) -> None:
        """Break the connections from one machine to another, with their delayed messages."""
        for connection in list(self._open):
            if (connection.link.owner.name, connection.host.name) == (owner, host):
                connection.break_(self.delay("", ""))

    def _beat(self) -> None:
        for connection in list(self._open):
            alive = connection.host.answers and connection.link.owner.answers
            if alive and not self._is_cut_off(connection):
                connection.missed = 0
                continue
            connection.missed += 1
            if connection.missed > _MISSED:
                connection.break_(0)
        self.events.after(SECOND, self._beat)

    # -- messages

    def delay(self, source: str, target: str) -> int:
        """Return the delay of a message."""
        extra = self.slow.get(source, 0) + self.slow.get(target, 0)
        return 80 + extra + int(self.rng.expovariate(1.0 / self.jitter))

    def carry(self, connection: Connection, lane: Lane, parts: list[bytes]) -> None:
        """Deliver a message at the other end of its lane."""
        if lane.held or self.is_cut(lane.source, lane.target):
            lane.held.append(parts)
            return
        events, random = self.events, self.rng.random
        when = events.now + self.delay(lane.source, lane.target)
        if self.lateness and random() < self.lateness:
            when += int(random() * 400) * MS
        when = lane.due = max(lane.due + 1, when)
        if self.loss and random() < self.loss:
            events.at(when, connection.break_, self.delay("", ""))
            return
        events.at(when, self._arrive, connection, lane, parts)
        if self.duplication and random() < self.duplication:
            later = int(random() ** 3 * 8 * SECOND)
            events.at(when + later, self._arrive_again, lane, parts)

    def _arrive(self, connection: Connection, lane: Lane, parts: list[bytes]) -> None:
        if connection.is_open:
            self._arrive_again(lane, parts)

    def _arrive_again(self, lane: Lane, parts: list[bytes]) -> None:
        # A copy may arrive over another connection, after the first connection has broken.
        if not self.is_cut(lane.source, lane.target):
            self.trace.delivered(self.events.now, lane.source, lane.target, parts)
            lane.sink(parts)


class VirtualLink:
    """Replaces ``dstash.wire.sockets.Link``: the same interface over the virtual network.

    ``notify`` is called when there is something to receive, or a change of state.
    """

    def __init__(
        self,
        network: Network,
        owner: Machine,
        address: str,
        greeting: Callable[[], list[bytes]],
        notify: Callable[[], None],
    ) -> None:
        self.owner = owner
        self.address = self.place = address
        self.state = LinkState.CONNECTING
        self.was_closed_in_handshake = False
        #: There is no address to examine from outside.
        self.is_explained = True
        self.connection: Connection | None = None
        self.is_closed = False
        self.socket = object()
        self.monitor = object()
        self._network = network
        self._greeting = greeting
        self._notify = notify
        self._waiting: deque[list[bytes]] = deque()
        self._inbox: deque[list[bytes]] = deque()
        self._news: deque[LinkState] = deque()
        self._backoff = _RECONNECT_FIRST
        network.open(self)

    # -- called by channels

    def send(self, parts: list[bytes]) -> bool:
        """Send without waiting; False when the peer is not connected."""
        if self.state is LinkState.CONNECTING:
            self._waiting.append(parts)
            return True
        return self.state is LinkState.UP and self._send_now(parts)

    def _send_now(self, parts: list[bytes]) -> bool:
        if self.connection is None:
            return False
        self.connection.to_host(parts)
        return True

    def receive(self) -> list[bytes] | None:
        """Return the frames of one message, None when none waits."""
        return self._inbox.popleft() if self._inbox else None

    def put_back(self, parts: list[bytes]) -> None:
        """Return a message, to be received again."""
        self._inbox.appendleft(parts)

    @property
    def has_put_back(self) -> bool:
        """Whether messages wait."""
        return bool(self._inbox)

    @property
    def has_changed(self) -> bool:
        """Whether ``changes`` has something to return."""
        return bool(self._news)

    @property
    def reason(self) -> str:
        """Why the connection is not up."""
        return self.state.value

    def changes(self) -> list[LinkState]:
        """Return the states this link went through since the last call, oldest first."""
        seen = []
        while self._news:
            state = self._news.popleft()
            if state is not self.state:
                self.state = state
                self._flush(state)
                seen.append(state)
        return seen

    def _flush(self, state: LinkState) -> None:
        waiting, self._waiting = self._waiting, deque()
        if state is LinkState.UP:
            for parts in (self._greeting(), *waiting):
                self._send_now(parts)

    def close(self) -> None:
        """Close at once."""
        self.is_closed = True
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.break_(0)

    # -- called by the network

    @property
    def ready(self) -> list[object]:
        """The handles that have messages."""
        handles: list[object] = [self.socket] if self._inbox else []
        return [*handles, self.monitor] if self._news else handles

    def connected(self, connection: Connection) -> None:
        """Take a connection."""
        self.connection = connection
        self._backoff = _RECONNECT_FIRST
        self._tell(LinkState.UP)

    def connect_failed(self) -> None:
        """Handle a refused or unanswered connection; try again."""
        if not self.is_closed:
            self._tell(LinkState.DOWN)
            self._try_later()

    def went_down(self, connection: Connection) -> None:
        """Handle a broken connection; try again."""
        if self.connection is connection and not self.is_closed:
            self.connection = None
            self._tell(LinkState.DOWN)
            self._try_later()

    def _try_later(self) -> None:
        self._network.events.after(self._backoff, self._try_again)
        self._backoff = min(2 * self._backoff, _RECONNECT_LAST)

    def _try_again(self) -> None:
        if not self.is_closed:
            self._network.open(self)

    def arrived(self, parts: list[bytes]) -> None:
        """Take a message."""
        self._inbox.append(parts)
        self._notify()

    def _tell(self, state: LinkState) -> None:
        self._news.append(state)
        self._notify()
