"""What a cluster needs from the outside: one value changed by compare-and-set, and locks.

Two backends fulfil it: ``local`` (a directory on one machine) and ``consul``. Others, such as
Kubernetes, can follow the same interface; the same tests run against all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from dstash.cluster.topology.announcement import Announcement
from dstash.cluster.topology.topology import Topology
from dstash.errors import MembershipUnreachable

#: Marks one state of the stored topology; only good for comparing and for compare-and-set.
Token = int

#: The token of a topology that does not exist yet.
NOTHING: Token = 0


class StoredTopology(NamedTuple):
    """What the membership holds: the topology (None before there is one) and its token.

    ``corruption`` says why there is none although there was one; empty when that is not so.
    """

    topology: Topology | None
    token: Token
    corruption: str = ""


def may_pass(error: MembershipUnreachable) -> bool:
    """Whether the membership may answer later without a change of settings.

    It may not when it has answered that the request is wrong, or not allowed.
    """
    status = error.details.get("status")
    return status is None or status >= 500


class Membership(Protocol):
    """The outside truth about a cluster.

    Thread-safe. Every method but ``close`` and ``resign`` may raise ``MembershipUnreachable``
    after a bounded time, and works again once the backend does.
    """

    def read(self) -> StoredTopology:
        """Return the topology as stored now, never a stale one."""
        ...

    def compare_and_set(self, topology: Topology, token: Token) -> bool:
        """Store ``topology`` if the stored one still has ``token`` (``NOTHING``: if none is).

        Returns whether it was stored. After ``MembershipUnreachable`` it may or may not have been.
        """
        ...

    def announce(self, announcement: Announcement) -> None:
        """Take this peer's lock and keep it, renewing it in the background, until ``resign``.

        When the backend forgets the lock (it was away, or it elected a new leader) it is taken
        again by itself. Called again with other details, it updates them.

        Raises:
            PeerIdInUse: a live process holds the lock of that id.
        """
        ...

    def is_announced(self) -> bool:
        """Whether this peer holds its lock now, as far as it knows."""
        ...

    def alive(self) -> Mapping[str, Announcement]:
        """Return the announcements of all peers that hold their lock."""
        ...

    def watch(self, timeout: float) -> bool:
        """Wait until topology or liveness may have changed since the last ``watch``.

        Returns False when ``timeout`` (seconds) passed, or ``wake`` was called, without a change.
        Called by one thread.
        """
        ...

    def wake(self) -> None:
        """Make a ``watch`` that is waiting return soon."""
        ...

    def acquire(self, name: str) -> bool:
        """Try to take a named lock for this peer without waiting; True while it is held.

        Released by ``release``, by ``resign``, and by the death of the process. A hint about who
        should act, not a fence: what it guards must be a compare-and-set.
        """
        ...

    def release(self, name: str) -> None:
        """Let go of a named lock."""
        ...

    def resign(self) -> None:
        """Release the lock: the peer is no longer alive. It stays a member."""
        ...

    def close(self) -> None:
        """Resign and release everything."""
        ...
