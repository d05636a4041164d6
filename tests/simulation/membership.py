"""The membership of a virtual cluster: one value with compare-and-set, and locks.

Implements ``dstash.cluster.membership.interface`` with the faults of Consul: a lock is lost some
time after its holder stops answering, watches report changes late, and requests sometimes fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final, Protocol

from dstash.cluster.membership.interface import NOTHING, StoredTopology, Token
from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.joining import last_known
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipUnreachable, PeerIdInUse
from dstash.store.interface import Store
from tests.simulation.events import MS, SECOND, Events
from tests.simulation.trace import Trace

#: How long a lock is held after the last heartbeat of its holder.
_SESSION: Final = 2 * SECOND
_SWEEP: Final = 250 * MS


class TurnFailed(Exception):
    """A defect that ends one round of a peer's membership thread."""


class Watcher(Protocol):
    """A peer, as the membership sees it."""

    name: str

    @property
    def store(self) -> Store:
        """Its disk."""
        ...

    @property
    def answers(self) -> bool:
        """Whether its process runs."""
        ...

    def look_soon(self) -> None:
        """Handle a notification that something may have changed."""
        ...


class _Lock:
    def __init__(self, announcement: Announcement, holder: Watcher, now: int) -> None:
        self.announcement = announcement
        self.holder = holder
        self.last_sign = now
        self.is_held = True


class VirtualMembership:
    """Holds the topology and the locks."""

    def __init__(self, events: Events, rng: Random, trace: Trace) -> None:
        self._events = events
        self._rng = rng
        self._trace = trace
        self.topology: Topology | None = None
        #: The topologies that were replaced, oldest first.
        self.past: list[Topology] = []
        #: Whether data ever moved from one peer to another.
        self.moved_data = False
        self._token: Token = NOTHING
        self._locks: dict[str, _Lock] = {}
        #: Peers that cannot reach the membership, and how often they were cut off.
        self._cut_off: dict[str, int] = {}
        #: Peers whose rounds of the membership thread fail.
        self.failing: set[str] = set()
        #: Epochs that were used again after an older topology was put back, by a peer that had not
        #: seen the later one and so could not notice it.
        self.used_again: set[int] = set()
        self._newest_taken_away = 0
        #: The longest delay of notifications.
        self.lag = 300 * MS
        events.after(_SWEEP, self._sweep)

    @property
    def last(self) -> Topology | None:
        """The newest topology that was ever stored; peers know it while it is lost."""
        return max(
            filter(None, (self.topology, *self.past)),
            key=lambda topology: topology.epoch,
            default=None,
        )

    # -- faults

    def cut_off(self, name: str) -> None:
        """Make the membership unreachable for a peer."""
        self._cut_off[name] = self._cut_off.get(name, 0) + 1

    def let_through(self, name: str) -> None:
        """Revert one ``cut_off``."""
        self._cut_off[name] -= 1
        if not self._cut_off[name]:
            del self._cut_off[name]

    def lose_locks(self) -> None:
        """Drop every session at once, as an election does; peers take their locks again later."""
        for lock in self._locks.values():
            lock.is_held = False
        self._spread()

    def lose_topology(self) -> None:
        """Drop the topology, as an empty directory or a wiped Consul does."""
        self._trace.note(self._events.now, "the topology is lost")
        self._replace(None)

    def roll_back(self) -> None:
        """Restore an older topology, as a restored copy does."""
        older = self._rng.choice(self.past) if self.past else None
        if older is not None:
            self.put_back(older)

    def put_back(self, older: Topology) -> None:
        """Put a certain older topology back."""
        self._trace.note(self._events.now, f"the topology is {older.epoch} again")
        if self.topology is not None:
            self._newest_taken_away = max(self._newest_taken_away, self.topology.epoch)
        self._replace(older)

    def _replace(self, topology: Topology | None) -> None:
        if self.topology is not None:
            self.past.append(self.topology)
        self.topology = topology
        self._token += 1
        self._spread()

    # -- called by peers

    def delay(self) -> int:
        """Return the duration of a request."""
        return 500 + int(self._rng.expovariate(1 / 3_000))

    def is_cut_off(self, name: str) -> bool:
        """Whether a peer cannot reach the membership."""
        return name in self._cut_off

    def check(self, name: str) -> None:
        """Fail if the peer cannot reach the membership."""
        if name in self.failing:
            raise TurnFailed(name)
        if name in self._cut_off:
            raise MembershipUnreachable("the virtual membership does not answer")

    def read(self, name: str) -> StoredTopology:
        """Return the stored topology."""
        self.check(name)
        return StoredTopology(self.topology, self._token)

    def compare_and_set(self, name: str, topology: Topology, token: Token) -> bool:
        """Store a topology if the token is still current."""
        self.check(name)
        if token != self._token:
            return False
        if self.topology is not None and self.topology.formed:
            self.past.append(self.topology)
            if topology.epoch <= self._newest_taken_away and self._knows_no_later(name):
                self.used_again.add(topology.epoch)
        self.topology = topology
        self.moved_data |= topology.change is not None
        self._token += 1
        members = ",".join(
            f"{member.id}{'' if member.state == 'active' else f'({member.state})'}"
            f"{'' if member.synced else '(not synced)'}"
            for member in topology.members
        )
        self._trace.note(self._events.now, f"topology {topology.epoch} by {name}: {members}")
        self._spread()
        return True

    def announce(self, holder: Watcher, announcement: Announcement) -> None:
        """Take the lock of a peer."""
        self.check(holder.name)
        known = self._locks.get(announcement.peer)
        if known is not None and known.is_held and known.holder is not holder:
            raise PeerIdInUse(f"{announcement.peer} is held")
        self._locks[announcement.peer] = _Lock(announcement, holder, self._events.now)
        self._spread()

    def alive(self, name: str) -> Mapping[str, Announcement]:
        """Return the holder of a lock."""
        self.check(name)
        return {
            peer: lock.announcement for peer, lock in sorted(self._locks.items()) if lock.is_held
        }

    def resign(self, peer: str) -> None:
        """Release a lock."""
        if self._locks.pop(peer, None) is not None:
            self._spread()

    # -- internal

    def _knows_no_later(self, name: str) -> bool:
        """Whether a peer (or an operator, if it has no name) knows no later topology."""
        lock, stored = self._locks.get(name), self.topology
        last = last_known(lock.holder.store) if lock is not None else None
        return last is None or stored is None or last.epoch <= stored.epoch

    def _sweep(self) -> None:
        now = self._events.now
        changed = False
        for name, lock in self._locks.items():
            if lock.holder.answers and name not in self._cut_off:
                lock.last_sign = now
                changed |= not lock.is_held
                lock.is_held = True
            elif lock.is_held and now - lock.last_sign > _SESSION:
                changed, lock.is_held = True, False
        if changed:
            self._spread()
        self._events.after(_SWEEP, self._sweep)

    def _spread(self) -> None:
        for lock in self._locks.values():
            self._events.after(int(self._rng.random() * self.lag), lock.holder.look_soon)


class Handle:
    """The membership as one peer's agent sees it; only ``alive`` is asked directly."""

    def __init__(self, membership: VirtualMembership, name: str) -> None:
        self._membership = membership
        self._name = name

    def alive(self) -> Mapping[str, Announcement]:
        """Return the holder of a lock."""
        return self._membership.alive(self._name)
